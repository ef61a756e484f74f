"""Pictures of trainings, metrics and comparisons, by `sf.plot` and by the objects' own `.plot()`."""

import numpy as np
import pytest
from synthetic import make_patches

import shazam_fast as sf

pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: report)")


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory):
    archive = sf.open(sf.write_archive(tmp_path_factory.mktemp("plots") / "a", **make_patches(400)))
    return sf.train(archive, epochs=5, dim=16, depth=2, batch_size=32, device="cpu"), archive


def texts(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_metrics(trained_here, tmp_path):
    result, archive = trained_here
    metrics = sf.evaluate(result.student, archive, device="cpu")
    figure = metrics.plot()
    counts = {text.split("\n")[0] for text in texts(figure)}
    assert counts == {f"{n:,}" for n in metrics.confusion.ravel()}
    for kind in ("roc", "precision-recall", "reliability", "confidence"):
        sf.plot(metrics, kind, tmp_path / f"{kind}.png")
    roc = metrics.plot("roc").axes[0]
    assert len(roc.lines) == 1 + 3
    assert roc.get_ylabel() == "sensitivity (recall)"
    (bins,) = metrics.plot("confidence").axes
    assert sum(bar.get_height() for bar in bins.patches) == metrics.n_rows
    points = metrics.plot("reliability").axes[0].collections[0].get_offsets()
    assert np.all((points >= 0) & (points <= 1))


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_files(trained_here, tmp_path, suffix, start):
    result, _ = trained_here
    for name in ("one", "two"):
        result.plot("losses", tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two"))
    assert first.startswith(start)
    assert suffix == "svg" or first == second  # no dates; matplotlib draws the ids of an SVG
    assert len(list(tmp_path.iterdir())) == 2


def test_history(trained_here):
    result, _ = trained_here
    axes = result.plot("validation").axes[0]
    curve = axes.lines[1].get_ydata()
    np.testing.assert_array_equal(curve, [record["val_balanced_accuracy"] for record in result.history])
    assert axes.lines[0].get_xdata()[0] == 5  # the recommended preset keeps the last epoch


def test_comparison(trained_here, tmp_path):
    _, archive = trained_here
    found = sf.compare(archive, ["best_single_balanced", "lr_concat_balanced"], repeats=2, device="cpu")
    figure = found.plot(out=tmp_path / "comparison.svg")
    assert {"best_single_balanced", "lr_concat_balanced"} <= texts(figure)


def test_what_cannot_be_drawn(trained_here, tmp_path):
    result, archive = trained_here
    read = sf.Metrics.from_dict(result.metrics["val"].to_dict())
    assert read.plot().axes
    with pytest.raises(sf.ShazamError, match="read from a file and hold no predictions, which 'roc' needs"):
        read.plot("roc")
    with pytest.raises(sf.ShazamError, match="TrainResult has the kinds losses, validation; found 'roc'"):
        result.plot("roc")
    with pytest.raises(sf.ShazamError, match="found FeatureArchive; heatmap draws scores"):
        sf.plot(archive)
    with pytest.raises(sf.ShazamError, match=r"a name that ends in .png, .svg, .pdf expected"):
        result.plot(out=tmp_path / "a.jpg")
    with pytest.raises(sf.ShazamError, match="cannot be written"):
        result.plot(out=tmp_path / "no" / "a.png")
