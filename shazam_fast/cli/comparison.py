"""`shazam-fast compare`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Features, opens_features
from .printing import print_table, say


@opens_features()
def compare(
    features: Features,
    method: Annotated[
        list[str] | None, typer.Option(help="A method; repeat for each. Default: all.", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Number of random splits that keep patients whole.")] = 10,
    own_splits: Annotated[
        bool, typer.Option("--own-splits", help="Use the splits of the features instead of random ones.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.", show_default=False)] = None,
) -> None:
    """Compare fusion methods and baselines on the same splits, with 95% intervals: does fusing help here?"""
    from ..comparison.compare import compare as run
    from ..runtime.files import write_durably
    from ..runtime.locks import require_writable

    if out is not None:
        require_writable(out.absolute().parent)
    found = run(features.open(), method, repeats=repeats, own_splits=own_splits)
    rows = []
    for name, i in sorted(found.balanced_accuracy.items(), key=lambda entry: -entry[1].value):
        numbers = (found.weighted_f1[name].value, found.mean(name, "auroc"))
        accuracy = (f"{i.value:.3f}", f"{i.low:.3f} to {i.high:.3f}")
        rows.append((name, *accuracy, *(f"{n:.3f}" for n in numbers), f"{found.seconds(name):.1f}"))
    headings = ("method", "balanced accuracy", "95% interval", "weighted F1", "AUROC", "seconds")
    print_table(headings, rows, f"{found.repeats} splits of {found.n_rows:,} patches in {found.n_groups:,} groups")
    for name, reason in found.failed.items():
        say(f"{name}: {reason}", "yellow")
    say(found.conclusion())
    if out is not None:
        write_durably(out, json.dumps(found.to_dict(), indent=1).encode())
