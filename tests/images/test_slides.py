"""Patches of slides, at TRIDENT's and CLAM's positions, through openslide and tiffslide."""

import sys

import h5py
import numpy as np
import pytest
import tifffile
from pictures import tissue

import shazam_fast as sf
from shazam_fast.extraction.pipeline import ImageReader
from shazam_fast.images.slides import slide_patches

SIDE = 1024
CORNERS = [(0, 0), (256, 512), (896, 960)]  # the last reaches over two edges
TRIDENT = {"patch_size": 64, "patch_size_level0": 128, "level0_magnification": 40, "target_magnification": 20}
CLAM = {"patch_size": 64, "patch_level": 1, "downsample": (2.0, 2.0)}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A tiled pyramid of two levels, 1024 and 512 pixels, and its pixels at level 1."""
    path = tmp_path_factory.mktemp("slides") / "case-1.tif"
    level0 = np.asarray(tissue().resize((SIDE, SIDE)))
    level1 = np.asarray(tissue())
    with tifffile.TiffWriter(path) as file:
        options = {"tile": (128, 128), "photometric": "rgb"}
        file.write(level0, subifds=0, **options)
        file.write(level1, subfiletype=1, **options)
    return path, level1


def write_coords(path, attributes, corners=CORNERS, dtype=np.int64):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=np.array(corners, dtype=dtype).reshape(-1, 2))
        dataset.attrs.update(attributes)
    return path


@pytest.fixture(params=["openslide", "tiffslide"])
def backend(request, monkeypatch):
    if request.param == "tiffslide":
        monkeypatch.setitem(sys.modules, "openslide", None)
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize(("attributes", "dtype"), [(TRIDENT, np.int64), (CLAM, np.int32)], ids=["trident", "clam"])
def test_patches_are_read_where_the_tool_saw_them(tmp_path, slide, backend, attributes, dtype):
    path, level1 = slide
    table = slide_patches(path, write_coords(tmp_path / "case-1.h5", attributes, dtype=dtype))
    assert table.slides == ("case-1",) * 3
    assert table.coords.tolist() == [list(corner) for corner in CORNERS]
    assert table.sides.tolist() == [[128, 64]] * 3
    padded = np.pad(level1, ((0, 64), (0, 64), (0, 0)), constant_values=255)
    reader = ImageReader(table)
    for row, (x, y) in enumerate(CORNERS):
        patch = np.asarray(reader(row))
        assert np.array_equal(patch, padded[y // 2 : y // 2 + 64, x // 2 : x // 2 + 64]), "white beyond the edges"


def test_a_size_between_levels_is_resized_from_the_larger_one(tmp_path, slide, backend):
    path, _ = slide
    attributes = {"patch_size": 64, "patch_size_level0": 96}  # 1.5 times smaller than level 0
    table = slide_patches(path, write_coords(tmp_path / "case-1.h5", attributes, [(100, 200)]))
    expected = tissue().resize((SIDE, SIDE)).crop((100, 200, 196, 296)).resize((64, 64), 3)
    assert np.array_equal(np.asarray(ImageReader(table)(0)), np.asarray(expected))


def test_folders_of_slides_and_coords(tmp_path, slide):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.tif", "b.tif", "c.tif"):
        (folder / name).symlink_to(slide[0])
    write_coords(tmp_path / "coords" / "b_patches.h5", TRIDENT, CORNERS[:2])
    write_coords(tmp_path / "coords" / "a.h5", CLAM, CORNERS[2:])
    table = slide_patches(folder, tmp_path / "coords")
    assert table.slides == ("a", "b", "b")
    assert [path.name for path in table.paths] == ["a.tif", "b.tif", "b.tif"]


# What is wrong


def test_coords_without_a_slide(tmp_path, slide):
    write_coords(tmp_path / "coords" / "other_patches.h5", TRIDENT)
    with pytest.raises(sf.ImageError, match=r"no slide for 1 coords files in .*coords: other"):
        slide_patches(slide[0].parent, tmp_path / "coords")


def test_coords_of_another_slide(tmp_path, slide):
    coords = write_coords(tmp_path / "x.h5", TRIDENT, [(0, 0), (5000, 10)])
    with pytest.raises(sf.MismatchError, match=r"positions to \[5000, 10\].* has 1024 x 1024 pixels"):
        slide_patches(slide[0], coords)


def test_coords_without_a_size(tmp_path, slide):
    with pytest.raises(sf.ArchiveError, match=r"attributes patch_size .* found \['patch_size'\]"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", {"patch_size": 64}))


def test_a_size_that_is_none(tmp_path, slide):
    with pytest.raises(sf.ArchiveError, match="not a size"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", {**TRIDENT, "patch_size": 0}))


def test_a_file_without_coords(tmp_path, slide):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = np.zeros(3)
    with pytest.raises(sf.ArchiveError, match=r"a dataset 'coords' expected, found \['features'\]"):
        slide_patches(slide[0], tmp_path / "x.h5")


def test_coords_of_another_shape(tmp_path, slide):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["coords"] = np.zeros((3, 5))
    with pytest.raises(sf.ArchiveError, match=r"shape \[patches, 2\] expected, found \(3, 5\)"):
        slide_patches(slide[0], tmp_path / "x.h5")


def test_no_patches(tmp_path, slide):
    with pytest.raises(sf.ImageError, match="no images"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", TRIDENT, []))


def test_a_slide_that_is_none(tmp_path, backend):
    (tmp_path / "x.tif").write_bytes(b"II*\0 and then nothing")
    with pytest.raises(sf.ImageError, match=f"x.tif: {backend} cannot open the slide"):
        slide_patches(tmp_path / "x.tif", write_coords(tmp_path / "x.h5", TRIDENT))


def test_a_slide_that_is_damaged_inside(tmp_path, slide, backend):
    content = bytearray(slide[0].read_bytes())
    (tmp_path / "x.tif").write_bytes(content)
    table = slide_patches(tmp_path / "x.tif", write_coords(tmp_path / "x.h5", TRIDENT))
    (tmp_path / "x.tif").write_bytes(content[: len(content) // 8])
    with pytest.raises(sf.ImageError, match=r"x\.tif"):
        ImageReader(table)(1)


def test_nothing_installed_to_read_slides(tmp_path, slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    monkeypatch.setitem(sys.modules, "tiffslide", None)
    with pytest.raises(sf.ShazamError, match="openslide or tiffslide is needed"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", TRIDENT))


def test_a_slide_without_its_coords(tmp_path, slide):
    with pytest.raises(sf.ImageError, match="a slide and its coords file, or a folder of slides"):
        slide_patches(slide[0], tmp_path)
