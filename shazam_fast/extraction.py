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

from .annotations import FOLDER
from .errors import ImageError, ShazamError
from .extraction_pipeline import ExtractedBatch, Extractor
from .extraction_plan import Plan, describe_job
from .image_sources import ImageTable, class_folders, image_folder, manifest
from .part_store import PartChunk, PartStore
from .progress import Progress
from .resuming import lock_directory, read_finished
from .scoring import choose_device
from .slide_patches import slide_patches
from .teacher_registry import teacher as find_teacher
from .teacher_spec import TeacherSpec
from .writer import remove_leftovers

BATCH_SIZES = {"cpu": 8, "gpu": 64}  # what fits the cache is fastest on a CPU
POLL_SECONDS = 1.0

logger = logging.getLogger("shazam_fast")


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction wrote: `teachers` maps a column block to its dim, `left_out` lists images that could not be
    read, {"path", "row" in the source, "reason"} each.
    """

    path: Path
    rows: int
    teachers: Mapping[str, int]
    left_out: tuple[Mapping[str, Any], ...]


class Extraction:
    """A plan with its models in place, ready to write any of the archive's parts."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        teachers = plan.build()
        self._plan = plan
        self._batch_size = plan.batch_size or BATCH_SIZES["cpu" if device.type == "cpu" else "gpu"]
        self._extractor = Extractor(plan.table, teachers, plan.levels, device, plan.workers)
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
            plan.out, self._extractor.dims, plan.dtype, plan.parts,
            describe_job(plan, teachers, device, self._batch_size), plan.table.classes, slides, groups,
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


def extract(
    images: ImageTable | str | Path,
    teachers: Sequence[str | TeacherSpec],
    out: str | Path,
    *,
    labels: str | None = None,
    coords: str | Path | None = None,
    classes: Sequence[str] | None = None,
    levels: Sequence[str] = ("high",),
    weights: Mapping[str, str | Path] | None = None,
    transform: str = "own",
    token: str | None = None,
    dtype: str = "float16",
    unreadable: str = "stop",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    cluster: str | None = None,
) -> ExtractionReport:
    """Run teachers over images and write their features as a native archive.

    Every image is decoded once and given to all teachers. Interrupted in any way, the same call goes on after the
    finished parts (2,048 images each) and gives the same bytes; called again once it is done, it returns the report.
    Under torchrun every process takes its share of the parts, on its own GPU; all return when the archive is complete.

    Args:
        images: a folder of images; a CSV manifest (see `image_sources.manifest`); a slide, or a folder of slides, with
            `coords`; or an ImageTable, as the readers in `datasets` give.
        teachers: names (`shazam-fast teachers` lists them) or specs.
        out: directory of the archive. `images.parquet` in it names the image of every row; `archive.json` records
            each teacher's weights, transform, precision and licence, the versions of the libraries, images left out.
        labels: "folder" when the images lie in one folder a class.
        coords: TRIDENT's or CLAM's coords file of the slide, or a folder of them.
        classes: names in label order; sorted by name when not given.
        levels: "high" is the teacher's own feature; "low" and "mid" are the CLS token of an early and a middle block,
            called "<teacher>:low" and "<teacher>:mid" in the archive. All come from one forward pass.
        weights: {teacher: "hub", "random" or a local file}; the hub unless given.
        transform: "own", or "imagenet" as the authors' scripts have it, see `TeacherSpec.build`.
        token: of the Hugging Face hub, by default the one that its login left.
        dtype: "float16" or "float32" on disk.
        unreadable: what an image that cannot be decoded does: "stop", or "exclude" from all teachers alike, recorded.
        batch_size: images in a forward pass: 64 on a GPU, 8 on the CPU unless given; changes the last bits.
        workers: threads that decode; one a core by default.
        device: "cpu", "cuda", ...; a GPU when there is one. Models run in float32 on the CPU.
        cluster: "ray" spreads the parts over a Ray cluster that sees `images` and `out` under the same paths.

    Raises:
        ImageError: images that are missing, listed twice, or unreadable (named, with the reason).
        MismatchError: an unknown teacher; a teacher without levels; or `out` holds the work of another call.
        NonFiniteError: a teacher's feature is NaN, infinite, or too large for float16; names image and teacher.
        ShazamError: weights or a package that cannot be had; the disk is full, which leaves finished parts valid.
    """
    specs = tuple(find_teacher(given) if isinstance(given, str) else given for given in teachers)
    given = {name: str(path) for name, path in (weights or {}).items()}
    table = images if isinstance(images, ImageTable) else _read_table(Path(images), labels, coords, classes)
    plan = Plan(
        table, specs, given, transform, token, tuple(levels), batch_size, workers or _cores(), dtype,
        unreadable, Path(out),
    )  # fmt: skip
    if cluster is not None:
        from .extraction_cluster import extract_on_cluster

        return extract_on_cluster(plan, cluster, device)
    return _extract_here(plan, device)


def _read_table(path: Path, labels: str | None, coords: str | Path | None, classes: Sequence[str] | None) -> ImageTable:
    if labels not in (None, FOLDER):
        raise ShazamError(f"labels: {FOLDER!r} expected, found {labels!r}; in a CSV manifest they are a column")
    if coords is not None:
        return slide_patches(path, coords)
    if path.suffix.lower() == ".csv":
        return manifest(path, classes)
    if path.is_file():
        raise ImageError(f"{path}: a folder or a .csv expected; a slide needs coords")
    return class_folders(path, classes) if labels == FOLDER else image_folder(path)


def _extract_here(plan: Plan, device: str | None) -> ExtractionReport:
    """In this process, or as one of torchrun's."""
    rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = choose_device(device)
    extraction = Extraction(plan, torch.device("cuda", local) if str(chosen) == "cuda" else chosen)
    store = extraction.store

    def write(missing: Sequence[int]) -> None:
        mine = range(rank, store.parts, max(world, 1))
        extraction.write([part for part in missing if part in mine])

    if rank == 0:
        return complete(store, write)
    if (report := finished_report(store)) is not None:
        return report
    store.claim()
    write(store.missing())
    while (report := finished_report(store)) is None:
        time.sleep(POLL_SECONDS)
    return report


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
    """The report of an extraction that is done; None while it is not. Raises MismatchError if it was another one."""
    manifest = read_finished(store.path, store.job)
    if manifest is None:
        return None
    remove_leftovers(store.path, {part["file"] for part in manifest["parts"]})  # killed before it could
    return ExtractionReport(store.path, manifest["rows"], store.teachers, tuple(manifest["notes"]["left_out"]))


def _cores() -> int:
    """Cores of this process: its share of them under torchrun."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _codes(names: Sequence[str]) -> tuple[list[str], NDArray[np.int32] | None]:
    """The names in the order of their first appearance, and the index of each entry's, -1 for ""."""
    if not names:
        return [], None
    known: dict[str, int] = {}
    codes = [known.setdefault(name, len(known)) if name else -1 for name in names]
    return list(known), np.array(codes, dtype=np.int32)
