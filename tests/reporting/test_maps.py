"""Maps over tissue: what lies where, what is said, in which colours; merged polygons for QuPath."""

import json

import numpy as np
import pytest
from PIL import Image
from scored import GRID, colours_of, make_scores

import shazam_fast as sf
from shazam_fast.images.overview import Tissue
from shazam_fast.reporting.qupath.regions import merge_patches
from shazam_fast.reporting.slide_picture import Style, draw_slide
from shazam_fast.reporting.slide_scores import one_slide, summarise_slide

pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: heatmap)")
CLASSES = ("normal", "adenoma", "carcinoma")


def known(mpp=0.5):
    return {"s": sf.Geometry("pixels", 224, mpp=mpp)}


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def area_of(ring):
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def test_summary_and_scale_bar():
    slide = one_slide(make_scores({"s": GRID}, geometry=known()), "s", None, None)
    square = (224 * 0.5 / 1000) ** 2
    assert summarise_slide(slide).startswith(f"normal 33% of tissue, {4 * square:.3g} mm\u00b2; adenoma 33%")
    style = Style(("classes", "probability:adenoma"), ("#112233", "#445566", "#778899"))
    written = texts(draw_slide(slide, style))
    assert "100 \u00b5m" in written  # of 896 pixels x 0.5 a quarter is 112
    assert "Probability of adenoma" in written
    unknown = one_slide(make_scores({"s": GRID}), "s", 224, None)
    assert "mm\u00b2" not in summarise_slide(unknown)
    written = texts(draw_slide(unknown, style))
    assert not any("\u00b5m" in text for text in written)
    assert "200 pixels" in written  # of 896 a quarter is 224
    assert any("micrometres per pixel not known" in text for text in written)


def test_chosen_colours_and_order(tmp_path):
    scores = make_scores({"s": GRID}, geometry=known())
    (picture,) = sf.heatmap(scores, tmp_path, panels=["classes"], colours={"carcinoma": "#ff0000", "normal": "#00ff00"})
    colours = {tuple(c) for c in colours_of(picture).reshape(-1, 3)}
    assert {(255, 0, 0), (0, 255, 0)} <= colours
    tiles = json.loads((tmp_path / "s.geojson").read_text())["features"]
    assert tiles[2]["properties"]["classification"] == {"name": "carcinoma", "color": [255, 0, 0]}
    slide = one_slide(scores, "s", None, None)
    legend = [t for t in texts(draw_slide(slide, Style(("classes",), ("#ff0000",) * 3, (2, 0)))) if t in CLASSES]
    assert legend == ["carcinoma", "normal", "adenoma"]


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_formats(tmp_path, suffix):
    (picture,) = sf.heatmap(make_scores({"s": GRID}, geometry=known()), tmp_path, panels=["classes"], format=suffix)
    assert picture.name == f"s.{suffix}"
    assert picture.stat().st_size > 1000


@pytest.mark.usefixtures("small_maps")
def test_influence(tmp_path, trained):
    student, archive = trained
    scores = sf.score(student, archive, influence=True, device="cpu")
    pictures = sf.heatmap(scores, tmp_path, panels=["influence:virchow"], patch_size=256)
    assert len(pictures) == 12
    tile = json.loads(pictures[0].with_suffix(".geojson").read_text())["features"][0]
    first = list(scores.slides).index(pictures[0].stem)
    row = int(np.argmax(scores.slide_index == first))
    assert tile["properties"]["measurements"]["influence: virchow"] == pytest.approx(scores.influence[row, 2], abs=1e-6)


@pytest.fixture(scope="module")
def quarters(tmp_path_factory):
    """A slide of 4096 x 4096 pixels with four colours, as a pyramid and as an image of a sixteenth."""
    tifffile = pytest.importorskip("tifffile")
    colours = np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [200, 200, 0]]], np.uint8)
    level0 = colours.repeat(2048, axis=0).repeat(2048, axis=1)
    folder = tmp_path_factory.mktemp("quarters")
    (folder / "slides").mkdir()
    with tifffile.TiffWriter(folder / "slides" / "s.tif") as file:
        options = {"tile": (256, 256), "photometric": "rgb"}
        file.write(level0, subifds=1, **options)
        file.write(level0[::4, ::4], subfiletype=1, **options)
    (folder / "images").mkdir()
    Image.fromarray(level0[::16, ::16]).save(folder / "images" / "s.png")
    return folder


@pytest.mark.parametrize(("folder", "downsample"), [("slides", None), ("images", 16.0)])
def test_tissue_lies_where_the_patches_lie(quarters, folder, downsample):
    tissue = Tissue(quarters / folder, downsample, ("s",))
    pixels = tissue.read("s", np.array([1024.0, 1024.0]), np.array([2048.0, 1024.0]), (100, 200))
    assert pixels.shape == (100, 200, 3)
    assert pixels[50, [10, 90, 110, 190]].tolist() == [[200, 0, 0]] * 2 + [[0, 200, 0]] * 2
    beyond = tissue.read("s", np.array([-1024.0, 2048.0]), np.array([2048.0, 4096.0]), (200, 100))
    assert beyond[50, [10, 40, 60, 90]].tolist() == [[255] * 3] * 2 + [[0, 0, 200]] * 2
    assert (beyond[110:] == 255).all()  # below the slide's edge


def test_maps_over_tissue(quarters, tmp_path):
    coords = [(1800 + 200 * i, 1000) for i in range(3)]
    scores = make_scores({"s": coords}, geometry={"s": sf.Geometry("pixels", 200, mpp=0.25)})
    out = tmp_path / "maps"
    (picture,) = sf.heatmap(scores, out, tissue=quarters / "images", downsample=16, colours={"normal": "#000000"})
    colours = {tuple(c) for c in colours_of(picture).reshape(-1, 3)}
    assert {(200, 0, 0), (0, 200, 0)} <= colours  # around the patches
    assert (90, 0, 0) in colours  # a black patch over red tissue


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"panels": ["tissue"]}, sf.MismatchError, "'tissue' cannot be drawn of these scores; there are classes"),
        ({"panels": ["probability:cancer"]}, sf.MismatchError, "'probability:cancer' cannot be drawn"),
        ({"panels": ["influence:uni"]}, sf.MismatchError, "'influence:uni' cannot be drawn"),
        ({"panels": "classes"}, sf.ShazamError, "panels: a list such as"),
        ({"colours": {"cancer": "#000000"}}, sf.ShazamError, "no class is called 'cancer'"),
        ({"colours": {"normal": "black"}}, sf.ShazamError, "a colour like '#0072b2' expected, found 'black'"),
        ({"format": "tiff"}, sf.ShazamError, "format: one of png, svg, pdf expected"),
        ({"tissue": "nowhere"}, sf.ImageError, "nowhere: no whole-slide image"),
        ({"downsample": 0}, sf.ShazamError, "downsample: a number more than 0"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        sf.heatmap(make_scores({"s": GRID}, geometry=known()), tmp_path / "out", **options)


def test_tissue_that_is_not_there(quarters, tmp_path):
    scores = make_scores({"s": GRID, "t": GRID}, geometry={"s": known()["s"], "t": known()["s"]})
    with pytest.raises(sf.MismatchError, match=r"no file of slide 't' .1 of 2 slides"):
        sf.heatmap(scores, tmp_path / "out", tissue=quarters / "images", downsample=16)
    with pytest.raises(sf.MismatchError, match="no file of slide 't'"):
        sf.heatmap(scores, tmp_path / "out", tissue=quarters / "images" / "s.png", downsample=16)
    with pytest.raises(sf.ShazamError, match=r"an image, not a slide; give the level-0 pixels .*--downsample"):
        sf.heatmap(make_scores({"s": GRID}, geometry=known()), tmp_path / "out", tissue=quarters / "images")


@pytest.mark.usefixtures("small_maps")
def test_merged_patches_cover_what_the_tiles_cover(tmp_path):
    rng = np.random.default_rng(0)
    places = [(x * 224, y * 224) for x in range(12) for y in range(9) if rng.random() < 0.8]
    scores = make_scores({"s": places}, geometry=known())
    sf.heatmap(scores, tmp_path, panels=["classes"], merged=True)
    features = json.loads((tmp_path / "s.geojson").read_text())["features"]
    assert [f["properties"]["classification"]["name"] for f in features] == list(CLASSES)
    for code, feature in enumerate(features):
        assert feature["properties"]["objectType"] == "annotation"
        area = sum(area_of(ring) for polygon in feature["geometry"]["coordinates"] for ring in polygon)
        assert area == 224**2 * (scores.prediction == code).sum()


def test_holes_and_corners():
    ring = [(x, y) for x in range(3) for y in range(3) if (x, y) != (1, 1)]
    first = np.array([[1.0, 0.0]] * 8)
    ((polygon,), empty) = merge_patches(np.array(ring) * 10, 10, first)
    assert empty == []
    assert [area_of(one) for one in polygon] == [900, -100]
    assert [len(one) for one in polygon] == [5, 5]
    diagonal, _ = merge_patches(np.array([[0, 0], [10, 10]]), 10, np.array([[1.0, 0.0]] * 2))
    assert [[area_of(one) for one in polygon] for polygon in diagonal] == [[100], [100]]
    for touching in (((1, 1), (2, 2)), ((1, 2), (2, 1)), ((0, 0), (1, 1)), ((3, 0), (2, 1))):
        grid = [(x, y) for x in range(4) for y in range(4) if (x, y) not in touching]
        ((polygon,), _) = merge_patches(np.array(grid) * 10, 10, np.array([[1.0, 0.0]] * 14))
        assert sum(area_of(one) for one in polygon) == 1400
        assert all(len(set(one)) == len(one) - 1 for one in polygon)  # no ring meets itself
        assert len(polygon) == 1 + sum(0 < x < 3 and 0 < y < 3 for x, y in touching)


def test_patches_on_no_grid_cannot_be_merged(monkeypatch):
    monkeypatch.setattr("shazam_fast.reporting.qupath.regions.MOST_CELLS", 100)
    with pytest.raises(sf.MismatchError, match="too many to merge: write tiles"):
        merge_patches(np.random.default_rng(0).random((40, 2)), 0.1, np.ones((40, 2)))


def test_overlay_has_the_probabilities_where_the_patches_lie(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    coords = np.array([(1000, 300), (1224, 300), (1000, 524)])
    scores = make_scores({"s": coords}, geometry=known())
    sf.heatmap(scores, tmp_path, panels=["classes"], overlay=True)
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as file:
        image = file.asarray()  # [C, H, W]
        told = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [channel["Name"] for channel in told["Channel"]] == list(CLASSES)
    pixel = 224 / 8  # level-0 pixels
    assert told["PhysicalSizeX"] == pytest.approx(0.5 * pixel)
    assert image.shape == (3, 27, 52)  # 748 and 1448 level-0 pixels
    for (x, y), probabilities in zip(coords, scores.probabilities, strict=True):
        np.testing.assert_allclose(image[:, int((y + 112) / pixel), int((x + 112) / pixel)], probabilities)
    assert np.isnan(image[:, 26, 51]).all()
    assert np.isfinite(image[0]).sum() == pytest.approx(3 * 64, abs=10)


class Scanned:
    """A slide of 4000 x 4000 pixels of which 2000 x 2000 from 1000, 500 were scanned; the rest is transparent."""

    __module__ = "openslide"  # whose name its properties have
    dimensions, level_downsamples = (4000, 4000), (1.0,)
    properties = {f"openslide.bounds-{k}": v for k, v in (("x", "1000"), ("y", "500"), ("width", "2000"))}  # noqa: RUF012

    def read_region(self, corner, level, size):
        x, y = np.arange(size[0]) + corner[0], np.arange(size[1])[:, None] + corner[1]
        pixels = np.zeros((size[1], size[0], 4), np.uint8)
        pixels[(x >= 1000) & (x < 3000) & (y >= 500) & (y < 2500)] = (200, 0, 0, 255)
        return Image.fromarray(pixels)


def test_polygons_and_overlay_begin_at_the_scanned_area(tmp_path, monkeypatch):
    """QuPath shows an MRXS slide without its empty border; positions of patches count the border."""
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr(Scanned, "properties", {**Scanned.properties, "openslide.bounds-height": "2000"})
    monkeypatch.setattr("shazam_fast.images.overview.open_slide", lambda path: Scanned())
    (tmp_path / "s.mrxs").touch()
    scores = make_scores({"s": [(1000, 500), (1224, 724)]}, geometry=known())
    for merged in (False, True):
        (picture,) = sf.heatmap(
            scores, tmp_path / "maps", panels=["tissue"], tissue=tmp_path / "s.mrxs", overlay=True, merged=merged
        )
        corners = [np.array(f["geometry"]["coordinates"]).reshape(-1, 2).min(axis=0).tolist()
                   for f in json.loads((tmp_path / "maps" / "s.geojson").read_text())["features"]]  # fmt: skip
        assert corners == [[0, 0], [224, 224]]
    image = tifffile.imread(tmp_path / "maps" / "s.ome.tif")
    np.testing.assert_allclose(image[:, 4, 4], scores.probabilities[0])
    np.testing.assert_allclose(image[:, 12, 12], scores.probabilities[1])
    assert np.isnan(image[:, 4, 12]).all()
    colours = {tuple(c) for c in colours_of(picture).reshape(-1, 3)}
    assert (200, 0, 0) in colours
    assert (0, 0, 0) not in colours  # what was not scanned is white
    tissue = Tissue(tmp_path / "s.mrxs", None, ("s",))
    pixels = tissue.read("s", np.array([900.0, 400.0]), np.array([200.0, 200.0]), (20, 20))
    assert pixels[15, 15].tolist() == [200, 0, 0]
    assert pixels[5, 15].tolist() == pixels[15, 5].tolist() == [255] * 3


def test_a_slide_without_all_bounds_has_no_border(tmp_path, monkeypatch):
    monkeypatch.setattr("shazam_fast.images.overview.open_slide", lambda path: Scanned())
    (tmp_path / "s.mrxs").touch()
    assert Tissue(tmp_path, None, ("s",)).scanned_from("s") == (0, 0)


def test_top_patches_of_each_class(quarters, tmp_path):
    """The most probable patches among those predicted as the class, so many per slide, from the slides given."""
    coords = [(x, y) for y in (0, 1900, 3800) for x in (0, 1000, 3000)]  # red left above, green right, blue below
    scores = make_scores({"s": coords, "t": coords}, geometry={n: sf.Geometry("pixels", 200) for n in "st"})
    probabilities = np.asarray(scores.probabilities)
    shown = sf.top_patches(scores, tmp_path / "sheet.png", images=quarters / "slides", count=3, per_slide=2)
    assert [patch.row_title for patch in shown] == [name for name in CLASSES for _ in range(2)]
    assert {patch.slide for patch in shown} == {"s"}  # the other has no image
    for patch in shown:
        row = coords.index((patch.x, patch.y))
        assert patch.value == probabilities[row].max() == probabilities[row, CLASSES.index(patch.row_title)]
    page = colours_of(tmp_path / "sheet.png")
    assert {(200, 0, 0), (0, 200, 0)} <= {tuple(c) for c in page.reshape(-1, 3)}
    with pytest.raises(sf.ImageError, match="no image of the slides"):
        sf.top_patches(make_scores({"u": coords}), tmp_path / "x.png", images=quarters / "slides", patch_size=200)
    with pytest.raises(sf.MismatchError, match="do not tell the size of its patches"):
        sf.top_patches(make_scores({"s": coords}), tmp_path / "x.png", images=quarters / "slides")
    with pytest.raises(sf.ShazamError, match="count"):
        sf.top_patches(scores, tmp_path / "x.png", images=quarters / "slides", count=0)
