"""The scores of one slide in level-0 pixels, which pictures and QuPath use."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..formats.geometry import Geometry
from ..scoring.scores import Scores
from ..scoring.slide_table import covered_areas

if TYPE_CHECKING:
    import pyarrow as pa

LONG_SIDE = 900  # pixels of the longer side of a map
MOST_SUMMED = 4  # classes in the summary


@dataclass(frozen=True)
class SlideScores:
    """Scores of the n patches of one slide.

    Args:
        name: the slide.
        coords: x and y of the patches' upper left corners in level-0 pixels. [n, 2].
        size: side of a patch in level-0 pixels.
        prediction: index into `classes`. [n].
        probabilities: [n, C].
        shares: attention share of each teacher, [n, N]; None for students that have none.
        classes, teachers: names.
        influence: of each of `influence_teachers`, [n, E]; None where the scores have none.
        influence_teachers: names.
        mpp: micrometres per level-0 pixel; None where it is not known.
        without_position: patches of the slide that are left out because their position is unknown.
    """

    name: str
    coords: NDArray[np.floating[Any]]
    size: float
    prediction: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    shares: NDArray[np.float32] | None
    classes: tuple[str, ...]
    teachers: tuple[str, ...]
    without_position: int = 0
    influence: NDArray[np.float32] | None = None
    influence_teachers: tuple[str, ...] = ()
    mpp: float | None = None

    @property
    def n_repeated(self) -> int:
        """How many patches lie at the position of another one before them."""
        return len(self.coords) - len(np.unique(self.coords, axis=0))


@dataclass(frozen=True)
class Frame:
    """The part of a slide that a map shows.

    Args:
        origin: upper left corner in level-0 pixels, x and y.
        scale: pixels of the map per level-0 pixel.
        shape: height and width of the map in pixels.
    """

    origin: NDArray[np.floating[Any]]
    scale: float
    shape: tuple[int, int]

    def corners(self, slide: SlideScores) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corners of the patches in pixels of the map: upper left, and lower right (not included). [n, 2] each."""
        place = (slide.coords - self.origin) * self.scale
        low = np.floor(place + 1e-6).astype(np.int64)
        high = np.maximum(low + 1, np.ceil(place + slide.size * self.scale - 1e-6).astype(np.int64))
        return low, np.minimum(high, self.shape[::-1])


def frame_slide(slide: SlideScores, margin: float = 0.0) -> Frame:
    """The part of a slide that has patches, with a margin that is a fraction of its longer side."""
    origin = slide.coords.min(axis=0)
    extent = slide.coords.max(axis=0) - origin + slide.size
    more = margin * extent.max()
    origin, extent = origin - more, extent + 2 * more
    whole = max(1, int(LONG_SIDE * slide.size / extent.max()))  # a patch is a whole number of pixels if it can be
    scale = float(min(whole / slide.size, LONG_SIDE / extent.max()))
    width, height = np.maximum(1, np.ceil(extent * scale - 1e-6)).astype(int).tolist()
    return Frame(origin, scale, (height, width))


def summarise_slide(slide: SlideScores) -> str:
    """Area of each predicted class, the largest first: in percent of the patches' area, and mm2 where mpp is known."""
    areas = covered_areas(slide.coords, slide.size, slide.prediction, len(slide.classes))
    total = areas.sum()
    order = [code for code in np.argsort(-areas, kind="stable").tolist() if areas[code] > 0]
    parts = []
    for place, code in enumerate(order[:MOST_SUMMED]):
        size = f", {areas[code] * (slide.mpp / 1000) ** 2:,.3g} mm\u00b2" if slide.mpp else ""
        parts.append(f"{slide.classes[code]} {areas[code] / total:.0%}{' of tissue' * (place == 0)}{size}")
    rest = len(order) - MOST_SUMMED
    return "; ".join(parts) + (f"; {rest} more classes" if rest > 0 else "")


def one_slide(scores: Scores, name: str, patch_size: float | None, mpp: float | None) -> SlideScores | None:
    """Read the scores of one slide, with positions in level-0 pixels.

    Args:
        scores: of all slides.
        name: the slide.
        patch_size: side of a patch in level-0 pixels; None takes what the features' files record.
        mpp: micrometres per level-0 pixel, for positions in micrometres whose files do not tell it.

    Returns the scores, or None when no patch of the slide has a position.

    Raises MismatchError when there is no such slide, or its patch size or mpp is not known.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = scores.of_slide(name)
    coords = _stack(table, ["x", "y"]).astype(np.float64)
    known = np.isfinite(coords).all(axis=1) & (coords != -1).any(axis=1)  # version 0.1 wrote -1, -1 for unknown
    if not known.any():
        return None
    scale, size = level0_scale(name, scores.geometry.get(name), patch_size, mpp)
    predicted = pc.index_in(table["prediction"].cast(pa.string()), value_set=pa.array(scores.classes)).to_numpy()
    probabilities = _stack(table, [f"probability_{c}" for c in scores.classes])[known]
    has_shares = f"share_{scores.teachers[0]}" in table.column_names
    columns = [f"influence_{t}" for t in scores.influence_teachers]
    return SlideScores(
        name=name,
        coords=coords[known] * scale,
        size=size,
        prediction=predicted[known].astype(np.int64),
        probabilities=probabilities,
        shares=_stack(table, [f"share_{t}" for t in scores.teachers])[known] if has_shares else None,
        classes=scores.classes,
        teachers=scores.teachers,
        without_position=int((~known).sum()),
        influence=_stack(table, columns)[known] if columns else None,
        influence_teachers=scores.influence_teachers,
        mpp=getattr(scores.geometry.get(name), "mpp", None) or mpp,
    )


def level0_scale(
    name: str, geometry: Geometry | None, patch_size: float | None, mpp: float | None
) -> tuple[float, float]:
    """Level-0 pixels per unit of a slide's positions, and the side of its patches in level-0 pixels.

    Args:
        name: the slide.
        geometry: what its features' file records.
        patch_size, mpp: as for `one_slide`.

    Raises MismatchError when the patch size or mpp is not known.

    >>> level0_scale("s1", Geometry("micrometres", patch_size=128.0, mpp=0.25), None, None)
    (4.0, 512.0)
    """
    scale = 1.0
    if geometry is not None and geometry.unit == "micrometres":
        mpp = geometry.mpp or mpp
        if mpp is None:
            raise MismatchError(
                f"slide {name!r}: its positions are in micrometres and pictures are in level-0 pixels; "
                "give the slide's micrometres per pixel: mpp= (--mpp)"
            )
        scale = 1.0 / mpp
    if patch_size is not None:
        return scale, patch_size
    if geometry is None or geometry.patch_size is None:
        raise MismatchError(
            f"slide {name!r}: the features' files do not tell the size of its patches; "
            "give their side in level-0 pixels: patch_size= (--patch-size)"
        )
    return scale, geometry.patch_size * scale


def _stack(table: "pa.Table", columns: list[str]) -> NDArray[Any]:
    return np.stack([table[column].to_numpy() for column in columns], axis=1)
