"""Images to the features of three teachers: a loop in the form of the authors' scripts, and `shazam_fast.extract`.

    pytest benchmarks/bench_extraction.py [--quick] --benchmark-json=out.json

The authors' form (github.com/Tuner12/Shazam): for every teacher a DataLoader of its own, which decodes every image
again, torchvision's transforms, float32, and for multi-level features two forward passes a batch, one for the early and
middle blocks and one for the output; in batches of 8, so that all of its workers have some. "ours" includes the
creation of the models and the writing of the archive, which the loop does not.

Images as in the paper's datasets: JPEG of 512 px (HunCRC) and PNG of 1812 px (UniToPatho), cut from scikit-image's
stained section. `test_share` takes ours apart: decoding, resizing and normalising, the models.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import shazam_fast as sf
from shazam_fast.extraction.pipeline import Extractor
from shazam_fast.images.decoding import decode
from shazam_fast.images.sources import image_folder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORKERS = len(os.sched_getaffinity(0))
MODELS = ("vit_tiny_patch16_224", "vit_small_patch32_224", "vit_small_patch16_224")
DIMS = (192, 384, 384)
TEACHERS = [
    sf.TeacherSpec(
        name, dim, arguments={"model_name": name}, transform=sf.Transform(224, 224), blocks=12, levels=(3, 7)
    )
    for name, dim in zip(MODELS, DIMS, strict=True)
]
SOURCES = {"JPEG 512": (".jpg", 512, 40), "PNG 1812": (".png", 1812, 16)}
LEVELS = {"one level": ("high",), "three levels": ("low", "mid", "high")}
BATCH = 8
ROUNDS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{source: folder of images}, each a random area of the section, enlarged."""
    import skimage.data

    section, rng = Image.fromarray(skimage.data.immunohistochemistry()), np.random.default_rng(0)
    folders = {}
    for source, (suffix, size, count) in SOURCES.items():
        folders[source] = tmp_path_factory.mktemp(suffix[1:])
        for i in range(count):
            x, y = rng.integers(0, 256, 2).tolist()
            patch = section.crop((x, y, x + 256, y + 256)).resize((size, size), Image.Resampling.BICUBIC)
            patch.save(folders[source] / f"{i:03d}{suffix}", quality=90)
    return folders


class AuthorsImages(Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def authors_transform(recipe):
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize((recipe.size, recipe.size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(recipe.mean, recipe.std),
        ]
    )


@torch.no_grad()
def authors_levels(model, images, levels):
    """The CLS tokens of two blocks."""
    taken = []
    hooks = [model.blocks[i].register_forward_hook(lambda m, x, y: taken.append(y[:, 0])) for i in levels]
    model(images)
    for hook in hooks:
        hook.remove()
    return taken


@torch.no_grad()
def authors_extract(paths, models, levels, out):
    """One teacher after the other; returns its features side by side."""
    blocks = []
    for spec, model in zip(TEACHERS, models, strict=True):
        loader = DataLoader(AuthorsImages(paths, authors_transform(spec.transform)), BATCH, num_workers=WORKERS)
        parts = []
        for images in loader:
            batch = images.to(DEVICE)
            found = authors_levels(model, batch, spec.levels) if len(levels) > 1 else []
            parts.append(torch.cat([*found, model(batch)], dim=1).cpu())
        blocks.append(torch.cat(parts))
        torch.save(blocks[-1], out / f"{spec.name}.pt")
    return torch.cat(blocks, dim=1).numpy()


def pytest_generate_tests(metafunc):
    quick = metafunc.config.getoption("--quick")
    if "source" in metafunc.fixturenames:
        metafunc.parametrize("source", list(SOURCES)[:1] if quick else list(SOURCES))
    if "levels" in metafunc.fixturenames:
        metafunc.parametrize("levels", list(LEVELS)[1:] if quick else list(LEVELS))


def bytes_of(paths):
    return sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("provider", ["authors", "ours"])
def test_extract(measure, folders, source, levels, provider, tmp_path):
    paths = image_folder(folders[source]).paths
    models = [sf.load_teacher(spec, "random") for spec in TEACHERS]
    reference = [teacher.model.to(DEVICE) for teacher in models]
    weights = dict.fromkeys(MODELS, "random")
    if provider == "ours":

        def run():
            shutil.rmtree(tmp_path / "a", ignore_errors=True)
            sf.extract(folders[source], TEACHERS, tmp_path / "a", weights=weights, levels=LEVELS[levels], device=DEVICE)
            archive = sf.open(tmp_path / "a")
            return archive.gather(range(archive.n_rows))
    else:

        def run():
            return authors_extract(paths, reference, LEVELS[levels], tmp_path)

    features = measure(
        f"{len(MODELS)} teachers, {levels}, {source}", provider, run, rows=len(paths), nbytes=bytes_of(paths),
        baseline="authors", rounds=ROUNDS, warmup=0,
    )  # fmt: skip
    expected = authors_extract(paths[:4], reference, LEVELS[levels], tmp_path)
    np.testing.assert_allclose(features[:4], expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("stage", ["decode", "transform", "model"])
def test_share(measure, folders, source, stage):
    """What each stage takes by itself, on all cores."""
    table = image_folder(folders[source])
    recipe = TEACHERS[0].transform
    extractor = Extractor(
        table, [sf.load_teacher(t, "random") for t in TEACHERS], ("high",), torch.device(DEVICE), WORKERS, {}
    )
    with ThreadPoolExecutor(WORKERS) as pool:
        images = list(pool.map(decode, table.paths))

        def transform():
            pixels = torch.from_numpy(np.stack(list(pool.map(recipe.pixels, images))))
            return recipe.normalize(pixels.to(DEVICE))

        pixels = torch.from_numpy(np.stack([recipe.pixels(image) for image in images])).to(DEVICE)
        batches = [{recipe.geometry: part} for part in pixels.split(8 if DEVICE == "cpu" else 64)]

        @torch.inference_mode()
        def model():
            return [[block.cpu() for block in extractor._run(batch)] for batch in batches]

        stages = {"decode": lambda: list(pool.map(decode, table.paths)), "transform": transform, "model": model}
        measure(
            f"share of one level, {source}", stage, stages[stage], rows=len(table), nbytes=0, rounds=ROUNDS, warmup=1
        )
