"""Pictures of whole slides: attention over the slide, the top patches, survival curves."""

import logging

import numpy as np
import pytest
from PIL import Image
from program import call
from slide_images import PATCH, SIDE, make_slides

import shazam_fast as sf
from shazam_fast.errors import ArchiveError, ImageError, MismatchError, ShazamError
from shazam_fast.images.overview import find_slides, read_overview
from shazam_fast.reporting import canvas
from shazam_fast.reporting.wholeslides import picture
from shazam_fast.reporting.wholeslides.patches import SlidePatches, describe, split_by_slide
from shazam_fast.reporting.wholeslides.picture import CAPTION, EDGE, HEAD, _Frame
from shazam_fast.slides.cohort.curves import SurvivalCurve, SurvivalCurves

pytest.importorskip("tifffile")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Scores of four of the slides of which brown patches decide the class."""
    place = tmp_path_factory.mktemp("wholeslides")
    archive, labels, brown = make_slides(place / "slides")
    options = {"folds": 3, "epochs": 60, "patience": 60, "dim": 16, "batch_size": 4, "lr": 3e-3, "device": "cpu"}
    result = sf.slides.train(archive, labels, **options)
    four = list(labels)[:4]
    sf.slides.score(result.student, sf.open(archive.path, slides=four), place / "scored", device="cpu")
    return place, {name: labels[name] for name in four}, brown


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(picture, "LONG_SIDE", 256)  # a page in full size takes a second


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_every_slide_is_drawn_with_and_without_its_image(place):
    folder, labels, _ = place
    grey = sf.slides.heatmap(folder / "scored", folder / "grey", patch_size=PATCH)
    over = sf.slides.heatmap(folder / "scored", folder / "maps", images=folder / "slides", patch_size=PATCH)
    assert [path.stem for path in grey] == [path.stem for path in over] == list(labels)
    assert pixels(over[0]).shape[1] > pixels(grey[0]).shape[1]  # one panel more: the slide


def test_the_map_is_bright_where_the_attention_is(place):
    folder, labels, brown = place
    scores = sf.slides.open_scores(folder / "scored")
    number = list(labels).index("case-01")
    slide = split_by_slide(scores, PATCH, None)[number]
    spot = brown[number * len(slide.coords) : (number + 1) * len(slide.coords)]
    assert slide.attention[spot].mean() > 5 * slide.attention[~spot].mean()
    assert slide.attention.mean() == pytest.approx(1, abs=1e-4)
    frame = _Frame(slide, None)
    page = pixels(sf.slides.heatmap(folder / "scored", folder / "bright", patch_size=PATCH)[number])
    left, top = (round(inches * canvas.DPI) for inches in (EDGE, EDGE + HEAD + CAPTION))
    map_of = page[top : top + frame.shape[0], left : left + frame.shape[1]]
    yellow = (map_of[..., 0] > 200) & (map_of[..., 2] < 120)
    y, x = (found.mean() for found in np.nonzero(yellow))
    middle = (frame.low[spot].mean(axis=0) + frame.high[spot].mean(axis=0)) / 2
    patch = frame.shape[0] * PATCH / SIDE
    assert abs(x - middle[0]) < 2 * patch
    assert abs(y - middle[1]) < 2 * patch


@pytest.mark.parametrize(("start", "margin"), [(0, 0), (5, 5), (4000, 30)])
def test_margins_are_alike_on_both_sides_and_inside_the_slide(start, margin):
    places = np.array([[start, start], [start + 900, start]], dtype=np.float64)
    frame = _Frame(SlidePatches("s", 0, places, 100.0, np.ones(2), None, 0), None)
    assert frame.corner.tolist() == [start - margin] * 2
    assert frame.extent.tolist() == [1000 + 2 * margin, 100 + 2 * margin]


def test_the_top_patches_are_the_telling_ones(place):
    folder, labels, _ = place
    shown = sf.slides.top_patches(
        folder / "scored", folder / "sheet.png", images=folder / "slides", patch_size=PATCH, count=6, per_slide=3
    )
    of_b = [patch for patch in shown if patch.row_title == "b"]
    assert len(of_b) == 6
    assert {patch.slide for patch in of_b} == {"case-01", "case-03"}
    assert [patch.value for patch in of_b] == sorted((patch.value for patch in of_b), reverse=True)
    for patch in of_b:
        assert labels[patch.slide] == "b"
        image = np.asarray(Image.open(folder / "slides" / f"{patch.slide}.tif"))[patch.y : patch.y + PATCH]
        assert image[:, patch.x : patch.x + PATCH, 2].mean() < 60  # brown: hardly any blue
    assert Image.open(folder / "sheet.png").size[0] > 1000


def test_slides_are_found_by_name(place, tmp_path, caplog):
    folder, labels, _ = place
    names = list(labels)
    assert find_slides(folder / "slides", names).keys() == labels.keys()
    one = folder / "slides" / "case-03.tif"
    assert find_slides(one, names) == {"case-03": one}
    assert find_slides({"case-03.svs": one}, names) == {"case-03": one}
    with pytest.raises(ImageError, match="no image of the slides 'other'; found"):
        find_slides(folder / "slides", ["other"])
    with pytest.raises(ImageError, match="no whole-slide image"):
        find_slides(tmp_path, names)
    with caplog.at_level(logging.WARNING):
        pictures = sf.slides.heatmap(folder / "scored", tmp_path / "maps", images=one, patch_size=PATCH)
    assert len(pictures) == 4
    assert "3 of 4 slides have no image" in caplog.text


def test_an_overview_is_the_slide_made_small(place):
    folder, _, _ = place
    path = folder / "slides" / "case-02.tif"
    whole = np.asarray(Image.open(path)).astype(int)
    found = read_overview(path, (256, 0), (512, 1024), (256, 128)).astype(int)
    wanted = whole[:, 256:768].reshape(256, 4, 128, 4, 3).mean(axis=(1, 3))
    assert np.abs(found - wanted).mean() < 8
    beyond = read_overview(path, (512, 512), (1024, 1024), (64, 64))
    assert (beyond[32:] == 255).all()
    assert (beyond[:, 32:] == 255).all()
    assert (beyond[:32, :32] != 255).any()
    with pytest.raises(MismatchError, match="begin at 4096, 0, but the slide has 1024 x 1024 pixels"):
        read_overview(path, (4096, 0), (64, 64), (8, 8))


def test_geometry_travels_from_the_features_to_the_pictures(tmp_path):
    """TRIDENT's files record the size of patches, so nobody needs to give it."""
    h5py = pytest.importorskip("h5py")
    from shazam_fast.slides.students import SlideConfig, SlideStudent, build_model

    (tmp_path / "job").mkdir()
    with h5py.File(tmp_path / "job" / "s1.h5", "w") as file:
        file["features"] = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
        file["coords"] = np.array([[0, 0], [512, 0], [0, 512]])
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512})
    config = SlideConfig({"uni": 8}, "survival_cox", (), dim=4)
    student = SlideStudent(config, [build_model(config)]).eval()
    archive = sf.open({"uni": tmp_path / "job"})
    sf.slides.score(student, archive, tmp_path / "scored", device="cpu")
    for scores in (sf.slides.open_scores(tmp_path / "scored"), sf.slides.score(student, archive, device="cpu")):
        assert split_by_slide(scores, None, None)[0].size == 512
    assert describe(scores, 0).startswith("risk ")


def test_numbers_and_several_columns_have_rows_of_their_own(place):
    from shazam_fast.reporting.wholeslides.sheet import _rows
    from shazam_fast.slides.scores import SlideScores

    def scores(values, **more):
        n = len(values)
        names = tuple(map(str, range(n)))
        return SlideScores(names, names, np.ones(n, int), (), np.array(values), ("uni",), **more)

    several = scores([[0.9, 0.1, 0.2, 0.8], [0.3, 0.7, 0.6, 0.4]], targets={"A": ("x", "y"), "B": ("p", "q")})
    assert {title: row.tolist() for title, row in _rows(several).items()} == {
        "A: x": [True, False], "A: y": [False, True], "B: p": [False, True], "B: q": [True, False],
    }  # fmt: skip
    numbers = scores([[1.0], [2.0], [3.0], [4.0], [5.0]], targets={"ki67": ()})
    assert {title: np.flatnonzero(row).tolist() for title, row in _rows(numbers).items()} == {
        "ki67: largest": [3, 4], "ki67: smallest": [0, 1],
    }  # fmt: skip
    assert list(_rows(scores([[1.0], [2.0]]))) == ["risk: largest", "risk: smallest"]
    assert describe(several, 1) == "A y 70%, B p 60%"
    assert describe(numbers, 1) == "ki67 2"


def test_pictures_that_cannot_be_drawn(place, tmp_path):
    folder, _, _ = place
    scored = folder / "scored"
    with pytest.raises(MismatchError, match=r"patch_size= \(--patch-size\)"):
        sf.slides.heatmap(scored, tmp_path / "maps")
    with pytest.raises(ArchiveError, match=r"slides.parquet: file not found"):
        sf.slides.heatmap(tmp_path / "nowhere", tmp_path / "maps")
    with pytest.raises(ShazamError, match="it holds features already"):
        sf.slides.heatmap(scored, folder / "slides" / "features", patch_size=PATCH)
    with pytest.raises(ShazamError, match=r"a name that ends in .png, .svg, .pdf expected"):
        sf.slides.top_patches(scored, tmp_path / "sheet.jpg", images=folder / "slides", patch_size=PATCH)
    with pytest.raises(ShazamError, match="count: a whole number from 1"):
        sf.slides.top_patches(scored, tmp_path / "sheet.png", images=folder / "slides", count=0)
    with pytest.raises(ShazamError, match="patch_size"):
        sf.slides.heatmap(scored, tmp_path / "maps", patch_size=-1)


def test_survival_curves_are_drawn(tmp_path):
    low = SurvivalCurve("low risk", 4, 1, [5.0], [0.5], [0.1], [0.8], [2], [1], [2.0, 3.0, 6.0])
    high = SurvivalCurve("high risk", 3, 3, [1.0, 2.0], [0.67, 0.0], [0.2, 0.0], [0.9, 0.0], [3, 2], [1, 2], [])
    assert [low.at_risk_at(time) for time in (0, 2, 2.5, 5, 5.5, 9)] == [4, 4, 3, 2, 1, 0]
    assert [high.at_risk_at(time) for time in (0, 1, 1.5, 3)] == [3, 3, 2, 0]
    path = sf.slides.draw_survival(SurvivalCurves((low, high), 4.2, 0.04), tmp_path / "curves.png", unit="months")
    assert Image.open(path).size[0] > 900
    with pytest.raises(ShazamError, match=r"a name that ends in .png, .svg, .pdf expected"):
        sf.slides.draw_survival(SurvivalCurves((low, high), 4.2, 0.04), tmp_path / "curves.txt")


def test_commands(place, monkeypatch):
    folder, _, _ = place
    monkeypatch.chdir(folder)
    run = call("slides", "heatmap", "scored", "--out", "drawn", "--images", "slides", "--patch-size", "64")
    assert run.returncode == 0, run.stderr
    assert "4 pictures in drawn" in run.stdout
    run = call("slides", "top-patches", "scored", "--images", "slides", "--out", "top.png", "--patch-size", "64")
    assert run.returncode == 0, run.stderr
    assert "8 patches of 4 slides" in run.stdout
    run = call("slides", "heatmap", "slides/features", "--out", "drawn")
    assert "holds features, but scores of slides expected" in run.stderr
