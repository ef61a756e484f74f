"""`shazam-fast compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column
from rich.text import Text

from .kinds import require_place_for
from .options import Device, Features, opens_features
from .printing import print_table, say

if TYPE_CHECKING:
    from ..comparison.result import Comparison


# Over 40 lines: every option is documented here.
@opens_features(splits_itself=True)
def compare(
    features: Features,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method; repeat for each. Default: all, or the study's own.", show_default=False),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="Compare settings instead: depth, lambda, leave-one-out, subsets or learning-curve.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(help="Number of random splits that keep patients whole. Default: 10.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits per split, with other seeds, of methods with randomness.")] = 1,
    val: Annotated[float, typer.Option(help="Fraction of the patches for validation.")] = 0.2,
    test: Annotated[float, typer.Option(help="Fraction of the patches for the test.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Random seed of splits, methods and intervals.")] = 0,
    own_splits: Annotated[
        bool, typer.Option("--own-splits", help="Use the splits of the features instead of random ones.")
    ] = False,
    sites: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns slide_id (or patient) and site. A site stays in one split.",
            metavar="CSV",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the result; the same command continues an interrupted one there.", show_default=False
        ),
    ] = None,
) -> None:
    """Compare fusion methods and baselines on the same splits, with 95% intervals: does fusing help here?"""
    from ..comparison.compare import compare as run

    if out is not None:
        require_place_for(out, "comparison")
    found = run(
        features.open(),
        method,
        study=study,
        repeats=repeats,
        seeds=seeds,
        val=val,
        test=test,
        seed=seed,
        own_splits=own_splits,
        sites=sites,
        device=device,
        out=out,
    )
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
    title = f"{found.repeats} splits of {found.n_rows:,} patches in {found.n_groups:,} groups; 95% intervals"
    print_table(headings, rows, title)


def _chosen(found: "Comparison", name: str) -> str:
    """The teachers that a method read most often, where it chose among them."""
    sets = found.teachers_of(name)
    teachers, count = next(iter(sets.items()))
    if len(teachers) == len(found.teachers):
        return "all"
    return " + ".join(teachers) + (f" ({count} of {sum(sets.values())} times)" if len(sets) > 1 else "")
