"""Pictures and polygons of slides."""

import json
import logging
import pkgutil
import sys

import numpy as np
import pytest
from scored import GRID, colours_of, make_scores, recorded
from synthetic import CLASSES, make_patches

import shazam_fast as sf
from shazam_fast.reporting.painting import paint
from shazam_fast.reporting.slide_files import LONGEST, file_stems
from shazam_fast.reporting.slide_scores import LONG_SIDE, SlideScores, frame_slide

image = pytest.importorskip("matplotlib.image", reason="pictures need matplotlib (extra: heatmap)")


def squares(folder):
    """{file: ([x, y] of the first patch, its side)} of the GeoJSON files."""
    found = {}
    for file in folder.glob("*.geojson"):
        (x, y), (right, _), *_ = json.loads(file.read_text())["features"][0]["geometry"]["coordinates"][0]
        found[file.stem] = ([x, y], right - x)
    return found


@pytest.mark.usefixtures("small_maps")
def test_geojson_is_what_qupath_reads(tmp_path):
    (picture,) = sf.heatmap(make_scores({"slide 1": GRID}), tmp_path, patch_size=224)
    assert picture.name == "slide 1.png"
    content = json.loads((tmp_path / "slide 1.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == 12
    feature = content["features"][5]
    assert feature["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[1224, 5224], [1448, 5224], [1448, 5448], [1224, 5448], [1224, 5224]]],
    }
    properties = feature["properties"]
    assert properties["objectType"] == "tile"
    assert properties["classification"] == {"name": CLASSES[2], "color": [0x00, 0x9E, 0x73]}
    assert properties["measurements"]["probability: carcinoma"] == 0.8
    assert properties["measurements"]["share: virchow"] == 0.6
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".geojson", ".png"]


def test_pictures_show_every_patch_in_its_colour(tmp_path):
    picture = colours_of(sf.heatmap(make_scores({"s": GRID}), tmp_path, patch_size=224)[0])
    blue = (picture == [0x00, 0x72, 0xB2]).all(axis=2)  # of the first class: patches 0, 3, 6 and 9, and the legend
    teal = (picture == [0x44, 0xAA, 0x99]).all(axis=2)  # of the first teacher, far right
    side = LONG_SIDE // 4
    for drawn in (blue, teal):
        assert 4 * (side - 1) ** 2 < drawn.sum() < 4 * (side + 2) ** 2
    assert np.flatnonzero(teal.any(axis=0)).min() > np.flatnonzero(blue.any(axis=0)).max()
    bare = colours_of(sf.heatmap(make_scores({"s": GRID}, shares=False), tmp_path / "b", patch_size=224)[0])
    assert bare.shape[1] < picture.shape[1] - 800, "without shares there is no third panel"


def test_many_classes(tmp_path):
    classes = tuple(f"class ${i}$" for i in range(40))  # "$" is no mathematics
    scores = make_scores({"s": [(i * 100, 0) for i in range(40)]}, classes=classes)
    picture = colours_of(sf.heatmap(scores, tmp_path, patch_size=100)[0])
    assert picture.shape[0] < 1500, "a legend has at most 16 lines"


@pytest.mark.usefixtures("small_maps")
def test_sizes_come_from_the_files_slide_by_slide(tmp_path):
    """Neither the distance of neighbours nor one size for all: two lattices, a slide of one patch."""
    two_lattices = [*GRID, *((x + 8003, y + 11) for x, y in GRID)]
    slides = {"clam": two_lattices, "20x": GRID, "one patch": GRID[:1]}
    geometry = {"clam": recorded(256), "20x": recorded(224.0), "one patch": recorded(512)}
    assert len(sf.heatmap(make_scores(slides, geometry=geometry), tmp_path)) == 3
    assert squares(tmp_path) == {
        "clam": ([1000, 5000], 256),
        "20x": ([1000, 5000], 224),
        "one patch": ([1000, 5000], 512),
    }


@pytest.mark.usefixtures("small_maps")
def test_micrometres_become_pixels(tmp_path):
    slides = {"s": [(0, 0), (112, 0)][::-1]}
    with pytest.raises(sf.MismatchError, match=r"slide 's': its positions are in micrometres .*mpp= \(--mpp\)"):
        sf.heatmap(make_scores(slides, geometry={"s": recorded(112, "micrometres")}), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    sf.heatmap(make_scores(slides, geometry={"s": recorded(112, "micrometres", 0.5)}), tmp_path / "b")
    assert squares(tmp_path / "b") == {"s": ([224, 0], 224)}
    sf.heatmap(make_scores(slides, geometry={"s": recorded(112, "micrometres")}), tmp_path / "c", mpp=0.25)
    assert squares(tmp_path / "c") == {"s": ([448, 0], 448)}
    sf.heatmap(make_scores(slides, geometry={"s": recorded(None, "micrometres", 0.5)}), tmp_path / "d", patch_size=200)
    assert squares(tmp_path / "d") == {"s": ([224, 0], 200)}


@pytest.mark.usefixtures("small_maps")
def test_an_unknown_size_is_asked_for(tmp_path):
    with pytest.raises(sf.MismatchError, match=r"slide 's': .*size of its patches; .*patch_size= \(--patch-size\)"):
        sf.heatmap(make_scores({"s": GRID}), tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
    sf.heatmap(make_scores({"s": GRID}), tmp_path, patch_size=300)
    assert squares(tmp_path) == {"s": ([1000, 5000], 300)}


@pytest.mark.usefixtures("small_maps")
def test_a_size_that_replaces_a_recorded_one_is_said(tmp_path, caplog):
    sf.heatmap(make_scores({"s": GRID}, geometry={"s": recorded(224)}), tmp_path, patch_size=300)
    assert caplog.messages == ["patch_size 300 replaces the recorded size of 1 slides ('s': 224)"]
    assert squares(tmp_path) == {"s": ([1000, 5000], 300)}


@pytest.mark.usefixtures("small_maps")
def test_slides_without_positions_are_passed_over(tmp_path, caplog):
    slides = {"none": [(-1, -1)] * 3, "some": [*GRID, (-1, -1)], "other none": [(-1, -1)], "all": GRID}
    with caplog.at_level(logging.WARNING):
        pictures = sf.heatmap(make_scores(slides), tmp_path, patch_size=224)
    assert [p.stem for p in pictures] == ["some", "all"]
    assert caplog.messages == [
        "slide 'some': left out 1 patch without position",
        "2 of 4 slides have no positions and are not drawn, 'none' first",
    ]
    assert len(json.loads((tmp_path / "some.geojson").read_text())["features"]) == len(GRID)


def test_overlapping_patches_are_averaged():
    coords = np.array([[0.0, 0.0], [1.0, 0.0]])
    slide = SlideScores(
        "s", coords, 2.0, np.array([0, 1]), np.array([[0.9, 0.1], [0.3, 0.7]], np.float32), None, ("a", "b"), ()
    )
    frame = frame_slide(slide)
    low, high = frame.corners(slide)
    painted = paint(low, high, slide.probabilities, frame.shape)
    thirds = painted[frame.shape[0] // 2, [10, frame.shape[1] // 2, frame.shape[1] - 10], 0]
    np.testing.assert_allclose(thirds, [0.9, 0.6, 0.3], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["Pr\u00e4parat 1", "\u75c5" * 35, "TCGA-A1-A0SB-01Z (1), +@", "slide.with.dots", "\u0645\u0631\u064a\u0636"],
)
def test_names_that_are_file_names_are_kept(name):
    assert file_stems([name]) == {name: name}


@pytest.mark.parametrize(
    "name", [".", "..", "/", "a/b", "../x", "a\\b", "", " ", "a\0b", "\n", ".hidden", "\ud800", "x" * 300]
)
def test_other_names_stay_inside_the_directory(tmp_path, name):
    stem = file_stems([name])[name]
    file = tmp_path / "maps" / f"{stem}.geojson"
    assert file.resolve().parent == tmp_path / "maps"
    assert not stem.startswith(".")
    assert len(stem.encode()) <= LONGEST + 11
    file.parent.mkdir()
    file.write_text("")


def test_no_two_slides_share_a_file():
    names = [
        "a/b",
        "a\\b",
        "a_b",
        "A_b",
        "x" * 300,
        "x" * 301,
        "e\u0301",
        "\u00e9",
        ".",
        "..",
        "...",
        "STRASSE",
        "stra\u00dfe",
    ]
    names += list(file_stems(["a/b", "."]).values())  # a slide that is called like another one's file
    stems = file_stems(names)
    assert len({stem.casefold() for stem in stems.values()}) == len(names)
    assert file_stems(names) == stems


@pytest.mark.usefixtures("small_maps")
def test_odd_names_are_drawn(tmp_path):
    """Names of slides in other scripts or longer than the page; "." and ".." stay in the directory."""
    names = [".", "..", "\u75c5\u7406" * 60, "$x$ " * 80, "$\\x{$", "a/b"]
    pictures = sf.heatmap(make_scores(dict.fromkeys(names, GRID)), tmp_path / "maps", patch_size=224)
    assert len(set(pictures)) == len(names)
    assert all(path.is_file() and path.parent == tmp_path / "maps" for path in pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


@pytest.mark.usefixtures("small_maps")
def test_scores_of_a_whole_archive(trained, tmp_path):
    student, archive = trained
    scores = sf.score(student, archive, tmp_path / "scores")
    pictures = sf.heatmap(tmp_path / "scores", tmp_path / "maps", patch_size=256)
    assert [p.stem for p in pictures] == list(archive.slides)
    content = json.loads((tmp_path / "maps" / "slide-003.geojson").read_text())
    corners = [f["geometry"]["coordinates"][0][0] for f in content["features"]]
    assert corners == archive.coords[75:100].tolist()
    names = [f["properties"]["classification"]["name"] for f in content["features"]]
    assert names == [CLASSES[c] for c in scores.prediction[75:100]]


def test_what_cannot_be_drawn(trained, tmp_path, monkeypatch):
    student, _ = trained
    patches = make_patches(rows=30)
    nowhere = sf.score(student, sf.write_archive(tmp_path / "a", **{**patches, "coords": None}))
    with pytest.raises(sf.MismatchError, match="no patch has a position"):
        sf.heatmap(nowhere, tmp_path / "maps", patch_size=256)
    with pytest.raises(sf.MismatchError, match="these scores have no slide names"):
        sf.heatmap(sf.score(student, sf.write_archive(tmp_path / "b", patches["features"])), tmp_path / "maps")
    for name in ("patch_size", "mpp"):
        for value in (0, -1, float("nan"), float("inf"), "256", True):
            with pytest.raises(sf.ShazamError, match=f"{name}: a number more than 0 expected, found"):
                sf.heatmap(make_scores({"s": GRID}), tmp_path, **{name: value})
    (tmp_path / "file").write_text("")
    with pytest.raises(sf.ShazamError, match="is a file; choose another --out"):
        sf.heatmap(make_scores({"s": GRID}), tmp_path / "file" / "maps", patch_size=224)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(sf.ShazamError, match=r"pip install 'shazam_fast\[heatmap\]'"):
        sf.heatmap(make_scores({"s": GRID}), tmp_path / "maps", patch_size=224)
    assert not (tmp_path / "maps").exists()


def test_directories_that_hold_something_else(trained, tmp_path):
    student, archive = trained
    student.save(tmp_path / "student")
    scores = sf.score(student, archive, tmp_path / "scores")
    sf.write_archive(tmp_path / "archive", **make_patches(rows=30))
    files = {"begun": "_job.json", "compared": "comparison.json", "tuned": "finetuned.json", "chosen": "selection.json"}
    for name, file in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
    for name in ("student", "scores", "archive", *files):
        before = sorted((tmp_path / name).iterdir())
        with pytest.raises(sf.ShazamError, match=rf"{name}: it holds .* already; choose another --out"):
            sf.heatmap(scores, tmp_path / name, patch_size=256)
        assert sorted((tmp_path / name).iterdir()) == before


@pytest.mark.usefixtures("small_maps")
def test_patches_at_one_position_are_said(tmp_path, caplog):
    sf.heatmap(make_scores({"s": [(256, 0)] * 4, "t": GRID}), tmp_path, patch_size=256)
    assert "slide 's': 3 of 4 patches lie at the position of another one, the first at (256, 0)" in caplog.text
    assert "'t'" not in caplog.text


@pytest.mark.usefixtures("small_maps")
def test_negative_positions_are_positions(tmp_path, caplog):
    sf.heatmap(make_scores({"s": [(-224, -1), (0, -1), (-1, -1)]}), tmp_path, patch_size=224)
    content = json.loads((tmp_path / "s.geojson").read_text())
    corners = [f["geometry"]["coordinates"][0][0] for f in content["features"]]
    assert corners == [[-224, -1], [0, -1]]
    assert "left out 1 patch without position" in caplog.text, "-1, -1 means unknown"


def test_no_module_hides_a_public_function():
    modules = {module.name for module in pkgutil.iter_modules(sf.__path__)}
    assert modules & set(sf.__all__) == {"slides"}, "slides is public itself"
    import shazam_fast.reporting.heatmaps as _  # noqa: F401 - importing it must not replace the function

    assert callable(sf.heatmap)


@pytest.mark.usefixtures("small_maps")
def test_options_that_are_not_used_are_said(tmp_path, caplog):
    slides = {"s": [(0, 0), (112, 0)], "t": GRID}
    geometry = {"s": recorded(112, "micrometres", 0.5), "t": recorded(224)}
    scores = make_scores(slides, geometry=geometry)
    sf.heatmap(scores, tmp_path, mpp=0.5)
    assert caplog.messages == [
        "mpp 0.5 is not used for 1 slides ('t' first): their positions are in pixels, or their files record it"
    ]
    caplog.clear()
    sf.heatmap(scores, tmp_path, mpp=0.25, patch_size=200)
    assert caplog.messages == [
        "patch_size 200 replaces the recorded size of 2 slides ('s': 224)",
        "mpp 0.25 is not used for 2 slides ('s' first): their positions are in pixels, or their files record it",
    ]
