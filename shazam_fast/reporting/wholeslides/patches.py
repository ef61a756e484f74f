"""The patches of scored slides in level-0 pixels, with their attention and shares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError
from ...slides.scores import SlideScores, open_scores
from ..slide_scores import level0_scale


@dataclass(frozen=True)
class SlidePatches:
    """The n patches of one slide whose positions are known.

    Args:
        name: the slide.
        bag: number of the slide, or of its patient, among the scores.
        coords: x and y of their upper left corners in level-0 pixels, [n, 2].
        size: side of a patch in level-0 pixels.
        attention: in units of an equal share: 1 is the part that every patch of the slide (or patient) had if all had
            the same, [n].
        shares: share of each teacher, [n, N]; None for models without shares.
        without_position: patches that are left out.
    """

    name: str
    bag: int
    coords: NDArray[np.float64]
    size: float
    attention: NDArray[np.float64]
    shares: NDArray[np.float64] | None
    without_position: int


def read_slide_scores(scores: SlideScores | str | Path) -> SlideScores:
    """The scores with their patches.

    Raises MismatchError when they have none, ArchiveError when they cannot be read.
    """
    found = scores if isinstance(scores, SlideScores) else open_scores(scores)
    if found.patches is None:
        raise MismatchError(
            "these scores come without their patches; give the directory that sf.slides.score(out=...) wrote, or score "
            "without out="
        )
    return found


def split_by_slide(scores: SlideScores, patch_size: float | None, mpp: float | None) -> list[SlidePatches]:
    """The patches of every slide that has positions.

    Args:
        scores: with patches.
        patch_size, mpp: as for `heatmap`.

    Raises MismatchError when no patch has a position, or a slide's patch size or mpp is not known.
    """
    table = scores.patches
    assert table is not None
    bags = np.repeat(np.arange(len(scores)), scores.n_patches)
    column = table["slide"].combine_chunks()
    names, codes = column.dictionary.to_pylist(), column.indices.to_numpy()
    coords = np.stack([table[axis].to_numpy().astype(np.float64) for axis in ("x", "y")], axis=1)
    known = np.isfinite(coords).all(axis=1)
    attention = table["attention"].to_numpy().astype(np.float64) * scores.n_patches[bags]
    columns = [f"share_{name}" for name in scores.teachers]
    shares = None
    if columns[0] in table.column_names:
        shares = np.stack([table[name].to_numpy().astype(np.float64) for name in columns], axis=1)
    found = []
    for code in dict.fromkeys(codes.tolist()):
        rows = np.flatnonzero(codes == code)
        used = rows[known[rows]]
        if len(used):
            scale, size = level0_scale(names[code], scores.geometry.get(names[code]), patch_size, mpp)
            of_rows = None if shares is None else shares[used]
            found.append(
                SlidePatches(
                    names[code], int(bags[used[0]]), coords[used] * scale, size, attention[used], of_rows,
                    len(rows) - len(used),
                )
            )  # fmt: skip
    if not found:
        raise MismatchError("no patch has a position, so nothing can be drawn; score features that have coords")
    return found


def describe(scores: SlideScores, bag: int) -> str:
    """What is predicted for a slide, in words.

    >>> values = np.array([[0.2, 0.8]])
    >>> describe(SlideScores(("s1",), ("p1",), np.array([9]), ("luad", "lusc"), values, ("uni",)), 0)
    'lusc 80%'
    """
    values: list[Any] = scores.values[bag].tolist()
    if scores.classes:
        return f"{scores.classes[int(np.argmax(values))]} {max(values):.0%}"
    if not scores.targets:
        return f"risk {values[0]:.3g}"
    words, start = [], 0
    for column, names in scores.targets.items():
        part = values[start : start + max(len(names), 1)]
        words.append(f"{column} {names[int(np.argmax(part))]} {max(part):.0%}" if names else f"{column} {part[0]:.3g}")
        start += max(len(names), 1)
    return ", ".join(words)
