"""The registry of teachers, and teachers built from it without a download."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import shazam_fast as sf
from shazam_fast.teachers import registry
from shazam_fast.teachers.models import create, find_blocks, pool
from shazam_fast.teachers.table import BUILT_IN

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
image_module = pytest.importorskip("PIL.Image")

NAMES = [spec.name for spec in BUILT_IN]
BUILDABLE = [name for name in NAMES if name != "conch-v1.5"]
TINY_VIT = {
    "model_name": "vit_tiny_patch16_224", "img_size": 64, "embed_dim": 48, "num_heads": 3, "depth": 4, "reg_tokens": 2,
}  # fmt: skip
TINY = sf.TeacherSpec("tiny", dim=48, arguments=TINY_VIT, prefix_tokens=3, blocks=4, levels=(0, 2))


@pytest.fixture(autouse=True)
def _same_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def make_image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image_module.fromarray(pixels)


def test_the_table():
    assert [spec.name for spec in sf.list_teachers()] == NAMES
    assert NAMES == ["uni", "uni2", "virchow", "virchow-cls", "virchow2", "virchow2-cls", "phikon-v2", "gigapath",
                     "h-optimus-0", "h-optimus-1", "conch-v1.5", "gpfm"]  # fmt: skip
    dims = {"uni": 1024, "virchow-cls": 1280, "virchow2": 2560, "virchow2-cls": 1280, "gigapath": 1536}
    assert {name: sf.get_teacher(name).dim for name in dims} == dims
    assert sf.get_teacher("uni2").precision == "bfloat16"
    assert sf.get_teacher("phikon-v2").precision == "float32"
    assert not sf.get_teacher("phikon-v2").gated


BUILT = {}  # models on the meta device, of equal entries once, with tokens and operations of one image


def build(name):
    """The model that an entry of the registry describes, its tokens of one image, and the operations that it took."""
    spec = sf.get_teacher(name)
    key = spec.library, repr(spec.arguments), spec.transform.size
    if key not in BUILT:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model = create(spec).eval()
            image = torch.empty(1, 3, spec.transform.size, spec.transform.size)
            tokens = model.forward_features(image) if spec.library == "timm" else model(image).last_hidden_state
        BUILT[key] = model, tokens, counter.get_total_flops()
    return BUILT[key]


@pytest.mark.parametrize("name", BUILDABLE)
def test_every_entry_builds_what_it_says(name):
    """From the registry's arguments: blocks, width, tokens, input size, feature dim, operations."""
    spec = sf.get_teacher(name)
    model, tokens, operations = build(name)
    if spec.library == "timm":
        assert model.num_prefix_tokens == spec.prefix_tokens
        assert model.num_classes == 0
        patch = model.patch_embed.patch_size[0]
    else:
        patch = model.config.patch_size
    assert len(find_blocks(model, spec)) == spec.blocks
    assert tokens.shape[1] == spec.prefix_tokens + (spec.transform.size // patch) ** 2
    assert pool(tokens, spec).shape == (1, spec.dim)
    assert spec.gflops == pytest.approx(operations / 1e9, rel=1e-3)


def test_published_sizes():
    """Millions of weights of the published models: a wrong MLP, depth or register count would show here."""
    published = {"uni": 303, "uni2": 681, "virchow2": 631, "phikon-v2": 303, "gigapath": 1135, "h-optimus-0": 1135}
    for name, millions in published.items():
        assert round(sum(p.numel() for p in build(name)[0].parameters()) / 1e6) == millions, name


def test_patch_sizes():
    sizes = {"uni": 16, "uni2": 14, "virchow": 14, "gigapath": 16, "h-optimus-1": 14, "gpfm": 14}
    for name, size in sizes.items():
        assert build(name)[0].patch_embed.patch_size == (size, size), name


def test_pooling_rules():
    tokens = torch.arange(24.0).view(1, 8, 3)  # token t is [3t, 3t + 1, 3t + 2]
    cls = dataclasses.replace(TINY, prefix_tokens=5)
    assert pool(tokens, cls).tolist() == [[0, 1, 2]]
    both = dataclasses.replace(cls, pooling="cls+mean", dim=6)
    assert pool(tokens, both).tolist() == [[0, 1, 2, 18, 19, 20]]  # mean of tokens 5, 6, 7
    assert pool(tokens, dataclasses.replace(both, prefix_tokens=1)).tolist() == [[0, 1, 2, 12, 13, 14]]
    with pytest.raises(sf.MismatchError, match=r"tokens \[B, T > 5, D\] expected .*found \[1, 5, 3\]"):
        pool(tokens[:, :5], both)


def test_features_are_the_models_own(images):
    teacher = sf.load_teacher(TINY, "random")
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(teacher.features(images), teacher.model(images))
    assert torch.equal(teacher(images), teacher.features(images))
    levels = teacher.multi_level(images)
    blocks = [b[:, 0] for b in every_block(teacher.model, images)]
    assert list(levels) == ["low", "mid", "high"]
    assert torch.equal(levels["low"], blocks[0])
    assert torch.equal(levels["mid"], blocks[2])
    assert torch.equal(levels["high"], teacher.features(images))


def every_block(model, images):
    """Raw output of every block, by the layers one after the other."""
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    for block in model.blocks:
        tokens = block(tokens)
        yield tokens


def test_multi_level_takes_one_forward(images):
    teacher = sf.load_teacher(TINY, "random")
    calls = []
    teacher.model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    teacher.multi_level(images)
    assert len(calls) == 1
    assert not any(block._forward_hooks for block in teacher.model.blocks)
    with pytest.raises(sf.ShazamError, match="names no early and middle block"):
        sf.load_teacher(dataclasses.replace(TINY, levels=None), "random").multi_level(images)


def test_random_weights_are_the_same_on_every_call(images):
    torch.manual_seed(1)
    first, state = sf.load_teacher(TINY, "random"), torch.random.get_rng_state()
    torch.manual_seed(2)
    again = sf.load_teacher(TINY, "random")
    assert first.revision == "random"
    assert torch.equal(first.features(images), again.features(images))
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.fixture(scope="module")
def tiny_phikon():
    """Phikon-v2's entry with a small config."""
    spec = sf.get_teacher("phikon-v2")
    arguments = {
        **spec.arguments,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 64,
    }
    return dataclasses.replace(spec, name="tiny-phikon", dim=32, blocks=3, levels=(0, 1), arguments=arguments)


def test_phikon_runs_through_transformers(tiny_phikon, images):
    teacher = sf.load_teacher(tiny_phikon, "random")
    output = teacher.model(pixel_values=images, output_hidden_states=True)
    levels = teacher.multi_level(images)
    assert torch.equal(levels["high"], output.last_hidden_state[:, 0])
    assert torch.equal(levels["low"], output.hidden_states[1][:, 0])
    assert torch.equal(levels["mid"], output.hidden_states[2][:, 0])


def test_phikon_from_a_directory_and_a_file(tiny_phikon, images, tmp_path):
    """What save_pretrained writes has the names of older releases; a plain state_dict those of this one."""
    teacher = sf.load_teacher(tiny_phikon, "random")
    teacher.model.layernorm.bias.fill_(0.5)
    teacher.model.save_pretrained(tmp_path)
    torch.save(teacher.model.state_dict(), tmp_path / "state.bin")
    for path in (tmp_path, tmp_path / "state.bin"):
        again = sf.load_teacher(tiny_phikon, path)
        assert torch.equal(again.features(images), teacher.features(images))
        assert again.revision.startswith("sha256:")
    state = teacher.model.state_dict()
    del state["layernorm.bias"]
    torch.save(state, tmp_path / "state.bin")
    with pytest.raises(sf.MismatchError, match=r"1 missing \(layernorm.bias\)"):
        sf.load_teacher(tiny_phikon, tmp_path / "state.bin")


@pytest.mark.parametrize("form", ["safetensors", "pickle", "checkpoint"])
def test_weights_from_a_local_file(form, images, tmp_path):
    teacher = sf.load_teacher(TINY, "random")
    teacher.model.norm.bias.fill_(0.25)
    state = teacher.model.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pickle":
        torch.save({**state, "head.weight": torch.ones(5, 48)}, path)
    else:
        torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 7}, path)
    again = sf.load_teacher(TINY, path)
    assert torch.equal(again.features(images), teacher.features(images))
    assert again.revision.startswith("sha256:")
    assert len(again.revision) == len("sha256:") + 64


def test_weights_that_do_not_fit(tmp_path):
    state = sf.load_teacher(TINY, "random").model.state_dict()
    path = tmp_path / "w.pth"
    torch.save({**state, "cls_token": torch.zeros(1, 1, 64), "extra": torch.zeros(1)}, path)
    expected = (
        r"teacher 'tiny': 1 unexpected \(extra\); 1 of another shape \(cls_token \[1, 1, 64\], not \[1, 1, 48\]\)"
    )
    with pytest.raises(sf.MismatchError, match=expected):
        sf.load_teacher(TINY, path)
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("blocks.3")}, path)
    with pytest.raises(sf.MismatchError, match=r"12 missing \(blocks.3.norm1.weight, .* and 7 more\)"):
        sf.load_teacher(TINY, path)
    torch.save({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(sf.MismatchError, match=r"teacher 'tiny': 1 unexpected \(extra\)$"):
        sf.load_teacher(TINY, path)
    torch.save([1, 2], path)
    with pytest.raises(sf.MismatchError, match="a mapping of names to tensors expected, found list"):
        sf.load_teacher(TINY, path)


class Malicious:
    """Executes code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_malicious_weights_are_refused(tmp_path):
    proof = tmp_path / "executed"
    torch.save({"cls_token": Malicious(proof)}, tmp_path / "w.pth")
    with pytest.raises(sf.ArchiveError, match=r"w.pth: refused: .* could execute code"):
        sf.load_teacher(TINY, tmp_path / "w.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Malicious(proof), protocol=2))
    with pytest.raises(sf.ArchiveError, match="refused"):
        sf.load_teacher(TINY, tmp_path / "raw.pth")
    assert not proof.exists()


def test_weights_that_cannot_be_read(tmp_path):
    with pytest.raises(sf.ArchiveError, match=r"no\.pth: file not found"):
        sf.load_teacher(TINY, tmp_path / "no.pth")
    torch.save(sf.load_teacher(TINY, "random").model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:5000])
    with pytest.raises(sf.ArchiveError, match="truncated or corrupt"):
        sf.load_teacher(TINY, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(b"12345678")
    with pytest.raises(sf.ArchiveError, match="truncated or corrupt"):
        sf.load_teacher(TINY, tmp_path / "w.safetensors")
    with pytest.raises(sf.ArchiveError, match=r"holds no model.safetensors or pytorch_model.bin"):
        sf.load_teacher(TINY, tmp_path)


def test_a_model_with_other_blocks_is_refused():
    with pytest.raises(sf.MismatchError, match=r"a list of 7 blocks expected, found lists of .*4"):
        sf.load_teacher(dataclasses.replace(TINY, blocks=7), "random")


def test_a_model_of_another_width_is_refused(images):
    with pytest.raises(sf.MismatchError, match=r"features \[3, 50\] expected, found \[3, 48\]"):
        sf.load_teacher(dataclasses.replace(TINY, dim=50), "random").features(images)


def test_arguments_that_cannot_be():
    with pytest.raises(sf.ShazamError, match=r"timm cannot create it .*[Uu]nknown"):
        sf.load_teacher(sf.TeacherSpec("x", dim=1, arguments={"model_name": "vit_nonsense"}), "random")
    with pytest.raises(sf.ShazamError, match=r"no layer of timm\.layers or torch\.nn is called 'Swiggle'"):
        sf.load_teacher(dataclasses.replace(TINY, arguments={**TINY_VIT, "mlp_layer": "Swiggle"}), "random")


def hub(monkeypatch, answer):
    """Put a function in the place of the hub's download; returns the calls made."""
    calls = []

    def download(repository, name, **options):
        calls.append((repository, name, options))
        return answer(name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return calls


def test_weights_from_the_hub(monkeypatch, tmp_path, images):
    """With the user's token; the commit is the revision; the second name is taken where the first does not exist."""
    from huggingface_hub.errors import EntryNotFoundError

    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    teacher = sf.load_teacher(TINY, "random")
    torch.save(teacher.model.state_dict(), snapshot / "pytorch_model.bin")

    def answer(name):
        if name == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(snapshot / name)

    calls = hub(monkeypatch, answer)
    found = sf.load_teacher(dataclasses.replace(TINY, hub="me/tiny"), token="hf_secret")
    assert found.revision == "0123abc"
    assert torch.equal(found.features(images), teacher.features(images))
    assert [(repository, name) for repository, name, _ in calls] == [
        ("me/tiny", "model.safetensors"),
        ("me/tiny", "pytorch_model.bin"),
    ]
    assert all(options["token"] == "hf_secret" for _, _, options in calls)


def test_offline_is_explained(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name):
        raise LocalEntryNotFoundError("cannot reach the hub")

    calls = hub(monkeypatch, offline)
    expected = (
        r"teacher 'uni': could not download model.safetensors or pytorch_model.bin of MahmoodLab/UNI from Hugging Face "
        r"\(cannot reach the hub\).*gated: accept its terms \(CC-BY-NC-ND-4.0\) at https://huggingface.co/MahmoodLab/UNI"
        r".*hf auth login.*Without a network, .* weights= its path"
    )
    with pytest.raises(sf.ShazamError, match=expected):
        sf.load_teacher(sf.get_teacher("uni"))
    assert [options["local_files_only"] for _, _, options in calls] == [False, True]
    with pytest.raises(sf.ShazamError, match=r"it is open \(MIT.*majiabo/GPFM"):
        sf.load_teacher(sf.get_teacher("gpfm"))


def test_a_refusal_is_explained(monkeypatch):
    def refuse(name):
        raise OSError("401 Client Error: access to model is restricted\nlong text")

    calls = hub(monkeypatch, refuse)
    with pytest.raises(sf.ShazamError, match=r"\(401 Client Error: access to model is restricted\).*Virchow2"):
        sf.load_teacher(sf.get_teacher("virchow2"), token="hf_wrong")
    assert len(calls) == 1


def test_a_teacher_on_no_hub():
    with pytest.raises(sf.ShazamError, match="'tiny' has no repository on the hub"):
        sf.load_teacher(TINY)


def test_unknown_names_suggest_the_nearest():
    for asked, meant in [
        ("UNI_2", "uni2"),
        ("virchow-2", "virchow2"),
        ("hoptimus0", "h-optimus-0"),
        ("giga", "gigapath"),
    ]:
        with pytest.raises(sf.MismatchError, match=rf"no teacher is called '{asked}'; did you mean .*{meant}"):
            sf.get_teacher(asked)
    with pytest.raises(sf.MismatchError, match=r"'qqqq'; `shazam-fast teachers` lists them"):
        sf.get_teacher("qqqq")


def test_registering(images):
    sf.register_teacher(TINY)
    assert sf.get_teacher("tiny") is TINY
    assert sf.list_teachers()[-1] is TINY
    sf.register_teacher(dataclasses.replace(TINY, licence="MIT"))
    assert sf.get_teacher("tiny").licence == "MIT"
    with pytest.raises(sf.ShazamError, match="'uni' is a teacher of shazam_fast"):
        sf.register_teacher(dataclasses.replace(TINY, name="uni"))


def test_any_callable_is_a_teacher(images):
    """Its own output, or its tokens pooled and its blocks hooked."""
    vit = create(TINY)
    own = sf.TeacherSpec("own", dim=48, library="torch", pooling="model", arguments={"create": lambda: vit})
    teacher = sf.load_teacher(own)
    assert teacher.revision == "callable"
    assert torch.equal(teacher.features(images), vit(images))

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = vit

        def forward(self, images):
            return self.vit.forward_features(images)

    fields = {"pooling": "cls+mean", "prefix_tokens": 3, "blocks": 4, "levels": (1, 2)}
    tokens = sf.load_teacher(sf.TeacherSpec("tokens", dim=96, library="torch", arguments={"create": Tokens}, **fields))
    assert tokens.multi_level(images)["high"].shape == (3, 96)
    with pytest.raises(sf.ShazamError, match=r"brings its own weights, w\.pth cannot be loaded"):
        sf.load_teacher(own, "w.pth")
    with pytest.raises(sf.MismatchError, match="must return a torch module, found int"):
        sf.load_teacher(dataclasses.replace(own, arguments={"create": lambda: 5}))
    with pytest.raises(sf.MismatchError, match="a tensor expected, found tuple"):
        sf.load_teacher(dataclasses.replace(own, arguments={"create": Pair})).features(images)


class Pair(torch.nn.Module):
    def forward(self, images):
        return images, images


def test_conch_waits_for_the_users_callable(images):
    conch = sf.get_teacher("conch-v1.5")
    with pytest.raises(sf.ShazamError, match=r"'conch-v1.5': .*CC-BY-NC-ND-4.0.* is not run from here.*load_teacher"):
        sf.load_teacher(conch)
    with pytest.raises(sf.ShazamError, match=r"'conch-v1\.5' is a teacher of shazam_fast"):
        sf.register_teacher(dataclasses.replace(conch, licence="MIT"))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 768))
    sf.register_teacher(dataclasses.replace(conch, arguments={"create": lambda: model}))
    assert sf.load_teacher(sf.get_teacher("conch-v1.5")).features(images).shape == (3, 768)
    assert [spec.name for spec in sf.list_teachers()] == NAMES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"library": "keras"}, "library: one of .* expected, found 'keras'"),
        ({"pooling": "max"}, "pooling: one of .* expected, found 'max'"),
        ({"precision": "fp16"}, "precision: one of .* expected, found 'fp16'"),
        ({"name": "a:b"}, "a name without ':'"),
        ({"dim": 0}, "dim: a whole number from 1 expected, found 0"),
        ({"levels": (3, 9)}, r"levels 0 <= early < middle < blocks expected, found \(3, 9\) of 4"),
    ],
)
def test_specs_that_cannot_be(fields, message):
    with pytest.raises(sf.ShazamError, match=message):
        dataclasses.replace(TINY, **fields)


def torchvision_transform(transform):
    from torchvision import transforms as tv

    mode = tv.InterpolationMode(transform.interpolation)
    size = transform.resize or (transform.size, transform.size)
    return tv.Compose(
        [
            tv.Resize(size, mode),
            tv.CenterCrop(transform.size),
            tv.ToTensor(),
            tv.Normalize(transform.mean, transform.std),
        ]
    )


@pytest.mark.parametrize("name", [*NAMES, "imagenet"])
@pytest.mark.parametrize("shape", [(256, 256), (224, 224), (301, 260), (230, 613), (100, 80)])
def test_transforms_are_torchvisions_to_the_bit(name, shape):
    spec = sf.get_teacher("h-optimus-0" if name == "imagenet" else name)
    transform = spec.chosen_transform("imagenet" if name == "imagenet" else "own")
    image = make_image(*shape)
    ours = transform(image)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, torchvision_transform(transform)(image))


def test_gigapath_crops_what_the_others_shrink():
    image = make_image(256, 256)
    pixels = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(sf.get_teacher("gigapath").transform.pixels(image), pixels[:, 16:240, 16:240])
    assert not np.array_equal(sf.get_teacher("virchow2").transform.pixels(image), pixels[:, 16:240, 16:240])


def test_h_optimus_statistics():
    grey = image_module.new("RGB", (224, 224), (51, 102, 204))
    expected = [(0.2 - 0.707223) / 0.211883, (0.4 - 0.578729) / 0.230117, (0.8 - 0.703617) / 0.177517]
    for name in ("h-optimus-0", "h-optimus-1"):
        values = sf.get_teacher(name).transform(grey)
        assert values.shape == (3, 224, 224)
        assert torch.allclose(values[:, 0, 0], torch.tensor(expected), atol=1e-6)


def test_the_scripts_transform_squeezes_every_image():
    for name in ("gigapath", "h-optimus-1", "uni"):
        transform = sf.get_teacher(name).chosen_transform("imagenet")
        assert transform == sf.Transform(224, None, interpolation="bilinear")
        assert transform(make_image(300, 200)).shape == (3, 224, 224)
    teacher = sf.load_teacher(dataclasses.replace(TINY, transform=sf.Transform(64, 64)), "random", transform="imagenet")
    assert teacher.transform.to_dict() == {
        "size": 64, "resize": None, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }  # fmt: skip
    with pytest.raises(sf.ShazamError, match=r"transform: one of .* expected, found 'timm'"):
        sf.load_teacher(TINY, "random", transform="timm")


def test_pixels_are_shared_between_equal_geometries():
    """H-optimus and Virchow differ in statistics only, so one resized image serves both."""
    image = make_image(512, 512)
    virchow, optimus = sf.get_teacher("virchow").transform, sf.get_teacher("h-optimus-0").transform
    assert virchow.geometry == optimus.geometry != sf.get_teacher("gigapath").transform.geometry
    pixels = torch.from_numpy(np.stack([virchow.pixels(image)] * 2))
    assert torch.equal(optimus.normalize(pixels)[1], optimus(image))


def test_other_image_modes_are_refused():
    with pytest.raises(sf.MismatchError, match="an RGB image expected, found mode 'L'"):
        sf.Transform().pixels(image_module.new("L", (10, 10)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "0 < size <= resize"),
        ({"size": 256, "resize": 224}, "0 < size <= resize"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"std": (0.0, 1.0, 1.0)}, "positive stds"),
    ],
)
def test_transforms_that_cannot_be(fields, message):
    with pytest.raises(sf.ShazamError, match=message):
        sf.Transform(**fields)


def test_the_registry_needs_no_torch():
    script = """
import sys, shazam_fast as sf
assert len(sf.list_teachers()) == 12
print([m for m in ("torch", "timm", "transformers", "PIL") if m in sys.modules])
sys.modules["timm"] = None
try:
    sf.load_teacher("uni", "random")
except sf.ShazamError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("[]\nteacher 'uni' needs timm: pip install 'shazam_fast[teachers]'")
