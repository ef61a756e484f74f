"""The hardest patches: those to whose true class the student gives the lowest probability, with their images."""

import base64
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...archive.archive import FeatureArchive
from ...archive.opening import as_archive
from ...errors import ShazamError
from ..canvas import shorten
from .evidence import Evidence
from .page import ABSENT, Block, Gallery, Section, Table, Thumbnail, cells, number

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("shazam_fast")

HARDEST = 24  # patches listed
MOST_PER_GROUP = 4  # of one patient or slide, so that one bad slide does not fill the list
SIDE = 256  # pixels of a thumbnail; shown at half the size
IMAGES = "images.parquet"  # of an extracted archive: row and path of every image


def hardest_section(evidence: Evidence) -> Section:
    """A list of the patches with the largest loss, with thumbnails where the archive records its images."""
    loss = losses(evidence)
    chosen = choose_hardest(loss, evidence.groups if evidence.unit != "patches" else None)
    archive, classes, rows = evidence.archive, evidence.classes, evidence.rows[chosen]
    p, true, said = evidence.probabilities[chosen], evidence.labels[chosen], evidence.prediction[chosen]
    columns = _places(archive, rows)
    names = len(columns) + 2
    columns |= {"true class": [classes[c] for c in true], "predicted class": [classes[c] for c in said]}
    columns |= _positions(archive, rows)
    columns |= {
        "row": [f"{row:,}" for row in rows],
        "its probability": [number(float(one[c])) for one, c in zip(p, said, strict=True)],
        "true class's": [number(float(one[c])) for one, c in zip(p, true, strict=True)],
        "loss": [number(float(one), 2) for one in loss[chosen]],
    }
    unit = f", at most {MOST_PER_GROUP} per {evidence.unit[:-1]}" if evidence.unit != "patches" else ""
    table = Table(
        f"The {len(rows)} labelled patches of {evidence.split!r} with the largest loss (\u2212log of the true class's "
        f"probability){unit}. Wrong labels gather here, as do artefacts and borders: look at them before trusting "
        "either.",
        tuple(columns),
        [cells(line) for line in zip(*columns.values(), strict=True)],
        names=names,
    )
    blocks: list[Block] = [table]
    captions = [
        (f"true: {shorten(classes[t], 20)}", f"predicted: {shorten(classes[s], 20)}", f"row {row:,}")
        for t, s, row in zip(true, said, rows, strict=True)
    ]
    if gallery := _gallery(archive, rows, captions):
        blocks.append(gallery)
    return Section("hardest", "Hardest patches", blocks)


def _places(archive: FeatureArchive, rows: NDArray[np.int64]) -> dict[str, list[str]]:
    """Slide and patient of each of `rows`, where any is known."""
    found = {}
    known = (
        ("slide", archive.slides, archive.slide_index[rows]),
        ("patient", archive.groups, archive.group_index[rows]),
    )
    for what, names, index in known:
        if (index >= 0).any():
            found[what] = [names[i] if i >= 0 else ABSENT for i in index]
    return found


def _positions(archive: FeatureArchive, rows: NDArray[np.int64]) -> dict[str, list[str]]:
    """x and y of each of `rows`, where any is known."""
    coords = archive.coords[rows]
    unknown = (coords == -1).all(axis=1)
    if unknown.all():
        return {}
    texts = [
        (ABSENT, ABSENT) if u else (f"{x:,}", f"{y:,}") for u, (x, y) in zip(unknown, coords.tolist(), strict=True)
    ]
    return {name: [text[axis] for text in texts] for axis, name in enumerate("xy")}


def losses(evidence: Evidence) -> NDArray[np.float64]:
    """Cross-entropy of every patch [n]; -inf where the label is unknown."""
    n = len(evidence.rows)
    p = evidence.probabilities[np.arange(n), evidence.labels].astype(np.float64)
    return np.where(evidence.labels >= 0, -np.log(np.maximum(p, 1e-30)), -np.inf)


def choose_hardest(loss: NDArray[np.float64], groups: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Places of the largest losses, largest first, at most a few per group."""
    chosen: list[int] = []
    taken: dict[int, int] = {}
    for place in np.argsort(-loss, kind="stable").tolist():
        if len(chosen) == HARDEST or loss[place] == -np.inf:
            break
        if groups is not None:
            group = int(groups[place])
            taken[group] = taken.get(group, 0) + 1
            if taken[group] > MOST_PER_GROUP:
                continue
        chosen.append(place)
    return np.array(chosen, dtype=np.int64)


def _gallery(archive: FeatureArchive, rows: NDArray[np.int64], captions: Sequence[Sequence[str]]) -> Gallery | None:
    paths = image_paths(archive, rows)
    if paths is None:
        return None
    images, unread = [], 0
    for row, (path, shared), lines in zip(rows.tolist(), paths, captions, strict=True):
        try:
            images.append(Thumbnail(_data_uri(_read(archive, row, path, shared)), lines))
        except ShazamError as error:
            unread += 1
            logger.info("no thumbnail of row %d: %s", row, error)
    if not images:
        return None
    missing = f" {unread} images could not be read, since they were moved or deleted." if unread else ""
    return Gallery(f"The same patches in the same order.{missing}", images)


def image_paths(archive: FeatureArchive, rows: NDArray[np.int64]) -> list[tuple[Path, bool]] | None:
    """The image file of each of `rows`, and whether other rows have the same one (a slide's file).

    None where the archive records no images, or was opened with a selection of slides, so that its rows are others.
    """
    import pyarrow.parquet as pq

    file = archive.path / IMAGES
    if not file.is_file() or not _as_stored(archive):
        return None
    paths = pq.read_table(file, columns=["path"])["path"].combine_chunks()
    counts = np.bincount(np.asarray(paths.indices), minlength=len(paths.dictionary))
    if len(paths) != len(archive):
        return None
    indices = [paths.indices[row].as_py() for row in rows.tolist()]
    return [(Path(paths.dictionary[index].as_py()), bool(counts[index] > 1)) for index in indices]


def _as_stored(archive: FeatureArchive) -> bool:
    """Whether the rows are those of the archive on disk, in its order."""
    stored = as_archive(archive.path)
    if len(stored) != len(archive):
        return False
    found, expected = archive.fingerprint, stored.fingerprint
    return found["slides"] == expected["slides"] and found["positions"] == expected["positions"]


def _read(archive: FeatureArchive, row: int, path: Path, shared: bool) -> "Image":
    """A patch's image, at most SIDE pixels wide and high."""
    slide = int(archive.slide_index[row])
    geometry = archive.geometry.get(archive.slides[slide]) if slide >= 0 else None
    if shared or (geometry is not None and geometry.reader is not None):
        from ...images.slide_reader import SlideReader

        if geometry is None or geometry.patch_size is None:
            raise ShazamError(f"{path}: the size of its patches is not known")
        x, y = archive.coords[row].tolist()
        return SlideReader().read(path, int(x), int(y), round(geometry.patch_size), SIDE)
    from ...images.decoding import decode

    image = decode(path)
    image.thumbnail((SIDE, SIDE))
    return image


def _data_uri(image: "Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
