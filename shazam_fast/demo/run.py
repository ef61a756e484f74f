"""The demo: several teachers describe patches of a real histology image. Does fusing their features help?

Everything goes through the public functions, on files in the output directory, as a user's own data would.
"""

import shutil
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from ..annotation.splits import GroupedSplit
from ..archive.writer import write_archive
from ..comparison.compare import compare
from ..comparison.result import Comparison
from ..errors import ShazamError
from ..formats.geometry import Geometry
from ..reporting.canvas import new_page
from ..runtime.progress import Progress
from ..training.train import train
from .figure import draw_figure
from .teachers import extract_demo_features
from .tissue import CLASSES, Patches, Tissue, cut_patches, load_tissue

ARCHIVE, COMPARISON, STUDENT, FIGURE = "tissue.archive", "comparison", "student", "demo.png"
SLIDE = "colon glands"
MARK = "made-by-the-demo.txt"  # only a directory with this file, or an empty one, is written to
METHODS = (
    "best_single_balanced", "lr_concat_balanced", "lr_concat_scaled_balanced", "mean_probability", "logit_product",
    "stacking", "knn", "sum", "shazam",
)  # fmt: skip
REPEATS = 8  # splits
VAL, TEST = 0.15, 0.3  # of the areas; with these shares every area is tested in one of the splits


def run_demo(out: str | Path, console: Console) -> Comparison:
    """Run the demo: archive, comparison, student and picture.

    Args:
        out: directory, new or of an earlier demo, which is replaced.
        console: where progress and results are printed.

    Returns:
        The comparison of fusion methods.

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
    console.print(f"features of four teachers: {archive}", markup=False, soft_wrap=True)

    found = compare(archive, METHODS, repeats=REPEATS, val=VAL, test=TEST, out=out / COMPARISON)
    _print_results(console, found)
    with Progress("training a student", None, "epochs") as progress:  # one bar, and no line per epoch
        train(archive, out=out / STUDENT, on_epoch=lambda _: progress.advance(1))
    draw_figure(out / FIGURE, tissue, patches, _write_slide(out, tissue), found)
    console.print(found.conclusion(), markup=False, soft_wrap=True)
    console.print("One image, whose areas resemble one another: an illustration, no evidence.")
    console.print(f"comparison, a student and picture: {out}; open {out / FIGURE}", markup=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} seconds")
    return found


def _prepare(out: Path) -> None:
    """Make the directory; remove what an earlier demo left, and nothing else."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise ShazamError(f"{out} holds other files; choose a new directory: --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("shazam-fast demo made this directory; running it again replaces what is here.\n")
    for name in (ARCHIVE, COMPARISON, STUDENT):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / FIGURE).unlink(missing_ok=True)


def _write_features(path: Path, patches: Patches) -> Path:
    return write_archive(
        path,
        extract_demo_features(patches.pixels),
        labels=patches.labels,
        splits=GroupedSplit(VAL, TEST).assign(patches.labels, patches.areas),
        groups=[f"area {area}" for area in patches.areas.tolist()],
        slides=[SLIDE] * len(patches.labels),
        coords=patches.coords,
        classes=CLASSES,
        geometry={SLIDE: Geometry("pixels", patches.size)},
    )


def _write_slide(out: Path, tissue: Tissue) -> Path:
    """What the teachers see, as an image: hematoxylin in its colour, white where there is none."""
    from matplotlib import colormaps
    from PIL import Image

    path = out / f"{SLIDE}.png"
    stain = (tissue.hematoxylin / np.quantile(tissue.hematoxylin, 0.998)).clip(0, 1)
    Image.fromarray((255 * colormaps["Purples"](stain)[..., :3]).round().astype(np.uint8)).save(path)
    return path


def _print_results(console: Console, found: Comparison) -> None:
    table = Table(
        Column("method", no_wrap=True),
        "balanced accuracy",
        "weighted F1",
        "AUROC",
        title=f"{found.repeats} splits of {found.n_groups} areas of one slide; 95% intervals",
        title_justify="left",
    )
    for name, i in sorted(found.balanced_accuracy.items(), key=lambda entry: -entry[1].value):
        means = (f"{found.mean(name, metric):.3f}" for metric in ("weighted_f1", "auroc"))
        table.add_row(name, f"{i.value:.3f} ({i.low:.3f}-{i.high:.3f})", *means)
    console.print(table)
