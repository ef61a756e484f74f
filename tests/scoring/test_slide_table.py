"""Scores per slide: areas, and metrics of slides."""

import numpy as np
import pyarrow as pa
import pytest
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.scoring import slide_table as module
from shazam_fast.scoring.manifest import ScoresManifest
from shazam_fast.scoring.slide_table import covered_areas


def by_pixels(corners, side, codes, count):
    """The same areas, by painting every pixel of a fine grid."""
    extent = corners.max() + side
    cover = np.zeros((count, extent, extent))
    for (x, y), code in zip(corners, codes, strict=True):
        cover[code, x : x + side, y : y + side] += 1
    return (cover / np.maximum(cover.sum(axis=0), 1)).sum(axis=(1, 2))


@pytest.mark.parametrize("strip", [1, 3, 64])
def test_areas_of_overlapping_squares(monkeypatch, strip):
    monkeypatch.setattr(module, "STRIP", strip)
    rng = np.random.default_rng(0)
    corners, codes = rng.integers(0, 60, (40, 2)), rng.integers(0, 3, 40)
    np.testing.assert_allclose(covered_areas(corners, 9, codes, 3), by_pixels(corners, 9, codes, 3))
    apart = np.stack(np.meshgrid(np.arange(5), np.arange(8)), axis=-1).reshape(-1, 2) * 9
    found = covered_areas(apart, 9, np.arange(40) % 3, 3)
    np.testing.assert_allclose(found, 81 * np.bincount(np.arange(40) % 3))


def make_scores(slides, geometry):
    """Of {slide: [(x, y, class)]} with classes a and b."""
    rows = [(name, *patch) for name, patches in slides.items() for patch in patches]
    names, x, y, code = zip(*rows, strict=True)
    first = np.where(np.array(code) == 0, 0.75, 0.25).astype(np.float32)
    columns = {
        "row": np.arange(len(rows)), "slide": pa.array(names).dictionary_encode(), "x": pa.array(x), "y": pa.array(y),
        "prediction": pa.array(["ab"[c] for c in code]).dictionary_encode(),
        "probability_a": first, "probability_b": 1 - first,
    }  # fmt: skip
    manifest = ScoresManifest(
        classes=["a", "b"], teachers=["uni"], missing_teachers=[], rows=len(rows), forced=False, geometry=geometry
    )
    return sf.Scores(manifest, [pa.table(columns)])


def test_areas_where_the_size_is_known():
    patches = [(0, 0, 0), (1000, 0, 0), (500, 0, 1), (0, 1000, 1)]  # the third overlaps both beside it by half
    geometry = {
        "pixels": sf.Geometry("pixels", 1000, mpp=0.5),
        "micrometres": sf.Geometry("micrometres", 1000),
        "no mpp": sf.Geometry("pixels", 1000),
        "no size": sf.Geometry("pixels", mpp=0.5),
        "no position": sf.Geometry("pixels", 1000, mpp=0.5),
    }
    slides = {name: [(-1, -1, 0)] * 2 if name == "no position" else patches for name in [*geometry, "unheard of"]}
    table = make_scores(slides, geometry).by_slide()
    assert table["area_mm2"].to_pylist() == [pytest.approx(0.75), pytest.approx(3.0), None, None, None, None]
    assert table["area_mm2_a"].to_pylist()[:2] == [pytest.approx(0.375), pytest.approx(1.5)]
    assert table["area_mm2_b"].to_pylist()[:2] == [pytest.approx(0.375), pytest.approx(1.5)]
    assert table["fraction_b"].to_pylist()[0] == 0.5
    assert table["probability_a"].to_pylist()[0] == 0.5


def test_scores_without_slides(trained, tmp_path):
    student, _ = trained
    patches = make_patches()
    archive = sf.write_archive(tmp_path / "bare", patches["features"])
    with pytest.raises(sf.MismatchError, match="no slide names, so there is no table per slide"):
        sf.score(student, archive).by_slide()


@pytest.fixture
def slide_archive(tmp_path):
    """All patches of a slide have one label."""
    patches = make_patches()
    number = np.arange(300) // 25
    patches["labels"] = number % 3
    return sf.open(sf.write_archive(tmp_path / "by-slide", **patches)), patches


def test_metrics_of_slides(slide_archive, trained):
    archive, _ = slide_archive
    student, _ = trained
    metrics = sf.evaluate(student, archive, "test", level="slide")
    scores = sf.score(student, archive, split="test")
    assert metrics.n_rows == len(scores.slides) == 3
    table = scores.by_slide()
    mean = np.stack([table[f"probability_{name}"].to_numpy() for name in archive.classes], axis=1)
    labels = np.array([archive.labels[archive.slide_index == archive.slides.index(s)][0] for s in scores.slides])
    assert metrics.accuracy == (mean.argmax(axis=1) == labels).mean()
    np.testing.assert_allclose(metrics.probabilities, mean, rtol=1e-6)


def test_slides_without_one_label(slide_archive, trained, tmp_path):
    student, mixed = trained
    with pytest.raises(sf.MismatchError, match=r"slide 'slide-009' has patches of .* and .*; level='slide' needs one"):
        sf.evaluate(student, mixed, level="slide")
    _, patches = slide_archive
    del patches["slides"], patches["coords"]
    archive = sf.write_archive(tmp_path / "no-slides", **patches)
    with pytest.raises(sf.MismatchError, match="row 225 is of no slide"):
        sf.evaluate(student, archive, level="slide")
    with pytest.raises(sf.ShazamError, match="level: one of patch, slide expected, found 'patient'"):
        sf.evaluate(student, mixed, level="patient")
