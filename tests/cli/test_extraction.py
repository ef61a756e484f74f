"""From a dataset as it is published to the paper's metrics, and from a slide to an archive, on the command line."""

import h5py
import numpy as np
import pytest
import tifffile
import torch
from pictures import small_teachers, tissue, write_patches
from PIL import Image
from typer.testing import CliRunner

import shazam_fast as sf
from shazam_fast.cli.app import app
from shazam_fast.cli.printing import console
from shazam_fast.images.datasets import UNITOPATHO_CLASSES
from shazam_fast.teachers import registry as teacher_registry


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Options that name two registered teachers and the files of their weights; the registry is restored afterwards."""
    before = dict(teacher_registry._registry)
    options = []
    for spec in small_teachers()[:2]:
        sf.register_teacher(spec)
        weights = tmp_path_factory.mktemp("weights") / f"{spec.name}.pth"
        torch.save(sf.load_teacher(spec, "random").model.state_dict(), weights)
        options += ["--teacher", spec.name, "--weights", f"{spec.name}={weights}"]
    yield options
    teacher_registry._registry = before


def shazam_fast(*arguments):
    console.width = 200
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def write_unitopatho(root):
    """A small copy of the published structure: four slides per class, tinted so that there is something to learn."""
    rng, section = np.random.default_rng(0), tissue()
    number = 0
    for split, slides in (("train", 3), ("test", 1)):
        rows = ["image_id,top_label,top_label_name"]
        for code, label in [*enumerate(UNITOPATHO_CLASSES)] * slides:
            number += 1
            for i in range(6):
                name = f"{number}-B2.ndpi_ROI__mpp0.44_reg000_crop_sk{i:05d}_({i},{number},1812,1812).png"
                (root / label).mkdir(parents=True, exist_ok=True)
                x, y = rng.integers(0, 400, 2).tolist()
                pixels = np.asarray(section.crop((x, y, x + 64, y + 64))).astype(float)
                pixels[..., code % 3] *= 0.2 if code < 3 else 0.6
                Image.fromarray(pixels.astype(np.uint8)).save(root / label / name)
                rows.append(f'"{name}",{code},{label}')
        (root / f"{split}.csv").write_text("\n".join(rows))
    return root


def test_from_the_published_dataset_to_its_table(tmp_path, teachers):
    root = write_unitopatho(tmp_path / "800")
    archive, student = tmp_path / "unitopatho.archive", tmp_path / "student"
    levels = ("--levels", "low,mid,high")
    extracted = shazam_fast("extract", "--dataset", "unitopatho", root, *teachers, "--out", archive, *levels)
    assert extracted.exit_code == 0, extracted.output
    assert "144 images in" in extracted.output
    assert "plain:low 24, plain:mid 24, plain 24, wide:low 24, wide:mid 24, wide 48" in extracted.output
    opened = sf.open(archive)
    assert opened.classes == UNITOPATHO_CLASSES
    assert len(opened.split("test")) == 36

    training = ("--preset", "unitopatho", "--epochs", "25", "--dim", "32", "--depth", "2")
    trained = shazam_fast("train", archive, "--out", student, *training)
    assert trained.exit_code == 0, trained.output
    evaluated = shazam_fast("evaluate", student, archive)
    assert evaluated.exit_code == 0, evaluated.output
    metrics = sf.evaluate(student, archive)
    assert f"{metrics.balanced_accuracy:.3f}" in evaluated.output
    assert metrics.balanced_accuracy > 0.5, "the tints can be told apart"


def test_a_slide_and_its_coords(tmp_path, teachers):
    tifffile.imwrite(tmp_path / "case.tif", np.asarray(tissue()), tile=(128, 128), photometric="rgb")
    with h5py.File(tmp_path / "case_patches.h5", "w") as file:
        file["coords"] = np.array([[0, 0], [256, 128]])
        file["coords"].attrs.update(patch_size=64, patch_size_level0=64)
    coords = ("--coords", tmp_path / "case_patches.h5")
    run = shazam_fast("extract", tmp_path / "case.tif", *coords, *teachers, "--out", tmp_path / "a")
    assert run.exit_code == 0, run.output
    archive = sf.open(tmp_path / "a")
    assert archive.slides == ("case",)
    assert archive.coords.tolist() == [[0, 0], [256, 128]]


def test_broken_images_are_said(tmp_path, teachers):
    paths = write_patches(tmp_path / "images" / "x", 3)
    paths[1].write_bytes(b"")
    options = ("--labels", "folder", "--unreadable", "exclude", "--out", tmp_path / "a")
    run = shazam_fast("extract", tmp_path / "images", *teachers, *options)
    assert f"left out: {paths[1]}: empty file" in run.output
    assert "2 images in" in run.output
    assert sf.open(tmp_path / "a").classes == ("x",)


def test_weights_without_a_name(tmp_path):
    options = ("--teacher", "uni", "--weights", "/weights/uni.pth", "--out", tmp_path / "a")
    run = shazam_fast("extract", tmp_path, *options)
    assert run.exit_code == 2
    assert "--weights NAME=PATH" in run.output
