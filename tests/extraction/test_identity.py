"""What makes two extractions the same: images, slides and their reader, teachers; and what an archive records of it."""

import json
import os
import sys

import h5py
import numpy as np
import pytest
import tifffile
import torch
from pictures import write_patches
from PIL import Image
from torch import nn

import shazam_fast as sf
from shazam_fast.extraction import pipeline as extraction_pipeline
from shazam_fast.extraction import plan as extraction_plan
from shazam_fast.images.sources import image_folder


class Mean(nn.Module):
    """The mean of each channel, times a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images):
        return images.mean((2, 3)) * self.factor


def mean_teacher(create=Mean):
    return sf.TeacherSpec("mean", 3, library="torch", pooling="model", arguments={"create": create})


def extract(images, out, create=Mean, **options):
    options = {"device": "cpu", "workers": 1, "batch_size": 2, **options}
    return sf.extract(images, [mean_teacher(create)], out, **options)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of six images, in parts of two."""
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 2)
    write_patches(tmp_path / "images", 6)
    return tmp_path / "images"


def interrupt(images, out):
    """Extract up to image 5, which is broken; the first two parts are finished."""
    whole = (images / "005.png").read_bytes()
    (images / "005.png").write_bytes(b"")
    with pytest.raises(sf.ImageError, match=r"005\.png: empty file .*\(row 5 of the images\)"):
        extract(images, out)
    (images / "005.png").write_bytes(whole)


# Images that change


def test_an_image_that_changed_before_the_work_goes_on(images, tmp_path):
    interrupt(images, tmp_path / "a")
    Image.new("RGB", (48, 48), (1, 2, 3)).save(images / "002.png")
    with pytest.raises(sf.MismatchError, match=r"images have changed since part 1 was written .*002\.png"):
        extract(images, tmp_path / "a")
    extract(images, tmp_path / "b")


def test_an_image_that_was_broken_may_be_mended(images, tmp_path):
    interrupt(images, tmp_path / "a")
    assert extract(images, tmp_path / "a").n_rows == 6


def test_an_image_that_changed_after_the_work_was_done(images, tmp_path):
    report = extract(images, tmp_path / "a")
    assert extract(images, tmp_path / "a") == report
    os.utime(images / "004.png")
    with pytest.raises(sf.MismatchError, match=r"since part 2 was written .*004\.png"):
        extract(images, tmp_path / "a")


@pytest.mark.parametrize("unreadable", ["stop", "exclude"])
@pytest.mark.parametrize(("change", "message"), [("write", "has changed since"), ("unlink", "is no longer there")])
def test_an_image_that_changes_or_vanishes_while_the_work_goes_on(
    images, tmp_path, monkeypatch, unreadable, change, message
):
    decode = extraction_pipeline.decode

    def disturb(path):
        if path.name == "003.png":
            path.unlink() if change == "unlink" else path.write_bytes(path.with_name("000.png").read_bytes())
        return decode(path)

    monkeypatch.setattr(extraction_pipeline, "decode", disturb)
    with pytest.raises(sf.MismatchError, match=rf"003\.png {message}.*row 3 of the images"):
        extract(images, tmp_path / "a", unreadable=unreadable)


def test_an_image_that_becomes_a_pipe(images, tmp_path, monkeypatch):
    decode = extraction_pipeline.decode

    def disturb(path):
        if path.name == "003.png":
            path.unlink()
            os.mkfifo(path)
        return decode(path)

    monkeypatch.setattr(extraction_pipeline, "decode", disturb)
    with pytest.raises(sf.MismatchError, match=r"003\.png has changed"):
        extract(images, tmp_path / "a")


def test_images_left_out_are_said_to_whoever_wants_all(images, tmp_path):
    (images / "001.png").write_bytes(b"")
    report = extract(images, tmp_path / "a", unreadable="exclude")
    assert [(item["row"], item["path"]) for item in report.left_out] == [(1, str(images / "001.png"))]
    with pytest.raises(sf.ImageError, match=r"left out 1 image .*001\.png: empty file"):
        extract(images, tmp_path / "a")


def test_links_to_the_same_images_are_the_same_images(images, tmp_path):
    report = extract(images, tmp_path / "a")
    (tmp_path / "link").symlink_to(images)
    assert extract(tmp_path / "link", tmp_path / "a").n_rows == report.n_rows


def test_the_data_beside_a_mirax_slide_belong_to_it(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s.mrxs").write_bytes(b"index")
    (tmp_path / "s" / "Data0000.dat").write_bytes(b"pixels")
    before = extraction_pipeline.stamp_of(tmp_path / "s.mrxs")
    assert extraction_pipeline.stamp_of(tmp_path / "s.mrxs") == before
    (tmp_path / "s" / "Data0000.dat").write_bytes(b"other pixels")
    assert extraction_pipeline.stamp_of(tmp_path / "s.mrxs") != before
    assert extraction_pipeline.stamp_of(tmp_path / "gone.mrxs") is None


# Teachers


def test_a_callable_that_makes_another_model(images, tmp_path):
    def make():
        return Mean(factor)

    factor = 1.0
    extract(images, tmp_path / "a", make)
    factor = 2.0
    with pytest.raises(sf.MismatchError, match="teachers"):
        extract(images, tmp_path / "a", make)


def test_a_gpu_is_named_by_its_kind(images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    options = {"levels": ("high",), "batch_size": 2, "workers": 1, "dtype": "float16", "unreadable": "stop"}
    table = image_folder(images)
    plan = extraction_plan.Plan(table, (mean_teacher(),), {}, "own", None, out=tmp_path / "a", **options)
    for device, expected in (("cuda", "NVIDIA H100"), ("cpu", None)):
        assert extraction_plan.describe_job(plan, plan.build(), torch.device(device), 2)["gpu"] == expected


# Slides


@pytest.fixture
def slide(tmp_path):
    """A slide of 512 x 384 pixels and TRIDENT's coords of two patches of 256, of which one reaches over the edge."""
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "s.tif", np.full((512, 384, 3), 120, np.uint8), resolution=(20000, 20000), **options)
    with h5py.File(tmp_path / "s_patches.h5", "w") as file:
        file["coords"] = np.array([[0, 0], [256, 0]])
        file["coords"].attrs.update(patch_size=128, patch_size_level0=256)
    return tmp_path / "s.tif", tmp_path / "s_patches.h5"


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
def test_geometry_and_patches_over_the_edge_are_recorded(slide, tmp_path, monkeypatch, reader):
    if reader == "tiffslide":
        monkeypatch.setitem(sys.modules, "openslide", None)
    library = pytest.importorskip(reader)
    extract(slide[0], tmp_path / "a", coords=slide[1], dtype="float32")
    archive = sf.open(tmp_path / "a")
    name = f"{reader} {vars(library).get('__library_version__', library.__version__)}"
    assert dict(archive.geometry) == {"s": sf.Geometry("pixels", 256.0, 0, 0.5, name)}
    job = json.loads((tmp_path / "a" / "archive.json").read_text())["job"]
    assert job["slide_reader"] == name
    assert {"over_the_edge": 1, "outside_the_slide": "black"}.items() <= job["images"].items()
    inside, over = (archive.gather([0, 1]) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406])[:, 0]
    assert (inside, over) == (pytest.approx(120 / 255, abs=1e-3), pytest.approx(60 / 255, abs=1e-2))


def test_another_reader_of_slides_is_another_extraction(slide, tmp_path, monkeypatch):
    pytest.importorskip("openslide")
    extract(slide[0], tmp_path / "a", coords=slide[1])
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(sf.MismatchError, match="slide_reader"):
        extract(slide[0], tmp_path / "a", coords=slide[1])
