"""The Shazam paper's two datasets, UniToPatho and HunCRC, read in their published structure as tables of images.

Class order, official splits and counts are the publications': UniToPatho (doi 10.21227/9fsv-tm25; folder `800`) and
HunCRC (doi 10.1038/s41597-022-01450-y; the patches). The official test split stays whole. Validation patches are taken
from the training split, slide by slide. `split="as_published"` does what the released Shazam scripts do instead
(arXiv 2503.00736): it cuts the official test split in two at random, patches of one slide in both halves, and is there
to compare with the paper's table alone.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ..annotation.splits import GroupedSplit
from ..errors import ImageError, MismatchError, ShazamError
from ..formats.pieces import SPLITS
from ..runtime.checks import require_path
from ..runtime.summaries import counted
from ..tables.reader import read_table
from .table import ImageTable, require_groups

logger = logging.getLogger("shazam_fast")


SPLIT_CHOICES = ("by_slide", "as_published")
UNITOPATHO_CLASSES = ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")  # in the order of the column `top_label`
HUNCRC_CLASSES = (
    "highgrade_dysplasia", "adenocarcinoma", "suspicious_for_invasion", "inflammation", "resection_edge",
    "tumor_necrosis", "artifact", "normal", "lowgrade_dysplasia",
)  # fmt: skip
HUNCRC_SLIDES, HUNCRC_TRAINING_SLIDES = 200, 151
# <slide>.ndpi_ROI_..._(x,y,width,height).png, in pixels of the slide's level 0
UNITOPATHO_NAME = re.compile(r"(?P<slide>.+)\.ndpi_ROI_.*_\((?P<x>\d+), ?(?P<y>\d+), ?\d+, ?\d+\)\.png")
NAMED = 5  # files that a message names


@dataclass
class _Rows:
    """What a reader collects, one entry per patch, official training rows first."""

    paths: list[Path]
    labels: list[int]
    slides: list[str]
    train: list[bool]
    coords: list[tuple[int, int]]


def unitopatho(path: str | Path, split: str = "by_slide", val: float = 0.15, seed: int = 0) -> ImageTable:
    """UniToPatho, subset `800`: `train.csv`, `test.csv` and one folder of PNG files per class.

    Args:
        path: the folder `800`, or the one that holds it.
        split: "by_slide", or "as_published" (seed 12), see the module.
        val: share of the training patches that become validation patches, whole slides at a time.
        seed: of that choice.

    Raises:
        ArchiveError: a CSV that is missing or cannot be read.
        ImageError: images that are missing (the first are named, all counted) or listed twice.
        MismatchError: a column, class or image name that is not as published; a slide in train and in test.
    """
    root = _root(require_path("path", path), "800", "train.csv")
    rows = _Rows([], [], [], [], [])
    for name in ("train", "test"):
        _read_unitopatho(root, name, rows)
    return _table("UniToPatho", rows, UNITOPATHO_CLASSES, (6_270, 2_399), split, GroupedSplit(val, 0.0, seed), 12)


def huncrc(path: str | Path, split: str = "by_slide", val: float = 0.15, seed: int = 0) -> ImageTable:
    """HunCRC's patches: folders `001` to `200`, one per slide, and next to each its `<folder>_labels.csv`.

    Slides 001 to 151 are the training split, the others the official test split. Rows that have not exactly one 1 in
    the nine columns of the paper's classes are left out, and counted in the log.

    Args:
        path: the folder that holds those folders, or the one that holds it as `patches`.
        split: "by_slide", or "as_published" (seed 42), see the module.
        val, seed: see `unitopatho`.

    Raises:
        ArchiveError: a CSV that cannot be read.
        ImageError: images that are missing (the first are named, all counted) or listed twice.
        MismatchError: CSV files or columns that are missing, a value that is neither 0 nor 1.
    """
    root = _root(require_path("path", path), "patches", "001_labels.csv")
    folders = [f"{number:03d}" for number in range(1, HUNCRC_SLIDES + 1)]
    if absent := [f"{folder}_labels.csv" for folder in folders if not (root / f"{folder}_labels.csv").is_file()]:
        raise MismatchError(f"{root}: {len(absent)} of {HUNCRC_SLIDES} CSV files are missing: {_some(absent)}")
    rows = _Rows([], [], [], [], [])
    left_out = sum(_read_huncrc(root, folder, rows) for folder in folders)
    if left_out:
        logger.info("HunCRC: left out %s without exactly one label", counted(left_out, "row"))
    return _table("HunCRC", rows, HUNCRC_CLASSES, (76_753, 22_655), split, GroupedSplit(val, 0.0, seed), 42)


DATASETS: Mapping[str, Callable[..., ImageTable]] = MappingProxyType({"unitopatho": unitopatho, "huncrc": huncrc})


def load_dataset(name: str, path: str | Path, split: str = "by_slide", val: float = 0.15, seed: int = 0) -> ImageTable:
    """Read one of the Shazam paper's datasets as a table of images, for `shazam_fast.extract`.

    Args:
        name: "unitopatho" (UniToPatho, subset 800: `train.csv`, `test.csv`, one folder of PNG files per class) or
            "huncrc" (HunCRC's patches: folders `001` to `200` and `<folder>_labels.csv`).
        path: folder of the unpacked dataset.
        split: "by_slide" keeps every slide in one split; "as_published" halves the official test split at random into
            validation and test, as the paper's scripts do, so that both have patches of the same slides.
        val: with "by_slide", the share of the training patches that become validation patches, whole slides at a time.
        seed: random seed of that choice.

    Returns the table, with labels, splits, slides and, for UniToPatho, positions.

    Raises:
        ShazamError: an unknown name or split.
        ArchiveError: a CSV file that is missing or cannot be read.
        ImageError: images that are missing (the first are named, all counted) or listed twice.
        MismatchError: a column, value or image name that is not as published; a slide in training and test.

    >>> load_dataset("camelyon", "data")
    Traceback (most recent call last):
    ...
    shazam_fast.errors.ShazamError: no dataset is called 'camelyon'; there are unitopatho, huncrc
    """
    if name not in DATASETS:
        raise ShazamError(f"no dataset is called {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name](path, split, val, seed)


def _read_unitopatho(root: Path, name: str, rows: _Rows) -> None:
    source = root / f"{name}.csv"
    columns = _columns(source, ("image_id", "top_label", "top_label_name"))
    for line, (image, code, label) in enumerate(zip(*columns, strict=True), start=2):
        image = image.strip("'\"")  # noqa: PLW2901 - quotes within quotes
        if label not in UNITOPATHO_CLASSES or code != str(UNITOPATHO_CLASSES.index(label)):
            order = ", ".join(f"{i} {c}" for i, c in enumerate(UNITOPATHO_CLASSES))
            raise MismatchError(f"{source}: row {line}: a class of {order} expected, found {code} {label}")
        parts = UNITOPATHO_NAME.fullmatch(image)
        if parts is None:
            raise MismatchError(
                f"{source}: row {line}: an image named <slide>.ndpi_ROI_..._(x,y,width,height).png expected, "
                f"found {image!r}"
            )
        rows.paths.append(root / label / image)
        rows.labels.append(UNITOPATHO_CLASSES.index(label))
        rows.slides.append(parts["slide"])
        rows.train.append(name == "train")
        rows.coords.append((int(parts["x"]), int(parts["y"])))


def _read_huncrc(root: Path, folder: str, rows: _Rows) -> int:
    """Append a slide's patches; returns how many rows were left out."""
    source = root / f"{folder}_labels.csv"
    names, *flags = _columns(source, ("fname", *HUNCRC_CLASSES))
    left_out = 0
    for line, (name, *values) in enumerate(zip(names, *flags, strict=True), start=2):
        if not set(values) <= {"0", "1", "0.0", "1.0"}:
            raise MismatchError(f"{source}: row {line}: 0 or 1 for every class expected, found {', '.join(values)}")
        positive = [i for i, value in enumerate(values) if value in ("1", "1.0")]
        if len(positive) != 1:
            left_out += 1
            continue
        rows.paths.append(root / folder / name.replace("\\", "/").rpartition("/")[2])
        rows.labels.append(positive[0])
        rows.slides.append(folder)
        rows.train.append(int(folder) <= HUNCRC_TRAINING_SLIDES)
    return left_out


def _table(
    name: str,
    rows: _Rows,
    classes: tuple[str, ...],
    published: tuple[int, int],
    split: str,
    grouped: GroupedSplit,
    published_seed: int,
) -> ImageTable:
    if split not in SPLIT_CHOICES:
        raise ShazamError(f"split: one of {SPLIT_CHOICES} expected, found {split!r}")
    labels, train = np.array(rows.labels, dtype=np.int64), np.array(rows.train, dtype=np.bool_)
    found = int(train.sum()), int((~train).sum())
    if found != published:
        logger.warning("%s: %s training and test patches found, %s published", name, found, published)
    if not all(found):
        raise ImageError(f"{name}: patches of the official training and test split expected, found {found}")
    splits = np.where(train, SPLITS["train"], SPLITS["test"]).astype(np.uint8)
    note = ""
    groups = tuple(rows.slides)
    if split == "as_published":
        splits[~train] = _published_halves(found[1], published_seed)
        note = f"as published: validation and test are random halves (seed {published_seed}) of the official test split"
        groups = ()  # patches of one slide are in both halves, which training would refuse
    else:
        _, slide_codes = np.unique(rows.slides, return_inverse=True)
        splits[train] = grouped.assign(labels[train], slides=slide_codes[train], where=name)
        require_groups(splits, groups)
    coords = np.array(rows.coords, dtype=np.int32) if rows.coords else None
    return ImageTable(
        tuple(rows.paths), labels, classes, splits, groups=groups, slides=tuple(rows.slides), coords=coords, note=note
    )


def _published_halves(n: int, seed: int) -> NDArray[np.uint8]:
    """Split codes of n official test patches: torch's `random_split` in halves right after `manual_seed(seed)`.

    The first half, the smaller one when n is odd, is for validation.
    """
    import torch

    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    codes = np.full(n, SPLITS["test"], dtype=np.uint8)
    codes[order[: n // 2]] = SPLITS["val"]
    return codes


def _root(path: Path, folder: str, file: str) -> Path:
    return path / folder if not (path / file).exists() and (path / folder).is_dir() else path


def _columns(source: Path, names: Sequence[str]) -> list[list[str]]:
    table = read_table(source).columns
    if absent := [name for name in names if name not in table]:
        raise MismatchError(f"{source}: columns {', '.join(absent)} are missing, found {', '.join(table)}")
    return [table[name] for name in names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
