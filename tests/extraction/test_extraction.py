"""Extraction against a plain loop over the models; what is shared, left out, refused, interrupted and continued."""

import dataclasses
import json

import numpy as np
import processes
import pyarrow.parquet as pq
import pytest
import torch
from interruption import checksums
from pictures import HELPERS, small_teachers, write_patches
from PIL import Image
from torch import nn

import shazam_fast as sf
from shazam_fast.extraction import plan as extraction_plan
from shazam_fast.images.sources import image_folder
from shazam_fast.teachers.models import cast_matrices, multiply_with_onednn

RANDOM = {"plain": "random", "wide": "random", "stained": "random"}
ROWS = 45


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    write_patches(path, ROWS)
    return path


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 20 rows, so that the images make three."""
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 20)


def extract(images, out, teachers=None, **options):
    teachers = small_teachers() if teachers is None else teachers
    options = {"weights": {t.name: "random" for t in teachers}, "device": "cpu", "workers": 2, **options}
    return sf.extract(images, teachers, out, **options)


@torch.no_grad()
def plain_loop(paths, spec, level="high", transform="own"):
    """One image after the other through one teacher, in the words of its definition."""
    teacher = sf.load_teacher(spec, "random", transform=transform)
    taken = []
    if level != "high":
        block = teacher.model.blocks[spec.levels[("low", "mid").index(level)]]
        block.register_forward_hook(lambda module, inputs, output: taken.append(output[:, 0]))
    features = [teacher(teacher.transform(Image.open(path).convert("RGB"))[None]) for path in paths]
    return torch.cat(taken or features).numpy()


# What comes out


@pytest.mark.usefixtures("small_parts")
def test_features_are_those_of_a_plain_loop(folder, tmp_path):
    report = extract(folder, tmp_path / "a", levels=("low", "mid", "high"), dtype="float32")
    archive = sf.open(tmp_path / "a")
    archive.verify()
    assert (report.n_rows, report.left_out) == (ROWS, ())
    blocks = {"plain": 24, "wide": 48, "stained": 24}
    assert archive.teachers == {
        name + suffix: 24 if suffix else dim for name, dim in blocks.items() for suffix in (":low", ":mid", "")
    }
    assert report.teachers == archive.teachers
    paths = image_folder(folder).paths
    features = archive.gather(range(ROWS))
    for spec in small_teachers():
        for level in ("low", "mid", "high"):
            name = spec.name if level == "high" else f"{spec.name}:{level}"
            expected = plain_loop(paths, spec, level)
            np.testing.assert_allclose(features[:, archive.columns_of(name)], expected, rtol=1e-4, atol=1e-5)
    images = pq.read_table(tmp_path / "a" / "images.parquet")
    assert images["path"].to_pylist() == [str(path) for path in paths]
    assert sorted(p.name for p in (tmp_path / "a").glob("part-*")) == [f"part-0000{i}.safetensors" for i in range(3)]


def test_one_level_and_the_authors_transform(folder, tmp_path):
    spec = small_teachers()[2]
    extract(folder, tmp_path / "a", [spec], transform="imagenet")
    archive = sf.open(tmp_path / "a")
    expected = plain_loop(image_folder(folder).paths, spec, transform="imagenet")
    assert archive.dtype == "float16"
    np.testing.assert_allclose(archive.gather(range(ROWS)), expected, rtol=2e-3, atol=2e-3)
    assert json.loads((tmp_path / "a" / "archive.json").read_text())["job"]["teachers"]["stained"]["transform"] == {
        "size": 32, "resize": None, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }  # fmt: skip


def test_positions_and_labels_are_never_cut_to_their_type(folder, tmp_path):
    paths = image_folder(folder).paths[:2]
    known = (np.array([0, 0]), ("n",), np.zeros(2, np.uint8))
    table = sf.ImageTable(paths, *known, coords=np.array([[0, 0], [0, 2**32]]))
    with pytest.raises(sf.MismatchError, match=r"a: coords: row 1: -2147483648 to 2147483647 .*, found 4294967296"):
        extract(table, tmp_path / "a", small_teachers()[:1])
    table = sf.ImageTable(paths, *known, coords=np.full((2, 2), 0.5))
    with pytest.raises(sf.MismatchError, match="coords: integers expected, found float64"):
        extract(table, tmp_path / "a", small_teachers()[:1])


def test_everything_known_of_the_images_is_kept(folder, tmp_path):
    paths = image_folder(folder).paths[:6]
    table = sf.ImageTable(
        paths, np.array([0, 1, -1, 1, 0, 0]), ("n", "t"), np.array([0, 0, 1, 2, 255, 0], np.uint8),
        groups=("p2", "p2", "p1", "", "p3", "p2"), slides=("s", "s", "r", "r", "", "s"),
        coords=np.arange(12, dtype=np.int32).reshape(6, 2), note="as somebody published it",
    )  # fmt: skip
    extract(table, tmp_path / "a", small_teachers()[:1])
    archive = sf.open(tmp_path / "a")
    assert archive.classes == ("n", "t")
    assert archive.labels.tolist() == table.labels.tolist()
    assert archive.splits.tolist() == table.splits.tolist()
    assert archive.coords.tolist() == table.coords.tolist()
    assert [archive.groups[i] if i >= 0 else "" for i in archive.group_index] == list(table.groups)
    assert [archive.slides[i] if i >= 0 else "" for i in archive.slide_index] == list(table.slides)
    job = json.loads((tmp_path / "a" / "archive.json").read_text())["job"]
    assert job["images"]["note"] == "as somebody published it"
    assert job["versions"]["torch"] == torch.__version__
    assert {"revision": "random", "pooling": "cls", "precision": "float32", "licence": "unknown"}.items() <= (
        job["teachers"]["plain"].items()
    )


def test_images_are_decoded_once_and_resized_once_a_geometry(folder, tmp_path, monkeypatch):
    decoded, resized, normalized = [], [], []
    from shazam_fast.extraction import pipeline as extraction_pipeline

    decode, pixels, normalize = extraction_pipeline.decode, sf.Transform.pixels, sf.Transform.normalize
    monkeypatch.setattr(extraction_pipeline, "decode", lambda path: decoded.append(path) or decode(path))
    monkeypatch.setattr(sf.Transform, "pixels", lambda self, image: resized.append(self) or pixels(self, image))
    monkeypatch.setattr(sf.Transform, "normalize", lambda self, x: normalized.append(self) or normalize(self, x))
    other = dataclasses.replace(small_teachers()[0], name="other", transform=sf.Transform(32, None))
    extract(folder, tmp_path / "a", [*small_teachers(), other], batch_size=ROWS)
    assert sorted(decoded) == list(image_folder(folder).paths)
    assert len(resized) == 2 * ROWS, "three of the four teachers share a geometry"
    assert len(normalized) == 2 * 3, "two of these the statistics as well; once for a blank image, once for the batch"


def test_matrices_rounded_once_give_the_bits_of_autocast():
    spec = small_teachers()[1]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, cast = sf.load_teacher(spec, "random"), sf.load_teacher(spec, "random")
    cast_matrices(cast, torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(images), cast(images))
    assert cast.model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert cast.model.blocks[0].norm1.weight.dtype == torch.float32


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_onednn_gives_the_same_features():
    plain, other = sf.load_teacher(small_teachers()[0], "random"), sf.load_teacher(small_teachers()[0], "random")
    multiply_with_onednn(other)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(other(images), plain(images), rtol=1e-5, atol=1e-5)


# Broken images


@pytest.fixture
def broken(tmp_path):
    """Ten images, of which number 3 is empty and 7 is cut off."""
    paths = write_patches(tmp_path / "broken", 10)
    whole = {path: path.read_bytes() for path in (paths[3], paths[7])}
    paths[3].write_bytes(b"")
    paths[7].write_bytes(whole[paths[7]][:900])
    return tmp_path / "broken", whole


@pytest.mark.usefixtures("small_parts")
def test_a_broken_image_stops_and_once_it_is_mended_the_rest_follows(broken, tmp_path, monkeypatch):
    images, whole = broken
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 3)
    with pytest.raises(sf.ImageError, match=r"003\.png: empty file .*Finished parts are kept"):
        extract(images, tmp_path / "a", batch_size=3)
    assert (tmp_path / "a" / "part-00000.safetensors").exists()
    with pytest.raises(sf.ArchiveError, match="interrupted"):
        sf.open(tmp_path / "a")
    for path, content in whole.items():
        path.write_bytes(content)
    assert extract(images, tmp_path / "a", batch_size=3).n_rows == 10
    extract(images, tmp_path / "b", batch_size=3)
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")


def test_broken_images_are_left_out_of_all_teachers_and_recorded(broken, tmp_path):
    images, _ = broken
    report = extract(images, tmp_path / "a", unreadable="exclude", dtype="float32")
    assert report.n_rows == 8
    assert [(item["row"], item["path"]) for item in report.left_out] == [
        (3, str(images / "003.png")), (7, str(images / "007.png"))
    ]  # fmt: skip
    assert "empty file" in report.left_out[0]["reason"]
    archive, kept = sf.open(tmp_path / "a"), [i for i in range(10) if i not in (3, 7)]
    paths = [images / f"{i:03d}.png" for i in kept]
    assert pq.read_table(tmp_path / "a" / "images.parquet")["path"].to_pylist() == [str(path) for path in paths]
    for spec in small_teachers():
        found = archive.gather(range(8))[:, archive.columns_of(spec.name)]
        np.testing.assert_allclose(found, plain_loop(paths, spec), rtol=1e-4, atol=1e-5)
    assert extract(images, tmp_path / "a", unreadable="exclude", dtype="float32") == report, (
        "said again when it is done"
    )


def test_a_part_without_a_readable_image(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 1)
    assert extract(broken[0], tmp_path / "a", unreadable="exclude").n_rows == 8
    assert len(list((tmp_path / "a").glob("part-*"))) == 8
    sf.open(tmp_path / "a").verify()


def test_no_image_can_be_read(tmp_path):
    (path,) = write_patches(tmp_path / "images", 1)
    path.write_bytes(b"")
    with pytest.raises(sf.ShazamError, match="none of 1 image could be read"):
        extract(tmp_path / "images", tmp_path / "a", unreadable="exclude")


# What is refused


class Nonsense(nn.Module):
    """Its features are NaN where an image is dark."""

    def forward(self, images):
        means = images.mean(dim=(1, 2, 3))
        return torch.where(means < -1.5, torch.nan, means)[:, None]


def test_a_feature_that_is_not_finite_names_the_image(tmp_path):
    write_patches(tmp_path / "images", 4)
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "002.png")
    spec = sf.TeacherSpec("odd", 1, library="torch", pooling="model", arguments={"create": Nonsense})
    with pytest.raises(sf.NonFiniteError, match=r"002\.png: teacher 'odd'"):
        extract(tmp_path / "images", tmp_path / "a", [spec])
    assert not (tmp_path / "a").exists(), "nothing is left where nothing was finished"


def test_an_unknown_teacher(folder, tmp_path):
    with pytest.raises(sf.MismatchError, match="no teacher is called 'virchov2'; did you mean virchow2"):
        sf.extract(folder, ["virchov2"], tmp_path / "a")


def test_levels_that_a_teacher_does_not_have(folder, tmp_path):
    spec = dataclasses.replace(small_teachers()[0], levels=None)
    with pytest.raises(sf.ShazamError, match="names no early and middle block"):
        extract(folder, tmp_path / "a", [spec], levels=("low", "high"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": ("deep",)}, r"levels: some of low, mid, high, each once, expected, found deep"),
        ({"unreadable": "replace"}, "unreadable: one of .* expected, found 'replace'"),
        ({"teachers": small_teachers()[:1] * 2}, r"each name once, expected, found \['plain', 'plain'\]"),
        ({"weights": {"uni": "random"}}, r"weights: names among the teachers .* expected, found \['uni'\]"),
        ({"labels": "classes"}, "labels: 'folder' expected, found 'classes'"),
        ({"batch_size": 0}, "batch_size and workers >= 1 expected"),
        ({"dtype": "float8"}, "'float16' or 'float32', not 'float8'"),
        ({"cluster": "slurm"}, "cluster: 'ray' expected, found 'slurm'"),
    ],
)
def test_arguments_that_do_not_fit(folder, tmp_path, changed, message):
    with pytest.raises(sf.ShazamError, match=message):
        extract(folder, tmp_path / "a", **changed)
    assert not (tmp_path / "a").exists()


def test_a_slide_without_coords(folder, tmp_path):
    with pytest.raises(sf.ImageError, match="a slide needs coords"):
        extract(folder / "000.png", tmp_path / "a")


def test_another_extraction_was_begun_there(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 3)
    with pytest.raises(sf.ImageError):
        extract(broken[0], tmp_path / "a")
    with pytest.raises(sf.MismatchError, match=r"was written with another dtype \('float16', now 'float32'\)"):
        extract(broken[0], tmp_path / "a", dtype="float32")


def test_other_files_are_there(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(sf.ShazamError, match=r"holds other files \(notes\.txt\)"):
        extract(folder, tmp_path)


def test_a_finished_part_that_has_changed_is_written_again(broken, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 3)
    with pytest.raises(sf.ImageError):
        extract(broken[0], tmp_path / "a", batch_size=3)
    part = tmp_path / "a" / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[4100] ^= 1
    part.write_bytes(content)
    for out in ("a", "b"):
        extract(broken[0], tmp_path / out, batch_size=3, unreadable="exclude")
    assert "part-00000.safetensors: checksum mismatch; the part is written again" in caplog.text
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")


# Interrupted, and shared

SCRIPT = """
import os, sys
import pyarrow.parquet, timm, torch  # before children are forked
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from interruption import kill_at
from pictures import small_teachers
import shazam_fast as sf
from shazam_fast.extraction import plan as extraction_plan, run as extraction_run, sharing
extraction_plan.PART_ROWS = 6
sharing.POLL_SECONDS, sharing.GRACE_SECONDS = 0.1, 1.0
images, out = sys.argv[2:4]

def run(rank, unreadable):
    "In a child, as torchrun starts it."
    if child := os.fork():
        return child
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank)})
    teachers = small_teachers()
    try:
        report = sf.extract(images, teachers, out, weights={t.name: "random" for t in teachers}, device="cpu",
                            levels=("low", "high"), workers=2, batch_size=4, unreadable=unreadable)
    except sf.ImageError as error:
        os.write(1, f"{rank}: {error}\\n".encode())
        os._exit(4)
    os._exit(0 if report.n_rows == len(os.listdir(images)) - 1 else 3)

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def run_script(script, folder, out):
    return processes.run(SCRIPT + script, HELPERS, folder, out, check=True).stdout


@pytest.fixture
def images(tmp_path):
    """Images, one of them broken."""
    write_patches(tmp_path / "images", ROWS)
    (tmp_path / "images" / "020.png").write_bytes(b"no image")
    return tmp_path / "images"


def test_processes_of_torchrun_share_the_parts(tmp_path, images, monkeypatch):
    script = "sys.exit(max(map(wait, [run(rank, 'exclude') for rank in range(3)])))"
    run_script(script, images, tmp_path / "out")
    assert len(sf.open(tmp_path / "out").files) == 8
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 6)
    extract(images, tmp_path / "alone", levels=("low", "high"), batch_size=4, unreadable="exclude")
    assert checksums(tmp_path / "out") == checksums(tmp_path / "alone")


def test_what_stops_one_process_stops_the_others(tmp_path, images):
    script = "print([wait(child) for child in [run(rank, 'stop') for rank in range(3)]])"
    said = run_script(script, images, tmp_path / "out").splitlines()
    assert said[-1] == "[4, 4, 4]"
    assert [line.split(": ", 1)[0] for line in sorted(said[:-1])] == ["0", "1", "2"]
    assert all("020.png" in line and "Finished parts are kept" in line for line in said[:-1])
    script = "sys.exit(max(map(wait, [run(rank, 'exclude') for rank in range(3)])))"
    run_script(script, images, tmp_path / "out")
    assert sf.open(tmp_path / "out").n_rows == ROWS - 1
    assert not list((tmp_path / "out").glob("process-*")), "the failure is forgotten"
