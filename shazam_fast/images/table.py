"""`ImageTable`: images with their labels, splits, patients, slides and positions."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..annotation.columns import encode_labels, encode_splits
from ..annotation.splits import count_members, require_whole_groups
from ..errors import ImageError, MismatchError
from ..formats.geometry import Geometry
from ..formats.pieces import SPLITS
from ..runtime.summaries import counted

NAMED = 5  # files that a message names before it says how many more there are


@dataclass(frozen=True)
class ImageTable:
    """n images, and the label, split, patient, slide and position of each; image i becomes row i of an archive.

    Args:
        paths: [n] image files. For patches of whole-slide images the slide's file, with `coords` and `sides`.
        labels: int64 [n], index into `classes`, -1 unknown.
        classes: class names in label order.
        splits: uint8 [n]: 0 train, 1 val, 2 test, 255 none.
        groups: [n] names of groups (patients), which must stay in one split, "" unknown; () if all are unknown.
        slides: [n] names of the slides that the images were cut from, "" unknown; () if all are unknown.
        coords: int32 [n, 2], x and y of the image at level 0 of its slide, in pixels; or None.
        sides: int32 [n, 2], where patches are read from a slide: their side at level 0, and the side that they are
            resized to, in pixels. None where every path is an image of its own.
        geometry: slide -> size, level and resolution of its patches and what read them, where that is known.
        over_edge: number of patches that reach over the edge of their slide; what lies outside is black.
        note: a remark on how the table was made ("as published: ..."), which archives keep.

    Raises ImageError when there is no image, when files are missing, or when one is listed twice; MismatchError when
    lengths differ or a label has no class.

    >>> import tempfile
    >>> (image := Path(tempfile.mkdtemp()) / "patch.png").touch()
    >>> table = ImageTable((image,), np.array([0]), ("tumour",), np.array([SPLITS["train"]], np.uint8))
    >>> len(table), table.split("train")
    (1, array([0]))
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    splits: NDArray[np.uint8]
    groups: tuple[str, ...] = ()
    slides: tuple[str, ...] = ()
    coords: NDArray[np.int32] | None = None
    sides: NDArray[np.int32] | None = None
    geometry: Mapping[str, Geometry] = field(default_factory=dict)
    over_edge: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ImageError("no images: at least one expected")
        self._check_lengths()
        self._check_labels()
        self._check_files()

    def __len__(self) -> int:
        return len(self.paths)

    def split(self, name: str) -> NDArray[np.int64]:
        """Row numbers, int64 [n], of the split "train", "val", "test" or "none", ascending."""
        return np.flatnonzero(self.splits == SPLITS[name])

    def _check_lengths(self) -> None:
        lengths = {"labels": len(self.labels), "splits": len(self.splits)}
        lengths |= {name: len(names) for name in ("groups", "slides") if (names := getattr(self, name))}
        lengths |= {name: len(array) for name in ("coords", "sides") if (array := getattr(self, name)) is not None}
        if different := {name: n for name, n in lengths.items() if n != len(self)}:
            raise MismatchError(f"one entry for each of {len(self)} images expected, found {different}")

    def _check_labels(self) -> None:
        if self.labels.min() < -1 or self.labels.max() >= len(self.classes):
            raise MismatchError(
                f"labels -1 (unknown) to {len(self.classes) - 1} expected for the classes {list(self.classes)}, "
                f"found {self.labels.min()} to {self.labels.max()}"
            )

    def _check_files(self) -> None:
        places = [os.path.abspath(path) for path in self.paths]
        missing = sorted(place for place in set(places) if not os.path.isfile(place))
        if missing:
            raise ImageError(f"{len(missing)} of {len(set(places))} image files are missing: {some_of(missing)}")
        corners = [()] * len(self) if self.sides is None or self.coords is None else map(tuple, self.coords.tolist())
        counts = Counter(zip(places, corners, strict=True))
        if repeated := sorted(place for (place, _), n in counts.items() if n > 1):
            raise ImageError(f"listed more than once: {counted(len(repeated), 'image')}: {some_of(repeated)}")


def make_table(
    paths: Sequence[Path],
    splits: Sequence[str],
    labels: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    slides: Sequence[str] = (),
    coords: NDArray[np.int32] | None = None,
    place: Callable[[int], str] = "image {}".format,
) -> ImageTable:
    """An ImageTable of columns as the sources read them; "" is unknown. `place` says where a row is, for messages."""
    known, codes = encode_labels(list(labels) or [""] * len(paths), classes, place)
    split_codes = encode_splits(list(splits), place)
    if groups:
        require_groups(split_codes, groups)
    return ImageTable(tuple(paths), codes, known, split_codes, tuple(groups), tuple(slides), coords)


def require_groups(splits: NDArray[np.uint8], groups: Sequence[str]) -> None:
    """Raise MismatchError when a named group has images in two splits."""
    names, rows = _encode_names(groups, len(splits))
    require_whole_groups(splits, rows, names)


def describe_images(table: ImageTable) -> dict[str, dict[str, int | None]]:
    """Images, slides and groups (patients) of every split that has images.

    Args:
        table: the images.

    Returns split -> {"images", "slides", "groups"}; None for slides or groups that are not known of all images.
    """
    (_, slides), (_, groups) = (_encode_names(names, len(table)) for names in (table.slides, table.groups))
    return {
        name: {"images": len(rows), **count_members({"slides": slides[rows], "groups": groups[rows]})}
        for name in SPLITS
        if len(rows := table.split(name))
    }


def _encode_names(names: Sequence[str], n: int) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The different names, and the number of each row's [n]; -1 for "", and for all rows where there are no names."""
    known, codes = np.unique(np.array(names or [""] * n, dtype=np.str_), return_inverse=True)
    return tuple(known.tolist()), np.where(known[codes] == "", -1, codes).astype(np.int32)


def some_of(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
