"""Metrics of a trained student on a labelled split."""

import shlex
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike, as_archive
from ..errors import MismatchError
from ..runtime.checks import require_choice
from ..runtime.devices import choose_device
from ..runtime.progress import Progress
from ..student.config import StudentConfig
from ..student.loading import load_student
from ..student.saving.seen import require_unseen
from ..student.student import Student
from .engine import Scorer
from .metrics import Metrics, compute_metrics
from .slide_table import mean_by_slide

LEVELS = ("patch", "slide")


# Over 40 lines: every option is documented here.
def evaluate(
    student: Student | str | Path,
    archive: ArchiveLike,
    split: str = "test",
    *,
    level: str = "patch",
    allow_trained_slides: bool = False,
    device: str | None = None,
) -> Metrics:
    """Compute the metrics of a student on a labelled split.

    Args:
        student: a student or where it was saved.
        archive: an archive or its path, with labels and splits.
        split: "train", "val", "test" or "none".
        level: "patch"; or "slide": a slide's probabilities are the mean of its patches', its label is the one that all
            its patches have, and `n_rows` counts slides.
        allow_trained_slides: take slides that the student was trained on, or chosen by, for new ones.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.

    Returns the metrics, which keep probabilities and labels for `plot`.

    Raises:
        ShazamError: the device is not there.
        ArchiveError: the archive or the student is missing or damaged.
        MismatchError: the archive has no labels, or other classes or teachers than the student; the split is empty,
            a patch of it has no label, or the student was trained on slides of it; with level "slide", a patch is of
            no slide, or a slide has two labels.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels, splits = np.arange(80) % 2, np.repeat(["train", "val", "test", "train"], 20)
    >>> features = {"uni": np.random.default_rng(0).normal(size=(80, 8)) + labels[:, None]}
    >>> archive = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels, splits=splits)
    >>> student = sf.train(archive, epochs=2, dim=8, depth=1, batch_size=8, device="cpu").student
    >>> sf.evaluate(student, archive, "test", device="cpu").n_rows
    20
    """
    require_choice("level", level, LEVELS)
    place, student, archive, rows = open_labelled(student, archive, split, device)
    if not allow_trained_slides:
        require_unseen(student.training_record, slides_of(archive, rows), archive.path, split)
    return measure(student, archive, rows, place, level)


def measure(
    student: Student, archive: FeatureArchive, rows: NDArray[np.int64], device: torch.device, level: str = "patch"
) -> Metrics:
    """The metrics of a student on patches of an open archive that has its classes.

    Args:
        student, archive, level: as for `evaluate`.
        rows: [n] patches, all of them labelled.
        device: where to compute.

    Raises MismatchError and NonFiniteError as `evaluate` does.
    """
    with (
        Scorer(student, archive, device, fused=False, allow_missing_teachers=False) as scorer,
        Progress(f"evaluating {archive.path.name}", len(rows), "patches"),
    ):
        probabilities = scorer.score(rows).probabilities
    labels = archive.labels[rows]
    if level == "slide":
        probabilities, labels = _per_slide(archive, rows, probabilities)
    return compute_metrics(probabilities, labels, tuple(student.config.classes))


def slides_of(archive: FeatureArchive, rows: NDArray[np.int64]) -> list[str]:
    """Names of the slides that rows are of."""
    occurring = np.unique(archive.slide_index[rows])
    return [archive.slides[index] for index in occurring[occurring >= 0]]


def _per_slide(
    archive: FeatureArchive, rows: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Mean probabilities [S, C] and labels [S] of the slides that the rows are of."""
    slides, labels = archive.slide_index[rows], archive.labels[rows]
    if (slides < 0).any():
        row = int(rows[np.argmin(slides >= 0)])
        raise MismatchError(f"{archive.path}: row {row} is of no slide; level='slide' needs the slide of every patch")
    occurring, first, local = np.unique(slides, return_index=True, return_inverse=True)
    if (other := labels != labels[first][local]).any():
        place = int(np.argmax(other))
        names = [archive.classes[label] for label in (labels[first][local[place]], labels[place])]
        raise MismatchError(
            f"{archive.path}: slide {archive.slides[slides[place]]!r} has patches of {names[0]!r} and {names[1]!r}; "
            "level='slide' needs one label per slide: evaluate with level='patch', or label the slides"
        )
    means = mean_by_slide(probabilities, local, len(occurring))
    return means.astype(np.float32), labels[first]


def open_labelled(
    student: Student | str | Path, archive: ArchiveLike, split: str, device: str | None
) -> tuple[torch.device, Student, FeatureArchive, NDArray[np.int64]]:
    """What a student is compared with labels on.

    Args:
        student, archive, split, device: as for `evaluate`.

    Returns the device, the student, the archive, and the rows of the split, int64 [n].

    Raises ShazamError, ArchiveError and MismatchError as `evaluate` does.
    """
    place, student, archive = choose_device(device), load_student(student), as_archive(archive)
    require_same_classes(student.config, archive)
    return place, student, archive, labelled_rows(archive, split)


def labelled_rows(archive: FeatureArchive, split: str) -> NDArray[np.int64]:
    """Rows of a split, int64 [n], all of them labelled.

    Args:
        archive: an archive with labels and splits.
        split: "train", "val", "test" or "none".

    Raises MismatchError when the archive has no labels, the split is empty, or a patch of it has no label.
    """
    if not archive.classes or (archive.labels < 0).all():
        raise no_labels(archive)
    rows = archive.split(split)
    if len(rows) == 0:
        raise empty_split(archive, split)
    unlabelled = rows[archive.labels[rows] < 0]
    if unlabelled.size == 0:
        return rows
    first = int(unlabelled[0])
    raise MismatchError(
        f"{archive.path}: {unlabelled.size:,} of {len(rows):,} patches of split {split!r} have no label; the first is "
        f"row {first}{_slide_of(archive, first)}. Label them in the table of labels, or mark them 'none' in the table "
        "of splits"
    )


def no_labels(archive: FeatureArchive) -> MismatchError:
    """The error of an archive without any label, for the caller to raise."""
    return MismatchError(f"{archive.path}: the archive has no labels; open it with labels=... (--labels FILE)")


def empty_split(archive: FeatureArchive, split: str) -> MismatchError:
    """The error of an archive without a patch in a split, for the caller to raise."""
    return MismatchError(
        f"{archive.path}: no patch is marked {split!r}. Add splits: --splits FILE, or those of a training: --val, "
        "--test and --seed as there; in Python sf.open(..., splits=sf.GroupedSplit())"
    )


def _slide_of(archive: FeatureArchive, row: int) -> str:
    slide = int(archive.column("slide", row, row + 1)[0])
    if slide < 0:
        return ""
    x, y = archive.column("coords", row, row + 1)[0].tolist()
    return f", of slide {archive.slides[slide]!r}" + (f" at x {x}, y {y}" if (x, y) != (-1, -1) else "")


def require_same_classes(config: StudentConfig, archive: FeatureArchive) -> None:
    """Raise MismatchError when the archive has no classes or others than the student's."""
    if not archive.classes:
        raise no_labels(archive)
    if tuple(config.classes) == archive.classes:
        return
    labels = archive.labels
    strange = [name for code, name in enumerate(archive.classes) if name not in config.classes and code in labels]
    if strange:
        remedy = f"the student does not know {strange[0]!r}: leave its patches out, or train a student on these classes"
    else:
        options = " ".join(f"--classes {shlex.quote(name)}" for name in config.classes)
        remedy = f"open the features with classes={list(config.classes)} ({options})"
    raise MismatchError(
        f"{archive.path}: its classes {list(archive.classes)} are not the student's {list(config.classes)}; {remedy}"
    )
