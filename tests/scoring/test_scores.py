"""Scores as users read them, from memory and from disk."""

import csv
import sys

import numpy as np
import pytest
from synthetic import CLASSES, TEACHERS

import shazam_fast as sf
from shazam_fast.scoring import engine as scorer
from shazam_fast.scoring import parts as score_parts


@pytest.fixture(params=["memory", "disk"])
def scores(request, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(score_parts, "TILE_ROWS", 16)
    monkeypatch.setattr(scorer, "TILE_ROWS", 16)
    monkeypatch.setattr(score_parts, "PART_BYTES", 1)
    return sf.score(*trained, None if request.param == "memory" else tmp_path / "scores")


def test_reading(scores, trained):
    _, archive = trained
    assert len(list(scores.tables(["row"]))) == 19
    assert (len(scores), scores.classes, scores.teachers) == (300, CLASSES, tuple(TEACHERS))
    table = scores.read(["x", "prediction"])
    assert table.column_names == ["x", "prediction"]
    np.testing.assert_array_equal(table["x"], archive.coords[:, 0])
    np.testing.assert_array_equal(scores.coords, archive.coords)
    np.testing.assert_array_equal(scores.probabilities.argmax(axis=1), scores.prediction)
    assert table["prediction"].to_pylist() == [CLASSES[c] for c in scores.prediction]
    assert "300 patches" in repr(scores)


def test_one_slide(scores, trained):
    _, archive = trained
    assert scores.slides == archive.slides
    table = scores.of_slide("slide-004")  # across two parts
    np.testing.assert_array_equal(table["row"], np.arange(100, 125))
    with pytest.raises(sf.MismatchError, match="no patch of slide 'slide-099'"):
        scores.of_slide("slide-099")


def test_columns_that_are_not_there(scores):
    with pytest.raises(sf.MismatchError, match="no column 'fused'; they have row, slide"):
        _ = scores.fused
    with pytest.raises(sf.MismatchError, match="no column 'share_conch'"):
        scores.read(["row", "share_conch"])


def test_directories_that_hold_no_scores(trained, tmp_path):
    with pytest.raises(sf.ArchiveError, match=r"no scores there: _scores.parquet not found"):
        sf.open_scores(tmp_path)
    sf.score(*trained, tmp_path / "out")
    manifest = tmp_path / "out" / "_scores.parquet"
    content = manifest.read_bytes()
    for damaged in (b"", b"[]", content[:-8] + bytes(8)):
        manifest.write_bytes(damaged)
        with pytest.raises(sf.ArchiveError, match="corrupt"):
            sf.open_scores(tmp_path / "out")
    manifest.write_bytes(content)
    with pytest.raises(sf.ArchiveError, match="holds an archive of features, not scores") as caught:
        sf.open_scores(trained[1].path)
    assert caught.value.kind == "foreign"
    part = tmp_path / "out" / "part-00000.parquet"
    damaged = bytearray(part.read_bytes())
    damaged[-8:] = bytes(8)
    part.write_bytes(damaged)
    with pytest.raises(sf.ArchiveError, match=r"part-00000.parquet: checksum mismatch"):
        sf.open_scores(tmp_path / "out").read()
    part.write_bytes(damaged[:-1])
    with pytest.raises(sf.ArchiveError, match=r"part-00000.parquet: \d+ bytes were written"):
        sf.open_scores(tmp_path / "out")


def test_pandas(scores, trained, monkeypatch):
    pytest.importorskip("pandas")
    frame = scores.to_pandas()
    assert frame["prediction"].tolist() == [CLASSES[c] for c in scores.prediction]
    assert list(scores.to_pandas(["row", "x"]).columns) == ["row", "x"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sf.ShazamError, match=r"scores.to_pandas\(\) needs pandas: pip install pandas"):
        scores.to_pandas()


def test_csv(scores, tmp_path):
    scores.to_csv(tmp_path / "all.csv")
    with open(tmp_path / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == [CLASSES[c] for c in scores.prediction]
    assert [float(row["probability_adenoma"]) for row in rows] == pytest.approx(scores.probabilities[:, 1].tolist())
    assert [row["slide"] for row in rows] == [scores.slides[s] for s in scores.slide_index]
    scores.to_csv(tmp_path / "two.csv", ["row", "slide"])
    assert (tmp_path / "two.csv").read_text().splitlines()[0] == '"row","slide"'
    with pytest.raises(sf.ShazamError, match=r"no/x.csv: cannot be written"):
        scores.to_csv(tmp_path / "no" / "x.csv")
    with pytest.raises(sf.MismatchError, match="no column 'conch'"):
        scores.to_csv(tmp_path / "three.csv", ["conch"])
    assert sorted(path.name for path in tmp_path.glob("*.csv*")) == ["all.csv", "two.csv"]


def test_csv_of_fused_features(trained, tmp_path):
    scores = sf.score(*trained, fused=True)
    scores.to_csv(tmp_path / "all.csv")
    assert "fused" not in (tmp_path / "all.csv").read_text().splitlines()[0]
    with pytest.raises(sf.MismatchError, match="cannot hold the column 'fused'"):
        scores.to_csv(tmp_path / "all.csv", ["row", "fused"])


def test_by_slide(scores):
    table = scores.by_slide()
    assert table["slide"].to_pylist() == list(scores.slides)
    assert table["patches"].to_pylist() == [25] * 12
    for index in (0, 11):
        here = scores.slide_index == index
        mean = scores.probabilities[here].mean(axis=0)
        fraction = (scores.prediction[here][:, None] == np.arange(3)).mean(axis=0)
        for c, name in enumerate(CLASSES):
            assert table[f"probability_{name}"][index].as_py() == pytest.approx(mean[c], rel=1e-5)
            assert table[f"fraction_{name}"][index].as_py() == pytest.approx(fraction[c])
    assert table["area_mm2"].null_count == 12  # no size is recorded


def test_scores_show_themselves(scores):
    assert len(repr(scores)) < 300
    text = scores._repr_html_()
    assert "<td>carcinoma</td>" in text
    assert f"<td>{(scores.prediction == 2).sum()}</td>" in text


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_float16(trained, tmp_path, monkeypatch, place):
    """Half the bytes; values as near as float16 can be, and the manifest says how near; predictions stay."""
    monkeypatch.setattr(score_parts, "TILE_ROWS", 16)
    monkeypatch.setattr(scorer, "TILE_ROWS", 16)
    monkeypatch.setattr(score_parts, "PART_BYTES", 1)
    options = {"influence": True, "fused": True}
    exact = sf.score(*trained, **options)
    given = sf.score(*trained, None if place == "memory" else tmp_path / "half", dtype="float16", **options)
    scores = given if place == "memory" else sf.open_scores(tmp_path / "half")
    np.testing.assert_array_equal(scores.prediction, exact.prediction)
    np.testing.assert_array_equal(scores.fused, exact.fused)
    errors = []
    for name in ("probabilities", "shares", "influence"):
        found, expected = getattr(scores, name), getattr(exact, name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.astype(np.float16))
        errors.append(np.abs(found - expected).max())
    assert (exact.dtype, exact.rounding_error) == ("float32", 0.0)
    assert (scores.dtype, scores.rounding_error) == ("float16", pytest.approx(max(errors), rel=1e-6))
    assert 0 < scores.rounding_error <= 2**-12
    assert scores.row_bytes < exact.row_bytes or place == "disk"
    frame = scores.to_pandas()
    assert frame[f"share_{scores.teachers[0]}"].dtype == np.float32
    scores.to_csv(tmp_path / "scores.csv")
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 301
    np.testing.assert_allclose(
        scores.by_slide()[f"probability_{CLASSES[0]}"], exact.by_slide()[f"probability_{CLASSES[0]}"], atol=2**-12
    )


def test_what_is_stored_as_float16(trained, tmp_path):
    """The files' own types; and another dtype is another job."""
    import pyarrow.parquet as pq

    sf.score(*trained, tmp_path / "half", dtype="float16")
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "half" / "part-00000.parquet")}
    assert types[f"probability_{CLASSES[0]}"] == types[f"share_{next(iter(TEACHERS))}"] == "halffloat"
    with pytest.raises(sf.MismatchError, match="was written with another dtype"):
        sf.score(*trained, tmp_path / "half")
    with pytest.raises(sf.ShazamError, match="dtype: one of float32, float16 expected, found 'bfloat16'"):
        sf.score(*trained, dtype="bfloat16")
