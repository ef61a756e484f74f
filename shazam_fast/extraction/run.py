"""Images to features: `shazam_fast.extract` runs every teacher over every image once and writes a native archive."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..archive.parts import PartChunk, PartStore
from ..archive.resuming import read_finished
from ..archive.writer import remove_leftovers
from ..errors import ImageError
from ..runtime.jobs import lock_directory
from ..runtime.progress import Progress
from .pipeline import ExtractedBatch, Extractor
from .plan import Plan, describe_job

logger = logging.getLogger("shazam_fast")


BATCH_SIZES = {"cpu": 8, "gpu": 64}  # what fits the cache is fastest on a CPU
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction wrote: `teachers` maps a column block to its dim, `left_out` lists images that could not be
    read, {"path", "row" in the source, "reason"} each.
    """

    path: Path
    n_rows: int
    teachers: Mapping[str, int]
    left_out: tuple[Mapping[str, Any], ...]


class Extraction:
    """A plan with its models in place, ready to write any of the archive's parts."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        teachers = plan.build()
        self._plan = plan
        self._batch_size = plan.batch_size or BATCH_SIZES["cpu" if device.type == "cpu" else "gpu"]
        job = describe_job(plan, teachers, device, self._batch_size)
        self._extractor = Extractor(plan.table, teachers, plan.levels, device, plan.workers, plan.stamps)
        slides, slide_index = _codes(plan.table.slides)
        groups, group_index = _codes(plan.table.groups)
        self._columns: dict[str, NDArray[Any] | None] = {
            "label": plan.table.labels,
            "split": plan.table.splits,
            "coords": plan.table.coords,
            "slide": slide_index,
            "group": group_index,
        }
        self.store = PartStore(
            plan.out, self._extractor.dims, plan.dtype, plan.parts, job, plan.table.classes, slides, groups,
            plan.sources(), plan.table.geometry,
        )  # fmt: skip

    def write(self, parts: Sequence[int]) -> None:
        """Extract and write the given parts; images of the next one are decoded while a part is finished.

        Raises ImageError for an image that cannot be read, unless such images are to be left out.
        """
        batches = [batch for part in parts for batch in self._plan.batches(part, self._batch_size)]
        stream = self._extractor.stream(batches)
        with Progress(f"extracting to {self.store.path.name}", sum(map(len, batches)), "images") as progress:
            for part, extracted in groupby(stream, key=lambda found: self._plan.part_of(found.batch)):
                self.store.write(part, self._chunks(extracted, progress))

    def _chunks(self, extracted: Iterable[ExtractedBatch], progress: Progress) -> Iterator[PartChunk]:
        paths = self._plan.table.paths
        for found in extracted:
            if found.unreadable and self._plan.unreadable == "stop":
                reason = next(iter(found.unreadable.values()))
                raise ImageError(
                    f"{reason}. Finished parts are kept: mend the image and extract again, "
                    "or leave such images out with unreadable='exclude'"
                )
            yield PartChunk(
                found.features,
                {name: None if column is None else column[found.rows] for name, column in self._columns.items()},
                [str(paths[row]) for row in found.rows],
                [{"row": row, "path": str(paths[row]), "reason": why} for row, why in found.unreadable.items()],
            )
            progress.advance(len(found.batch))


def complete(store: PartStore, write: Callable[[Sequence[int]], None]) -> ExtractionReport:
    """Have `write` write the parts that are missing, wait for those that it leaves to other processes, and publish."""
    if (report := finished_report(store)) is not None:
        return report
    store.claim()
    locked = lock_directory(store.path)
    try:
        missing = store.missing()
        if len(missing) < store.parts:
            logger.info("%s: continued after %d of %d parts", store.path, store.parts - len(missing), store.parts)
        write(missing)
        while not all(map(store.finished, missing)):
            time.sleep(POLL_SECONDS)
        store.publish()
    except BaseException:
        store.discard_if_empty()
        raise
    finally:
        os.close(locked)
    report = finished_report(store)
    assert report is not None
    return report


def finished_report(store: PartStore) -> ExtractionReport | None:
    """The report of an extraction that is done; None while it is not.

    Raises MismatchError if it was another one, or if its images have changed since.
    """
    manifest = read_finished(store.path, store.job)
    if manifest is None:
        return None
    for index, digest in enumerate(manifest["notes"]["sources"]):
        store.require_unchanged(index, digest)
    remove_leftovers(store.path, {part["file"] for part in manifest["parts"]})  # killed before it could
    return ExtractionReport(store.path, manifest["rows"], store.teachers, tuple(manifest["notes"]["left_out"]))


def _codes(names: Sequence[str]) -> tuple[list[str], NDArray[np.int32] | None]:
    """The names in the order of their first appearance, and the index of each entry's, -1 for ""."""
    if not names:
        return [], None
    known: dict[str, int] = {}
    codes = [known.setdefault(name, len(known)) if name else -1 for name in names]
    return list(known), np.array(codes, dtype=np.int32)
