"""Scoring and evaluating slides with their student."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from ..archive.opening import ArchiveLike, as_archive
from ..errors import MismatchError
from ..runtime.checks import require_choice, require_path
from ..runtime.devices import choose_device, describe_device
from ..runtime.files import writing
from ..runtime.jobs.foreign import require_same_job
from ..runtime.jobs.locks import require_writable
from ..runtime.jobs.part_directory import PartDirectory
from ..runtime.progress import Progress
from ..scoring.parts import parquet_bytes
from ..student.saving.seen import require_unseen
from .bags import Bags, find_patients, make_bags, require_regions
from .cohort.assigning import assign_targets
from .cohort.metrics import Predictions, SlideMetrics, measure
from .cohort.requests import Classes, Regression, Request, Source, Survival, read_targets
from .cohort.targets import take
from .models.inference import walk
from .options import UNITS
from .scores import TABLE, SlideScores, join_scores, read_scores, score_group, scores_parquet
from .selecting.selection import SelectionLike, require_selection
from .slide_teachers.reading import SlideTeachersLike, add_slide_teachers, describe_slide_teachers
from .students import SlideStudent, load_student, require_slide_teachers, require_teachers

PART_ROWS = 500_000  # patches whose attention is in one part, about


# Over 40 lines: every option is documented here.
def score(
    student: SlideStudent | str | Path,
    archive: ArchiveLike,
    out: str | Path | None = None,
    *,
    by: str = "slide",
    selection: SelectionLike = None,
    slide_teachers: SlideTeachersLike | None = None,
    device: str | None = None,
) -> SlideScores:
    """Predict every slide (or patient) of an archive, with the attention of its patches.

    Args:
        student: a slide's student or where it was saved.
        archive: an archive or its path; needs slides, no labels.
        out: directory for `slides.parquet`, one row per slide, and `part-NNNNN.parquet` with row, slide, x, y,
            attention and share_<teacher> of every patch. After an interruption, run the same call again: finished
            parts are kept. Without `out` both are kept in memory.
        by: "slide", or "patient" to join the slides of a patient (the archive's groups).
        selection: score selected patches alone, see `sf.slides.select`; all by default.
        slide_teachers: as for `sf.slides.train`, for a student that reads them.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.

    Returns the scores; with `out` their `patches` are None and lie in its parts.

    Raises:
        MismatchError: the archive's teachers are not the student's, no patch has a slide, `out` has another job.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.
        ArchiveError: the archive or the student is missing or damaged.
        ShazamError: `out` cannot be written; finished parts stay.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> from .students import SlideConfig, build_model
    >>> features = {"uni": np.random.default_rng(0).normal(size=(5, 4))}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=["s1", "s1", "s2", "s2", "s2"])
    >>> config = SlideConfig({"uni": 4}, "classification", ("luad", "lusc"), dim=4)
    >>> scores = score(SlideStudent(config, [build_model(config)]).eval(), path, device="cpu")
    >>> scores.names, scores.values.shape, scores.patches.num_rows
    (('s1', 's2'), (2, 2), 5)
    """
    require_choice("by", by, UNITS)
    folder = None if out is None else require_path("out", out)
    if folder is not None:
        require_writable(folder)
    student, archive, place = load_student(student), as_archive(archive), choose_device(device)
    require_teachers(student, archive.teachers, archive.path)
    bags = make_bags(archive, by, find_patients(archive, None), require_selection(selection, archive))
    require_regions(student.config.model, bags)
    bags = add_slide_teachers(bags, slide_teachers)
    require_slide_teachers(student, bags)
    if folder is None:
        return _join_with_patches(list(_score(student, bags, np.arange(len(bags)), place)))
    job = {**archive.fingerprint, "student": _digest(student), "by": by, "selection": _digest_rows(bags)}
    job |= describe_slide_teachers(bags)
    del job["labels"], job["splits"]
    ranges = _part_ranges(bags)
    parts = PartDirectory(
        folder, {**job, "device": describe_device(place)}, count=len(ranges), suffix=".parquet", manifest=TABLE
    )
    parts.complete(partial(_score_parts, parts, student, bags, ranges, place))
    scores, done = read_scores(folder)
    require_same_job(folder, done, parts.job)
    parts.tidy_after_kill()
    return scores


# Over 40 lines: every option is documented here.
def evaluate(
    student: SlideStudent | str | Path,
    archive: ArchiveLike,
    targets: Request | Source,
    *,
    by: str = "slide",
    selection: SelectionLike = None,
    slide_teachers: SlideTeachersLike | None = None,
    allow_trained_slides: bool = False,
    device: str | None = None,
) -> SlideMetrics:
    """Metrics of a student on slides that it was not trained on, with intervals by bootstrap over patients.

    Args:
        student: a slide's student or where it was saved.
        archive: an archive or its path.
        targets: as for `sf.slides.train`; slides without a target are left out.
        by, selection, slide_teachers, device: as for `sf.slides.score`.
        allow_trained_slides: take slides that the student was trained on for new ones.

    Returns the metrics. The constant predictor is the student's training record's.

    Raises MismatchError when classes or the task are not the student's, no slide has a target, or the student was
    trained on one; and what `score`
    raises.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> from .students import SlideConfig, build_model
    >>> features = {"uni": np.random.default_rng(0).normal(size=(6, 4))}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=["s1", "s1", "s2", "s2", "s3", "s4"])
    >>> config = SlideConfig({"uni": 4}, "classification", ("luad", "lusc"), dim=4)
    >>> student = SlideStudent(config, [build_model(config)])
    >>> targets = {"s1": "luad", "s2": "lusc", "s3": "luad", "s4": "lusc"}
    >>> evaluate(student, path, targets, device="cpu").n_slides
    4
    """
    require_choice("by", by, UNITS)
    student, archive, place = load_student(student), as_archive(archive), choose_device(device)
    require_teachers(student, archive.teachers, archive.path)
    wanted, table = read_targets(targets)
    wanted = _as_trained(wanted, student)
    bags = make_bags(archive, by, find_patients(archive, table), require_selection(selection, archive))
    require_regions(student.config.model, bags)
    bags = add_slide_teachers(bags, slide_teachers)
    require_slide_teachers(student, bags)
    assigned = assign_targets(wanted, table, bags)
    chosen = np.flatnonzero(assigned.known)
    if not allow_trained_slides:
        require_unseen(student.training_record, bags.slide_names(chosen), archive.path, "test")
    scores = join_scores(list(_score(student, bags, chosen, place)))
    known = student.training_record.get("constant")
    if known is None:  # a student that was not trained: equal frequencies, or the mean of these values
        known = assigned.constant(np.zeros(0, dtype=np.int64) if student.config.classes else chosen)
    constant = None if known is None else np.tile(np.asarray(known, dtype=np.float64), (len(chosen), 1))
    _, patients = np.unique(np.array(scores.patients), return_inverse=True)
    predictions = Predictions(scores.values, np.zeros(len(chosen), dtype=np.int64), patients, constant)
    return measure(predictions, take(assigned, chosen)).summary()


def _as_trained(wanted: Request, student: SlideStudent) -> Request:
    """What is asked for, with the student's columns and classes. Raises MismatchError when it is another task."""
    config, found = student.config, type(wanted).__name__
    columns = tuple(config.targets)
    if config.task == "classification":
        words, fits = "classes of one column", isinstance(wanted, Classes) and not wanted.several
    elif config.task == "multi_classification":
        words = f"Classes(..., column={list(columns)})"
        if isinstance(wanted, Classes) and wanted.column is None:
            wanted = replace(wanted, column=columns, classes=config.targets)
        fits = isinstance(wanted, Classes) and wanted.columns == columns
    elif config.task == "regression":
        words = f"Regression(..., columns={list(columns)})"
        fits = isinstance(wanted, Regression) and wanted.columns == columns
    else:
        words, fits = "Survival(...)", isinstance(wanted, Survival)
    if not fits:
        raise MismatchError(f"targets: {words} expected, as trained, found {found}(...) of other columns or kind")
    if isinstance(wanted, Classes) and wanted.classes is None:
        wanted = replace(wanted, classes=config.classes or config.targets)
    return wanted


def _score(student: SlideStudent, bags: Bags, chosen: NDArray[np.int64], device: torch.device) -> Iterator[SlideScores]:
    with Progress(f"scoring {bags.archive.path.name}", int(bags.sizes[chosen].sum()), "patches") as progress:
        models = [copy.deepcopy(model).to(device).eval() for model in student.models]  # the student stays where it is
        for group in walk(models, bags, chosen, device):
            yield score_group(student, bags.archive, bags, group)
            progress.advance(len(group.rows))


def _join_with_patches(pieces: list[SlideScores]) -> SlideScores:
    import pyarrow as pa

    tables = [piece.patches for piece in pieces if piece.patches is not None]
    return replace(join_scores(pieces), patches=pa.concat_tables(tables).unify_dictionaries())


def _part_ranges(bags: Bags) -> list[NDArray[np.int64]]:
    """Numbers of the bags of each part: whole bags, about PART_ROWS patches."""
    part = bags.bounds[:-1] // PART_ROWS
    return [np.flatnonzero(part == number) for number in np.unique(part)]


def _score_parts(
    parts: PartDirectory,
    student: SlideStudent,
    bags: Bags,
    ranges: list[NDArray[np.int64]],
    device: torch.device,
) -> None:
    """Write the parts that are missing, then the table of slides."""
    for number in parts.missing(range(parts.count)):
        scores = _join_with_patches(list(_score(student, bags, ranges[number], device)))
        assert scores.patches is not None
        parts.write_part(number, parquet_bytes(scores.patches), scores.patches.num_rows, _notes(scores))
    pieces = [_from_notes(record.notes, student, bags, ranges[i]) for i, record in enumerate(parts.records())]
    with writing(parts.path):
        parts.publish(scores_parquet(join_scores(pieces), parts.job))


def _notes(scores: SlideScores) -> dict[str, Any]:
    return {"values": scores.values.tolist(), "shares": None if scores.shares is None else scores.shares.tolist()}


def _from_notes(notes: Any, student: SlideStudent, bags: Bags, numbers: NDArray[np.int64]) -> SlideScores:
    return SlideScores(
        names=tuple(bags.names[bag] for bag in numbers.tolist()),
        patients=tuple(bags.patients[bag] for bag in numbers.tolist()),
        n_patches=bags.sizes[numbers],
        classes=tuple(student.config.classes),
        values=np.array(notes["values"], dtype=np.float64),
        teachers=tuple(student.config.teachers),
        shares=None if notes["shares"] is None else np.array(notes["shares"], dtype=np.float32),
        targets=student.config.targets,
        geometry=dict(bags.archive.geometry),
    )


def _digest(student: SlideStudent) -> str:
    """A digest of all numbers of a student, and of its shape."""
    digest = xxhash.xxh3_128(repr(student.config).encode())
    for name, tensor in student.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest_rows(bags: Bags) -> str:
    return xxhash.xxh3_128_hexdigest(np.concatenate([bags.rows, bags.bounds]).tobytes())
