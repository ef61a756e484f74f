"""Patches of slides, at TRIDENT's and CLAM's positions, through openslide and tiffslide."""

import logging
import os
import sys

import h5py
import numpy as np
import pytest
import tifffile
from pictures import tissue

import shazam_fast as sf
from shazam_fast.extraction.pipeline import ImageReader
from shazam_fast.images.slide_reader import reader_name
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
    assert table.over_edge == 1
    padded = np.pad(level1, ((0, 64), (0, 64), (0, 0)))
    reader = ImageReader(table, {})
    for row, (x, y) in enumerate(CORNERS):
        patch = np.asarray(reader(row))
        assert np.array_equal(patch, padded[y // 2 : y // 2 + 64, x // 2 : x // 2 + 64]), "black beyond the edges"


def test_a_size_between_levels_is_resized_from_the_larger_one(tmp_path, slide, backend):
    path, _ = slide
    attributes = {"patch_size": 64, "patch_size_level0": 96}  # 1.5 times smaller than level 0
    table = slide_patches(path, write_coords(tmp_path / "case-1.h5", attributes, [(100, 200)]))
    expected = tissue().resize((SIDE, SIDE)).crop((100, 200, 196, 296)).resize((64, 64), 3)
    assert np.array_equal(np.asarray(ImageReader(table, {})(0)), np.asarray(expected))


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


def test_geometry_is_that_of_the_coords_and_the_slide(tmp_path, slide, backend):
    for name, attributes in (("case-1_patches", TRIDENT), ("case-1", CLAM)):
        table = slide_patches(slide[0], write_coords(tmp_path / f"{name}.h5", attributes))
        assert table.geometry == {"case-1": sf.Geometry("pixels", 128.0, 1, None, reader_name())}
    assert reader_name().startswith(f"{backend} ")


def test_the_resolution_is_the_slides(tmp_path, backend):
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "resolutionunit": "CENTIMETER"}
    pixels = np.zeros((256, 256, 3), np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", pixels, resolution=(40000, 40000), **options)
    tifffile.imwrite(tmp_path / "oblong.tif", pixels, resolution=(40000, 30000), **options)
    for name, expected in (("s", 0.25), ("oblong", None)):
        table = slide_patches(tmp_path / f"{name}.tif", write_coords(tmp_path / f"{name}.h5", TRIDENT, [(0, 0)]))
        assert table.geometry[name].mpp == expected


def test_a_custom_downsample_multiplies_what_is_read(tmp_path, slide, backend):
    attributes = {"patch_size": 64, "patch_level": 0, "custom_downsample": 2}
    table = slide_patches(slide[0], write_coords(tmp_path / "x.h5", attributes, [(256, 512)]))
    assert table.sides.tolist() == [[128, 64]]
    assert np.array_equal(np.asarray(ImageReader(table, {})(0)), slide[1][256:320, 128:192])


@pytest.mark.parametrize(
    "attributes",
    [{"patch_size": 256, "patch_level": 1}, {"patch_size": 256, "patch_size_level0": 1024}],
    ids=["clam", "trident"],
)
def test_a_fractional_level_is_read_without_resizing(tmp_path, backend, attributes):
    """Both tools read `patch_size` pixels of a level 4.016 (4.006) times smaller than level 0, where 4 is meant."""
    height = 1032 if backend == "openslide" else 1027  # tifffile would not take it for a level
    level1 = np.asarray(tissue().resize((256, 256)))
    options = {"tile": (128, 128), "photometric": "rgb"}
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(np.zeros((height, 1024, 3), np.uint8), subifds=0, **options)
        file.write(level1, subfiletype=1, **options)
    table = slide_patches(tmp_path / "x.tif", write_coords(tmp_path / "x.h5", attributes, [(0, 0)]))
    assert np.array_equal(np.asarray(ImageReader(table, {})(0)), level1)
    assert table.geometry["x"].level == 1


LEICA = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="u">
<collection name="c" uuid="v" sizeX="512000" sizeY="512000"><barcode></barcode>
<image name="m" uuid="w"><creationDate>2020-01-01T00:00:00Z</creationDate><device model="x" version="1"/>
<pixels sizeX="512" sizeY="512"><dimension sizeX="512" sizeY="512" r="0" ifd="0"/></pixels>
<view sizeX="256000" sizeY="256000" offsetX="50000" offsetY="30000" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings>
</scanSettings></image></collection></scn>"""


def test_positions_count_from_the_corner_of_level_0_and_not_of_its_bounds(tmp_path):
    openslide = pytest.importorskip("openslide")
    pixels = np.asarray(tissue())
    with tifffile.TiffWriter(tmp_path / "b.scn", bigtiff=True) as file:
        file.write(pixels, tile=(128, 128), photometric="rgb", description=LEICA, metadata=None)
    bounds = openslide.OpenSlide(tmp_path / "b.scn").properties
    assert (bounds["openslide.bounds-x"], bounds["openslide.bounds-y"]) == ("100", "60")
    attributes = {"patch_size": 64, "patch_size_level0": 64}
    table = slide_patches(tmp_path / "b.scn", write_coords(tmp_path / "b.h5", attributes, [(110, 80), (68, 60)]))
    reader = ImageReader(table, {})
    assert np.array_equal(np.asarray(reader(0)), pixels[20:84, 10:74])
    half = np.asarray(reader(1))
    assert not half[:, :32].any(), "nothing was scanned left of the bounds: black, as in TRIDENT and CLAM"
    assert np.array_equal(half[:, 32:], pixels[:64, :32])


# Names


def test_slides_are_found_by_every_tools_names(tmp_path, slide):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.ome.tif", "b.ome.TIF", "c.TIFF", "._c.tif"):
        (folder / name).symlink_to(slide[0])
    write_coords(tmp_path / "coords" / "a_patches.h5", {**TRIDENT, "name": "a"})
    write_coords(tmp_path / "coords" / "b.ome.H5", CLAM)
    write_coords(tmp_path / "coords" / "c.hdf5", CLAM)
    (tmp_path / "coords" / "._c.h5").write_bytes(b"of another file system")
    table = slide_patches(folder, tmp_path / "coords")
    named = dict(zip(table.slides, table.paths, strict=True))
    assert {name: path.name for name, path in named.items()} == {"a": "a.ome.tif", "b": "b.ome.TIF", "c": "c.TIFF"}
    assert list(table.geometry) == list(named)


def test_coords_that_fit_two_slides(tmp_path, slide):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("s.tif", "s.svs"):
        (folder / name).symlink_to(slide[0])
    write_coords(tmp_path / "coords" / "s.h5", TRIDENT)
    with pytest.raises(
        sf.MismatchError, match=r"s\.h5: 's' fits the slides 's\.svs' and 's\.tif' of .*give the full name"
    ):
        slide_patches(folder, tmp_path / "coords")
    (tmp_path / "coords" / "s.h5").rename(tmp_path / "coords" / "s.tif.h5")
    table = slide_patches(folder, tmp_path / "coords")
    assert {path.name for path in table.paths} == {"s.tif"}, "as the error advises"
    assert set(table.slides) == {"s.tif"}


def test_two_coords_files_of_one_slide(tmp_path, slide):
    write_coords(tmp_path / "coords" / "case-1.h5", TRIDENT)
    write_coords(tmp_path / "coords" / "case-1_patches.h5", TRIDENT)
    with pytest.raises(
        sf.MismatchError, match=r"several coords files are of one slide: case-1\.h5, case-1_patches\.h5"
    ):
        slide_patches(slide[0].parent, tmp_path / "coords")


def test_slides_without_coords_are_named_once(tmp_path, slide, caplog):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.tif", "b.tif", "c.tif"):
        (folder / name).symlink_to(slide[0])
    write_coords(tmp_path / "coords" / "b_patches.h5", TRIDENT)
    slide_patches(folder, tmp_path / "coords")
    assert "left out 2 slides without coords: a.tif, c.tif" in caplog.text


def test_coords_of_another_name_are_said(tmp_path, slide, caplog):
    slide_patches(slide[0], write_coords(tmp_path / "case-2_patches.h5", TRIDENT))
    assert "by their names these are the coords of another slide than case-1.tif" in caplog.text


def test_a_slide_without_patches_does_not_stop_the_others(tmp_path, slide, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        (folder / name).symlink_to(slide[0])
    write_coords(tmp_path / "coords" / "a.h5", TRIDENT, [])
    write_coords(tmp_path / "coords" / "b.h5", TRIDENT, CORNERS[:1])
    assert slide_patches(folder, tmp_path / "coords").slides == ("b",)
    assert "left out 1 slide without a patch: a" in caplog.text


# What is wrong


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (np.full((256, 256, 4), 90, np.uint8), {"photometric": "separated"}),
        (np.full((256, 256, 5), 90, np.uint8), {"photometric": "rgb"}),
        (np.full((256, 256, 3), 900, np.uint16), {"photometric": "rgb"}),
        (np.full((256, 256), 90, np.int8), {"photometric": "minisblack"}),
        (np.full((256, 256), 90, np.uint8), {"photometric": "miniswhite"}),
    ],
    ids=["cmyk", "5 channels", "16 bits", "signed", "inverted"],
)
def test_pixels_that_the_readers_would_change_in_silence(tmp_path, backend, pixels, options):
    tifffile.imwrite(tmp_path / "x.tif", pixels, tile=(128, 128), metadata=None, **options)
    with pytest.raises(sf.ImageError, match=r"x\.tif: 8-bit RGB or grey expected, found"):
        slide_patches(tmp_path / "x.tif", write_coords(tmp_path / "x.h5", TRIDENT, [(0, 0)]))


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
@pytest.mark.parametrize("shape", [(3, 256, 256), (4, 256, 256, 3)], ids=["channels", "focal planes"])
def test_pages_that_the_readers_would_leave_out(tmp_path, backend, shape, suffix):
    photometric = "rgb" if len(shape) == 4 else "minisblack"
    slide = tmp_path / f"x{suffix}"
    tifffile.imwrite(slide, np.zeros(shape, np.uint8), tile=(128, 128), photometric=photometric)
    with pytest.raises(
        sf.ImageError, match=rf"{shape[0]} pages of 256 x 256|tiffslide cannot open the slide: .*series"
    ):
        slide_patches(slide, write_coords(tmp_path / "x.h5", TRIDENT, [(0, 0)]))


def test_an_alpha_channel_is_dropped_as_the_tools_do(tmp_path, backend):
    pixels = np.dstack([np.asarray(tissue()), np.full((512, 512), 255, np.uint8)])
    tifffile.imwrite(tmp_path / "x.tif", pixels, tile=(128, 128), photometric="rgb", extrasamples=[2], metadata=None)
    table = slide_patches(
        tmp_path / "x.tif", write_coords(tmp_path / "x.h5", {"patch_size": 64, "patch_level": 0}, [(9, 5)])
    )
    assert np.array_equal(np.asarray(ImageReader(table, {})(0)), pixels[5:69, 9:73, :3])


def test_coords_of_a_slide_of_another_size(tmp_path, slide):
    attributes = {**TRIDENT, "level0_width": 1024, "level0_height": 2048}
    with pytest.raises(sf.MismatchError, match=r"coords of a slide of 1024 x 2048 pixels, but .* has 1024 x 1024"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", attributes))


def test_coords_that_are_no_pixels(tmp_path, slide):
    with pytest.raises(sf.ArchiveError, match="whole numbers of pixels expected as coords"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", TRIDENT, [(0.5, 1.0)], np.float32))
    path = write_coords(tmp_path / "stamp.h5", TRIDENT, dtype=np.float32)
    with h5py.File(path, "a") as file:
        file.attrs["unit"] = "um"
    with pytest.raises(sf.ArchiveError, match="found the unit"):
        slide_patches(slide[0], path)


@pytest.mark.parametrize(
    "changed",
    [{"patch_size": 64.5}, {"patch_level": 2}, {"patch_level": -1}, {"patch_size": "64"}, {"custom_downsample": "x"}],
    ids=str,
)
def test_attributes_that_say_no_size(tmp_path, slide, changed):
    with pytest.raises(sf.ArchiveError, match="attributes patch_size and"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", {**CLAM, **changed}))


def test_a_shape_that_the_file_does_not_hold(tmp_path, slide):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("coords", shape=(1 << 40, 2), dtype=np.int64, chunks=(1024, 2)).attrs.update(TRIDENT)
    with pytest.raises(sf.ArchiveError, match=r"corrupt: coords of shape \(1099511627776, 2\) in 0 bytes"):
        slide_patches(slide[0], tmp_path / "x.h5")


def test_a_slide_that_is_no_regular_file(tmp_path, slide):
    table = slide_patches(slide[0], write_coords(tmp_path / "x.h5", TRIDENT))
    os.mkfifo(tmp_path / "pipe.tif")
    object.__setattr__(table, "paths", (tmp_path / "pipe.tif",) * 3)
    with pytest.raises(sf.ImageError, match=r"pipe\.tif: a regular file expected.*\(row 1 of the images\)"):
        ImageReader(table, {})(1)


def test_coords_without_a_slide(tmp_path, slide):
    write_coords(tmp_path / "coords" / "other_patches.h5", TRIDENT)
    with pytest.raises(sf.ImageError, match=r"no slide for 1 coords files in .*coords: other_patches\.h5"):
        slide_patches(slide[0].parent, tmp_path / "coords")


def test_coords_of_another_slide(tmp_path, slide):
    coords = write_coords(tmp_path / "x.h5", TRIDENT, [(0, 0), (5000, 10)])
    with pytest.raises(sf.MismatchError, match=r"positions from \[0, 0\] to \[5000, 10\].* has 1024 x 1024 pixels"):
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
        ImageReader(table, {})(1)


def test_nothing_installed_to_read_slides(tmp_path, slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    monkeypatch.setitem(sys.modules, "tiffslide", None)
    with pytest.raises(sf.ShazamError, match="openslide or tiffslide is needed"):
        slide_patches(slide[0], write_coords(tmp_path / "x.h5", TRIDENT))


def test_a_slide_without_its_coords(tmp_path, slide):
    with pytest.raises(sf.ImageError, match="a slide and its coords file, or a folder of slides"):
        slide_patches(slide[0], tmp_path)
