"""The demo: several teachers describe patches of a real histology image, and a student fuses their features.

Everything goes through the public functions, on files in the output directory, as a user's own data would.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from ..archive.archive import FeatureArchive
from ..archive.opening import open_archive
from ..archive.writer import write_archive
from ..comparison.fold import Fold
from ..comparison.probes import fit_probe
from ..errors import ShazamError
from ..reporting.canvas import new_page
from ..runtime.progress import Progress
from ..scoring.metrics import Metrics, compute_metrics
from ..scoring.score import score
from ..scoring.scores import Scores
from ..student.student import Student
from ..training.train import train
from .figure import draw_figure
from .teachers import extract_demo_features
from .tissue import Patches, Tissue, cut_patches, load_tissue

ARCHIVE, STUDENT, PLAIN_STUDENT = "tissue.archive", "student", "student-without-distillation"
SCORES, FIGURE = "scores", "demo.png"
MARK = "made-by-the-demo.txt"  # only a directory with this file, or an empty one, is written to
# With strong distillation the teachers' tokens, and so their attention shares, become nearly equal: a weak one (the
# paper's for HunCRC) and a shallow student leave differences to see. One small image is an illustration, no evidence.
DEPTH, LAM = 2, 0.05


def run_demo(out: str | Path, console: Console) -> dict[str, Metrics]:
    """Run the demo: archive, two students, scores and picture.

    Args:
        out: directory, new or of an earlier demo, which is replaced.
        console: where progress and results are printed.

    Returns:
        {method: its metrics on the test area}.

    Raises:
        ShazamError: scikit-image or matplotlib is missing, or `out` holds other files.
    """
    out, started = Path(out), time.monotonic()
    tissue = load_tissue()
    new_page(1, 1, "demo")  # matplotlib is there
    _prepare(out)
    patches = cut_patches(tissue)
    console.print(f"{len(patches.labels):,} patches of {patches.size} x {patches.size} pixels cut from one slide")
    archive = _write_features(out / ARCHIVE, patches)
    console.print(f"features of {len(archive.teachers)} teachers: {out / ARCHIVE}")

    results, student = _compare(archive, out)
    _print_results(console, results)
    _draw(out, tissue, patches, score(student, archive, out / SCORES), results["student"].balanced_accuracy)
    console.print(f"students, scores and picture: {out}; open {out / FIGURE}", markup=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} seconds")
    return results


def _compare(archive: FeatureArchive, out: Path) -> tuple[dict[str, Metrics], Student]:
    """Metrics of every method on the test area, and the student trained with distillation."""
    results = {f"{name} alone": _probe(archive, [name]) for name in archive.teachers}
    results["concatenation"] = _probe(archive, list(archive.teachers))
    with Progress("training two students", None, "epochs") as progress:  # one bar, and no line per epoch
        plain, distilled = (
            train(
                archive, out=out / name, preset="unitopatho", depth=DEPTH, lam=lam,
                on_epoch=lambda _: progress.advance(1),
            )
            for name, lam in ((PLAIN_STUDENT, 0.0), (STUDENT, LAM))
        )  # fmt: skip
    results["student, no distillation"] = plain.metrics["test"]
    results["student"] = distilled.metrics["test"]
    return results, distilled.student


def _draw(out: Path, tissue: Tissue, patches: Patches, scores: Scores, accuracy: float) -> None:
    assert scores.shares is not None
    headline = (
        f"Seen: nuclei. Guessed: what a second stain would show (balanced accuracy {accuracy:.0%} on the test area)"
    )
    draw_figure(
        out / FIGURE,
        tissue,
        patches,
        scores.prediction,
        scores.probabilities,
        scores.shares,
        scores.teachers,
        headline,
    )


def _prepare(out: Path) -> None:
    """Make the directory; remove what an earlier demo left, and nothing else."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise ShazamError(f"{out} holds other files; choose a new directory: --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("shazam-fast demo made this directory; running it again replaces what is here.\n")
    for name in (ARCHIVE, STUDENT, PLAIN_STUDENT, SCORES):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / FIGURE).unlink(missing_ok=True)


def _write_features(path: Path, patches: Patches) -> FeatureArchive:
    write_archive(
        path,
        extract_demo_features(patches.pixels),
        labels=patches.labels,
        splits=patches.splits,
        slides=np.full(len(patches.labels), "immunohistochemistry"),
        coords=patches.coords,
        classes=patches.classes,
    )
    return open_archive(path)


def _print_results(console: Console, results: Mapping[str, Metrics]) -> None:
    rows = next(iter(results.values())).n_rows
    table = Table(
        Column("method", no_wrap=True),
        "balanced accuracy",
        "weighted F1",
        "accuracy",
        "AUROC",
        title=f"test area, {rows:,} overlapping patches of one slide, one seed",
        title_justify="left",
        caption="teachers alone and concatenation: logistic regression",
    )
    for name, m in results.items():
        table.add_row(name, *(f"{v:.3f}" for v in (m.balanced_accuracy, m.weighted_f1, m.accuracy, m.auroc)))
    console.print(table)


def _probe(archive: FeatureArchive, teachers: list[str]) -> Metrics:
    """Test metrics of a logistic regression on these teachers' features."""
    found = fit_probe(Fold(archive), teachers).probabilities["test"]
    return compute_metrics(found, archive.labels[archive.split("test")], archive.classes)
