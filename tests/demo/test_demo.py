"""The demo, end to end, as the first command of the README runs it, with fewer methods and splits."""

import io
import sys

import numpy as np
import pytest
from rich.console import Console

import shazam_fast as sf

pytest.importorskip("skimage", reason="the demo needs scikit-image")
pytest.importorskip("matplotlib", reason="the demo needs matplotlib")

from shazam_fast.demo import run
from shazam_fast.demo.figure import _mean_scores
from shazam_fast.demo.tissue import cut_patches, load_tissue

METHODS = ("best_single_balanced", "lr_concat_balanced", "shazam")


def few_patches(tissue):
    return cut_patches(tissue, stride=27)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "METHODS", METHODS)
        patch.setattr(run, "REPEATS", 2)
        patch.setattr(run, "cut_patches", few_patches)
        found = run.run_demo(out, Console(file=text, width=120))
    return out, found, text.getvalue()


def test_everything_is_written(demo):
    out, found, text = demo
    archive = sf.open(out / "tissue.archive")
    archive.verify()
    assert len(set(archive.teachers.values())) == len(archive.teachers) == 4
    assert sf.evaluate(out / "student", archive).n_rows == len(archive.split("test"))
    assert sf.open_comparison(out / "comparison").balanced_accuracy == found.balanced_accuracy
    assert found.conclusion() in text.replace("\n", " ")
    assert all(method in text for method in METHODS)


def test_the_picture_is_small_and_of_the_promised_width(demo):
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib")
    picture = demo[0] / "demo.png"
    assert 100_000 < picture.stat().st_size < 600_000
    with image.open(picture) as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    assert pixels.shape[1] == 1686
    assert (pixels[:, -12:] == 255).all()  # nothing runs over the right edge


def test_every_method_beats_guessing(demo):
    assert all(found.value > 1 / 3 + 0.1 for found in demo[1].balanced_accuracy.values())


def test_no_area_is_trained_on_and_tested(demo):
    """What is drawn of a patch comes from the splits in which its area was a test area, and from no other."""
    patches = few_patches(load_tissue())
    cells = [cell for cell in demo[1].cells if cell.method == "shazam"]
    drawn = _mean_scores(cells, patches, demo[1].teachers, "s")
    tested = np.unique(np.concatenate([cell.rows for cell in cells]))
    np.testing.assert_array_equal(drawn.coords, patches.coords[tested])
    np.testing.assert_allclose(drawn.probabilities.sum(axis=1), 1, rtol=1e-5)
    for cell in cells:
        whole = np.isin(patches.areas, patches.areas[cell.rows])
        np.testing.assert_array_equal(np.flatnonzero(whole), np.sort(cell.rows))


def test_every_area_is_tested_in_some_split(tmp_path):
    from shazam_fast.comparison.splitting import random_splits

    patches = cut_patches(load_tissue())
    groups = [f"area {area}" for area in patches.areas]
    ones = {"a": np.ones((len(groups), 1))}
    archive = sf.open(sf.write_archive(tmp_path / "a", ones, labels=patches.labels, groups=groups))
    splits = np.stack(random_splits(archive, run.REPEATS, run.VAL, run.TEST, 0, None))
    assert (splits == 2).any(axis=0).all()


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(sf.ShazamError, match=r"pip install 'shazam_fast\[demo\]'"):
        run.run_demo(tmp_path / "out", Console(file=io.StringIO()))


def test_directories_of_others_are_left_alone(tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(sf.ShazamError, match="holds other files; choose a new directory: --out"):
        run.run_demo(tmp_path, Console(file=io.StringIO()))
    assert (tmp_path / "student").exists()
