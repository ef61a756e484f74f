"""Scores of whole slides, to look at: a picture of every slide, and polygons for QuPath."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..scoring.scores import Scores

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class SlideScores:
    """Scores of one slide's n patches, squares of `size` level-0 pixels whose upper left corners are `coords` [n, 2].

    `prediction` [n] into `classes`; `probabilities` [n, C]; `shares` [n, N] of `teachers`, or None.
    """

    name: str
    coords: NDArray[np.floating]
    size: int
    prediction: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    shares: NDArray[np.float32] | None
    classes: tuple[str, ...]
    teachers: tuple[str, ...]


def one_slide(scores: Scores, name: str, patch_size: int | None) -> SlideScores:
    """Scores of the slide `name`; see `heatmap` for `patch_size`."""
    table = scores.of_slide(name)
    coords = _stack(table, ["x", "y"])
    if (coords < 0).any():
        unknown = int((coords < 0).any(axis=1).sum())
        raise MismatchError(
            f"slide {name!r}: {unknown} of {len(coords)} patches have no coordinates; "
            "score an archive that was written with coords"
        )
    probabilities = _stack(table, [f"probability_{c}" for c in scores.classes])
    has_shares = f"share_{scores.teachers[0]}" in table.column_names
    return SlideScores(
        name=name,
        coords=coords,
        size=patch_size or _smallest_step(name, coords),
        prediction=probabilities.argmax(axis=1),
        probabilities=probabilities,
        shares=_stack(table, [f"share_{t}" for t in scores.teachers]) if has_shares else None,
        classes=scores.classes,
        teachers=scores.teachers,
    )


def _stack(table: "pa.Table", columns: list[str]) -> NDArray[Any]:
    return np.stack([table[column].to_numpy() for column in columns], axis=1)


def _smallest_step(name: str, coords: NDArray[Any]) -> int:
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    if len(steps) == 0:
        raise MismatchError(f"slide {name!r}: one patch does not tell its size; give patch_size (--patch-size)")
    return max(1, round(float(steps.min())))
