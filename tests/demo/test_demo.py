"""The demo, end to end, as the first command of the README runs it."""

import io
from functools import partial

import pytest
from rich.console import Console

import shazam_fast as sf

pytest.importorskip("skimage", reason="the demo needs scikit-image")
pytest.importorskip("matplotlib", reason="the demo needs matplotlib")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo on a quarter of its patches, which overlap less."""
    from shazam_fast.demo import run

    out = tmp_path_factory.mktemp("demo") / "out"
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "cut_patches", partial(run.cut_patches, stride=16))
        results = run.run_demo(out, Console(file=text, width=120))
    return out, results, text.getvalue()


def test_everything_is_written(demo):
    out, results, text = demo
    assert (out / "demo.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    archive = sf.open(out / "tissue.archive")
    archive.verify()
    assert len(archive.teachers) >= 4
    assert len(set(archive.teachers.values())) >= 4
    again = sf.evaluate(out / "student", archive)
    assert again.to_dict() == results["student"].to_dict()
    assert len(sf.open_scores(out / "scores")) == archive.n_rows
    for method in results:
        assert method in text


def test_every_method_beats_guessing(demo):
    _, results, _ = demo
    assert len(results) == 7
    for method, metrics in results.items():
        assert metrics.balanced_accuracy > 1 / 3 + 0.1, method


def test_directories_of_others_are_left_alone(tmp_path):
    from shazam_fast.demo.run import run_demo

    (tmp_path / "student").mkdir()
    with pytest.raises(sf.ShazamError, match="holds other files; choose a new directory: --out"):
        run_demo(tmp_path, Console(file=io.StringIO()))
    assert (tmp_path / "student").exists()
