"""Pictures and polygons of slides."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from synthetic import CLASSES, TEACHERS, make_patches

import shazam_fast as sf
from shazam_fast.scoring.manifest import ScoresManifest

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")


def make_scores(coords, slide="slide 1/2", classes=CLASSES, has_shares=True):
    """Patch i is of class i % C with probability 0.8 and leads with teacher i % N."""
    n, C, N = len(coords), len(classes), len(TEACHERS)
    probabilities = np.full((n, C), 0.2 / (C - 1), np.float32)
    shares = np.full((n, N), 0.4 / (N - 1), np.float32)
    probabilities[np.arange(n), np.arange(n) % C] = 0.8
    shares[np.arange(n), np.arange(n) % N] = 0.6
    columns = {"row": np.arange(n), "slide": pa.array([slide] * n).dictionary_encode()}
    columns |= {"x": np.asarray(coords)[:, 0], "y": np.asarray(coords)[:, 1]}
    columns["prediction"] = pa.array([classes[i % C] for i in range(n)]).dictionary_encode()
    columns |= {f"probability_{name}": probabilities[:, i] for i, name in enumerate(classes)}
    if has_shares:
        columns |= {f"share_{name}": shares[:, i] for i, name in enumerate(TEACHERS)}
    manifest = ScoresManifest(
        classes=list(classes), teachers=list(TEACHERS), missing_teachers=[], rows=n, shares=has_shares, forced=False
    )
    return sf.Scores(manifest, [pa.table(columns)])


GRID = [(x * 224 + 1000, y * 224 + 5000) for y in range(3) for x in range(4)]


def test_geojson_is_what_qupath_reads(tmp_path):
    (picture,) = sf.heatmap(make_scores(GRID), tmp_path)
    assert picture.name == "slide 1%2F2.png"
    content = json.loads((tmp_path / "slide 1%2F2.geojson").read_text())
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
    assert properties["measurements"]["weight: virchow"] == 0.6
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".geojson", ".png"]


def test_pictures_show_every_patch_in_its_colour(tmp_path):
    picture = np.asarray(Image.open(sf.heatmap(make_scores(GRID), tmp_path)[0]))
    blue = (picture == [0x00, 0x72, 0xB2]).all(axis=2)  # of the first class: patches 0, 3, 6 and 9, and the legend
    teal = (picture == [0x44, 0xAA, 0x99]).all(axis=2)  # of the first teacher, far right
    assert 4 * 274**2 < blue.sum() < 4 * 277**2
    assert 4 * 274**2 < teal.sum() < 4 * 277**2
    assert np.flatnonzero(teal.any(axis=0)).min() > np.flatnonzero(blue.any(axis=0)).max()
    bare = np.asarray(Image.open(sf.heatmap(make_scores(GRID, has_shares=False), tmp_path / "b")[0]))
    assert bare.shape[1] < picture.shape[1] - 1000, "without shares there is no third panel"


def test_a_patch_size_of_ones_own_and_many_classes(tmp_path):
    classes = tuple(f"class {i}" for i in range(12))
    sf.heatmap(make_scores([(0, 0), (1000, 0)], classes=classes), tmp_path, patch_size=512)
    feature = json.loads(next(tmp_path.glob("*.geojson")).read_text())["features"][1]
    assert feature["geometry"]["coordinates"][0][2] == [1512, 512]
    with pytest.raises(sf.ShazamError, match="at least 1 pixel expected, found 0"):
        sf.heatmap(make_scores(GRID), tmp_path, patch_size=0)


def test_scores_of_a_whole_archive(trained, tmp_path):
    student, archive = trained
    scores = sf.score(student, archive, tmp_path / "scores")
    pictures = sf.heatmap(tmp_path / "scores", tmp_path / "maps")
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
    with pytest.raises(sf.MismatchError, match="slide 'slide-000': 25 of 25 patches have no coordinates"):
        sf.heatmap(nowhere, tmp_path / "maps")
    with pytest.raises(sf.MismatchError, match="its patches are of no slide"):
        sf.heatmap(sf.score(student, sf.write_archive(tmp_path / "b", patches["features"])), tmp_path / "maps")
    with pytest.raises(sf.MismatchError, match="one patch does not tell its size; give patch_size"):
        sf.heatmap(make_scores(GRID[:1]), tmp_path / "maps")
    (tmp_path / "file").write_text("")
    with pytest.raises(sf.ShazamError, match="could not be written"):
        sf.heatmap(make_scores(GRID), tmp_path / "file" / "maps")
    monkeypatch.delitem(sys.modules, "shazam_fast.reporting.slide_picture", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(sf.ShazamError, match=r"pip install 'shazam_fast\[heatmap\]'"):
        sf.heatmap(make_scores(GRID), tmp_path / "maps")
