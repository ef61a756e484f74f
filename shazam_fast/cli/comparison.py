"""`shazam-fast compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column
from rich.text import Text

from ..runtime.jobs.foreign import require_place_for
from ..runtime.summaries import counted
from .options import Device, Features, add_options, config_options, opens_features
from .printing import print_table, say
from .words import optional

if TYPE_CHECKING:
    from ..comparison.result import Comparison


STUDIES = ("depth", "lambda", "leave-one-out", "subsets", "learning-curve")  # without an import of NumPy


@dataclass(frozen=True)
class CompareOptions:
    """Options of `shazam_fast.compare`, under the names of its arguments."""

    study: Annotated[
        str | None,
        optional(f"Compare settings instead: {', '.join(STUDIES)}.", words=STUDIES),
    ] = None
    repeats: Annotated[int | None, optional("Number of random splits that keep patients whole. Default: 10.")] = None
    seeds: Annotated[int, typer.Option(help="Fits per split, with other seeds, of methods with randomness.")] = 1
    val: Annotated[float, typer.Option(help="Fraction of the patches for validation.")] = 0.2
    test: Annotated[float, typer.Option(help="Fraction of the patches for the test.")] = 0.2
    seed: Annotated[int, typer.Option(help="Random seed of splits, methods and intervals.")] = 0
    own_splits: Annotated[
        bool, typer.Option("--own-splits", help="Use the splits of the features instead of random ones.")
    ] = False
    sites: Annotated[
        Path | None, optional("CSV with columns slide_id (or patient) and site. A site stays in one split.", "CSV")
    ] = None
    device: Device = None


@opens_features(splits_itself=True)
@add_options(config_options(CompareOptions, {}), "options", dict)
def compare(
    features: Features,
    options: dict[str, Any],
    method: Annotated[
        list[str] | None, optional("A method; repeat for each. Default: all, or the study's own.", "NAME")
    ] = None,
    out: Annotated[
        Path | None, optional("Directory for the result; the same command continues an interrupted one there.")
    ] = None,
) -> None:
    """Compare fusion methods and baselines on the same splits.

    Does fusing help here? Balanced accuracy and weighted F1 with 95% intervals, and one sentence of conclusion.
    """
    from ..comparison.compare import compare as run

    if out is not None:
        require_place_for(out, "comparison")
    found = run(features.open(), method, out=out, **options)
    _print_methods(found)
    for note in found.notes:
        say(note, "yellow")
    for name, reason in found.failed.items():
        say(f"{name} could not run: {reason}", "yellow")
    say(found.conclusion())
    if out is not None:
        say(f"{out}: comparison.json, and one Parquet file per split with all predictions")


def _print_methods(found: "Comparison") -> None:
    """Methods best first, in 80 columns; the settings of a study in their order, with their teachers."""
    names = list(found.balanced_accuracy)
    if not found.study:
        names.sort(key=lambda name: -found.balanced_accuracy[name].value)
    rows = []
    for name in names:
        i, cost = found.balanced_accuracy[name], found.gflops(name)
        row = [
            name, f"{i.value:.3f} ({i.low:.3f}-{i.high:.3f})", f"{found.mean(name, 'weighted_f1'):.3f}",
            f"{found.mean(name, 'auroc'):.3f}", f"{found.seconds(name, 'fit'):.1f}",
        ]  # fmt: skip
        studied = ["not known" if cost is None else f"{cost:,.0f}", _chosen(found, name)]
        rows.append([*row, *studied] if found.study else row)
    headings: list[str | Column] = [
        Column(Text("setting" if found.study else "method"), no_wrap=True, overflow="fold"),
        Column(Text("balanced accuracy"), no_wrap=True), "weighted F1", "AUROC", "fit (s)",
    ]  # fmt: skip
    headings += ["encoders (GFLOPs per patch)", "teachers"] if found.study else []
    splits, patches = counted(found.repeats, "split"), counted(found.n_rows, "patch")
    title = f"{splits} of {patches}, tested on {counted(found.n_groups, 'group')} (patients or slides); 95% intervals"
    print_table(headings, rows, title)


def _chosen(found: "Comparison", name: str) -> str:
    """The teachers that a method read most often, where it chose among them."""
    sets = found.teachers_of(name)
    teachers, count = next(iter(sets.items()))
    if len(teachers) == len(found.teachers):
        return "all"
    return " + ".join(teachers) + (f" ({count} of {sum(sets.values())} times)" if len(sets) > 1 else "")
