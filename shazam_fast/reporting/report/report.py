"""`shazam_fast.report`: one HTML file on a student, its teachers, and a comparison of methods."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...archive.archive import FeatureArchive
from ...archive.opening import ArchiveLike, as_archive
from ...comparison.result import Comparison
from ...errors import ShazamError
from ...runtime.checks import require_count, require_path
from ...runtime.devices import choose_device
from ...runtime.files import write_durably
from ...runtime.jobs.locks import require_writable
from ...runtime.progress import Progress
from ...scoring.evaluate import empty_split, require_same_classes, slides_of
from ...student.loading import load_student
from ...student.saving.seen import seen_slides
from ...student.student import Student
from ...training.train import TrainResult
from ..canvas import new_page
from .confounding import confounding_section
from .evidence import Evidence, gather_evidence, measure
from .hardest import hardest_section
from .methods import Compared, comparison_section, read_comparison
from .page import Page, Section, Table, cells, render
from .performance import curves_section, interval_warnings, metrics_section, shares_section, training_section
from .redundancy import redundancy_section, rescue_section

DIGESTS = ("features", "labels", "splits", "groups", "slides")  # of what a student was trained on
NO_STUDENT, NO_ARCHIVE = "no student was given", "no archive was given"
Step = tuple[str, Callable[[], "Section | str"]]  # what a section is about, and what makes it, or says why not


# Over 40 lines: every option is documented here.
def report(
    student: Student | TrainResult | str | Path | None = None,
    archive: ArchiveLike | None = None,
    out: str | Path = "report.html",
    *,
    comparison: Comparison | str | Path | None = None,
    split: str = "test",
    attributes: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Path:
    """Write a report: one HTML file that needs no network and no script.

    It has a section for all that is known: the comparison of methods; metrics with intervals by bootstrap over
    patients, scores by class, confusion matrix; ROC, precision-recall and reliability; teacher shares; similarity of
    the teachers, correlation of their errors, and which is right where others fail; a confounding check; the hardest
    patches, with images where the archive records them; the training. It ends with what is left out, and why. The same
    arguments give the same bytes.

    Args:
        student: a student, what `train` returned, or the directory of a student; None for a report on a comparison.
        archive: an archive or its path, with splits, and with labels for most sections.
        out: the HTML file.
        comparison: what `compare` returned, or the directory that it wrote (or its comparison.json).
        split: "train", "val", "test" or "none": the patches that the student is judged on.
        attributes: what else might confound, such as {"site": ...}: a value per patch, or {slide: value}.
        seed: of samples and bootstrap.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.

    Returns the path of the file.

    Raises:
        ShazamError: neither a student nor a comparison; another object than expected (says what it is); matplotlib is
            missing; the file cannot be written.
        ArchiveError: archive, student or comparison is missing or damaged.
        MismatchError: the archive's teachers or classes are not the student's; the split is empty.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels, splits = np.arange(80) % 2, np.repeat(["train", "val", "test", "train"], 20)
    >>> features = {t: np.random.default_rng(0).normal(size=(80, 8)) + labels[:, None] for t in ("uni", "gigapath")}
    >>> folder = tempfile.mkdtemp()
    >>> archive = sf.write_archive(f"{folder}/patches", features, labels=labels, splits=splits)
    >>> result = sf.train(archive, epochs=2, dim=8, depth=1, batch_size=8, device="cpu")
    >>> sf.report(result, archive, f"{folder}/report.html", device="cpu").name
    'report.html'
    """
    out, place = require_path("out", out), choose_device(device)
    require_count("seed", seed, 0)
    if student is None and comparison is None:
        raise ShazamError("a student (or its directory), or comparison=, expected; found neither")
    found = None if student is None else _student(student)
    compared = None if comparison is None else read_comparison(comparison)
    opened = None if archive is None else as_archive(archive)
    new_page(1, 1, "report")  # matplotlib is there
    require_writable(out.absolute().parent)
    evidence = None
    if found is not None and opened is not None:
        evidence = _evidence(found, opened, split, seed, place)
    page = _make_page(found, opened, evidence, compared, attributes or {}, split, seed)
    try:
        write_durably(out, render(page).encode("utf-8", "replace"))
    except OSError as error:
        raise ShazamError(f"{out}: the report could not be written: {error.strerror or error}") from error
    return out


def _student(given: object) -> Student:
    if isinstance(given, TrainResult):
        return given.student
    if isinstance(given, Comparison | FeatureArchive):
        name = "comparison" if isinstance(given, Comparison) else "archive"
        raise ShazamError(f"student: a Student or the directory of one expected, found {given!r}; give it as {name}=")
    return load_student(given)  # type: ignore[arg-type]


def _evidence(student: Student, archive: FeatureArchive, split: str, seed: int, device: Any) -> Evidence:
    if archive.classes:
        require_same_classes(student.config, archive)
    rows = archive.split(split)
    if len(rows) == 0:
        raise empty_split(archive, split)
    with Progress(f"scoring {archive.path.name}", len(rows), "patches"):
        return gather_evidence(student, archive, rows, split, seed, device)


def _make_page(
    student: Student | None, archive: FeatureArchive | None, evidence: Evidence | None, compared: Compared | None,
    attributes: Mapping[str, Any], split: str, seed: int,
) -> Page:  # fmt: skip
    sections: list[Section] = []
    warnings: list[str] = []
    left_out: list[tuple[str, str]] = []
    steps = list(_steps(student, archive, evidence, compared, attributes, split, seed, warnings))
    with Progress("writing the report", len(steps), "sections") as progress:
        for name, make in steps:
            made = make()
            if isinstance(made, Section):
                sections.append(made)
            else:
                left_out.append((name, made))
            progress.advance(1, name)
    findings = [finding for section in sections for finding in section.findings]
    subtitle = "What fusing the features of several foundation models gives on this archive, with its uncertainty."
    return Page(_title(student, archive), subtitle, _facts(student, archive, evidence, compared), findings, warnings,
                sections, left_out)  # fmt: skip


def _steps(
    student: Student | None, archive: FeatureArchive | None, evidence: Evidence | None, compared: Compared | None,
    attributes: Mapping[str, Any], split: str, seed: int, warnings: list[str],
) -> Iterator[Step]:  # fmt: skip
    """What makes each section, in the order of the page."""
    if compared is None:
        yield "Comparison of methods", lambda: "no comparison was given; shazam-fast compare makes one"
    else:
        yield "Comparison of methods", lambda: comparison_section(compared)
    missing = NO_STUDENT if student is None else NO_ARCHIVE
    labelled = None if evidence is None else _labelled(evidence)
    if evidence is None:
        yield "Results, curves, teacher shares, confounding check, hardest patches", lambda: missing
    elif labelled is None:
        yield "Results, curves, hardest patches", lambda: f"no patch of {split!r} has a label"
    else:
        performance, draws = measure(labelled.probabilities, labelled.labels, labelled.groups, seed)
        warnings += interval_warnings(labelled, draws)
        if len(labelled.rows) < len(evidence.rows):
            few = f"{len(labelled.rows):,} of {len(evidence.rows):,}"
            warnings.append(f"Only {few} patches of {split!r} have a label; metrics are of these alone.")
        warnings += _trained_on(labelled)
        yield "Results", lambda: metrics_section(labelled, performance, draws)
        yield "Discrimination and calibration", lambda: curves_section(labelled, draws)
    if evidence is not None:
        yield "Teacher shares", lambda: shares_section(evidence)
    if archive is not None:
        rows = np.arange(len(archive)) if evidence is None else evidence.rows
        yield "Similarity of the teachers", lambda: redundancy_section(archive, rows, seed)
        yield "Which teacher is right where others fail", lambda: rescue_section(archive, labelled, seed)
    if evidence is not None:
        yield "Confounding check", lambda: confounding_section(evidence, attributes)
    if labelled is not None:
        yield "Hardest patches", lambda: hardest_section(labelled)
    if student is not None:
        yield "Training", lambda: training_section(student.training_record)
        yield "How it was made", lambda: _about(student, seed)


def _labelled(evidence: Evidence) -> Evidence | None:
    """The labelled patches; None where there are none."""
    known = evidence.labels >= 0
    if not known.any():
        return None
    return Evidence(
        evidence.archive, evidence.student, evidence.split, evidence.seed, evidence.device, evidence.rows[known],
        evidence.labels[known], evidence.groups[known], evidence.probabilities[known],
        None if evidence.shares is None else evidence.shares[known],
    )  # fmt: skip


def _trained_on(evidence: Evidence) -> list[str]:
    """A warning where the student is judged on slides that it was trained on, or chosen by."""
    slides = slides_of(evidence.archive, evidence.rows)
    seen = seen_slides(evidence.student.training_record, slides)
    if not seen:
        return []
    return [f"The student was trained on {len(seen):,} of these {len(slides):,} slides, or chosen by them: too good."]


def _title(student: Student | None, archive: FeatureArchive | None) -> str:
    if archive is not None:
        return f"Report on {archive.path.name}"
    trained_on = None if student is None else student.training_record.get("archive")
    return (
        f"Report on a student of {trained_on}" if isinstance(trained_on, str) else "Report on a comparison of methods"
    )


def _facts(
    student: Student | None, archive: FeatureArchive | None, evidence: Evidence | None, compared: Compared | None
) -> list[tuple[str, str]]:
    teachers: Any = archive.teachers if archive else student.config.teachers if student else None
    if teachers is None:
        teachers = compared.teachers if compared else ()
    classes: Any = student.config.classes if student else compared.classes if compared else ()
    facts = [("teachers", f"{len(teachers)}"), ("classes", f"{len(classes)}")]
    if archive is not None:
        counts = [f"{len(archive.split(name)):,}" for name in ("train", "val", "test")]
        facts += [("patches", f"{len(archive):,}"), ("train / val / test", " / ".join(counts))]
        known = (("slides", archive.slides), ("patients", archive.groups))
        facts += [(name, f"{len(names):,}") for name, names in known if names]
    if evidence is not None:
        facts.append(("judged on", f"{evidence.split}, n = {len(evidence.rows):,}"))
    return facts


def _about(student: Student, seed: int) -> Section:
    config, record = student.config, student.training_record
    shape = {name: getattr(config, name) for name in ("block", "dim", "depth", "teacher_dropout")}
    rows = [
        ("teachers (dim)", ", ".join(f"{name} ({dim})" for name, dim in config.teachers.items())),
        ("classes", ", ".join(config.classes)),
        ("student", _listed(shape)),
    ]
    job = record.get("job")
    if isinstance(job, dict):
        options = {name: value for name, value in job.items() if name not in shape and name not in DIGESTS}
        rows.append(("training", _listed(options)))
        rows.append(("trained on", _listed({name: job[name] for name in DIGESTS if name in job})))
    versions = record.get("versions")
    if isinstance(versions, dict):
        rows.append(("trained with", ", ".join(f"{name} {version}" for name, version in versions.items())))
    rows.append(("report", f"shazam_fast {__version__}, seed {seed}"))
    table = Table(
        "Configuration of the student and of its training. Trained on: digests of the archive's content.",
        ("what", "value"),
        [cells(row) for row in rows],
        names=2,
    )
    return Section("about", "How it was made", [table])


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
