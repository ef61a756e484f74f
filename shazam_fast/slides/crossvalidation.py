"""Training a slide's student by cross-validation over patients.

The patients are dealt into folds, classes (or observed events) in proportion. In turn each fold is the test, the next
one the validation by which the epoch is chosen, and the others are trained on: selection never sees the test fold. The
student is the mean of the folds' models.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from .. import __version__
from ..archive.opening import ArchiveLike
from ..errors import MismatchError
from ..runtime.checks import require_path
from ..runtime.devices import describe_device
from ..runtime.files import writing
from ..runtime.jobs.foreign import require_same_job
from ..runtime.jobs.locks import require_writable
from ..runtime.jobs.part_directory import PartDirectory, PartRecord
from .cohort.curves import SurvivalCurves, survival_curves
from .cohort.metrics import Drawn, Predictions, SlideMetrics, measure
from .cohort.requests import Request, Source
from .cohort.targets import SurvivalTargets, Targets, take
from .fitting import fit
from .losses import read_outputs
from .models.inference import predict
from .models.pooling import SlideModel
from .options import SlideConfig
from .scores import SlideScores
from .selecting.selection import SelectionLike
from .slide_teachers.reading import SlideTeachersLike
from .students import CARD, SlideStudent, encode_card, load, read_member
from .work import Work, plan_work


@dataclass(frozen=True)
class SlideTraining:
    """A trained slide's student, and what its cross-validation found.

    Attributes:
        student: the mean of the folds' models.
        metrics: of all slides with a target, each predicted by the model that was not trained on its patient.
        predictions: these predictions, a row per slide; `folds` says in which fold each was tested.
        history: per fold, one record per epoch: "epoch", "loss", "val_loss", "seconds".
        targets: what the predictions are compared with, in their order.
        drawn: the metrics for every draw of patients, for differences between models.

    >>> SlideTraining.__dataclass_fields__.keys() >= {"student", "metrics"}
    True
    """

    student: SlideStudent
    metrics: SlideMetrics
    predictions: SlideScores
    history: list[list[dict[str, Any]]]
    targets: Targets
    drawn: Drawn

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {
            "metrics": self.metrics.to_dict(),
            "predictions": self.predictions.to_dict(),
            "history": self.history,
            "config": asdict(self.student.config),
        }

    def survival_curves(self, groups: int = 2) -> SurvivalCurves:
        """Kaplan-Meier curves of the patients, grouped by their predicted risk within folds, and the log-rank test.

        Args:
            groups: number of groups.

        Raises MismatchError when the task is not survival, or there are too few patients; ShazamError when statsmodels
        is missing.
        """
        if not isinstance(self.targets, SurvivalTargets):
            raise MismatchError("survival curves: a student of survival expected, trained with sf.slides.Survival(...)")
        found = self.predictions
        assert found.folds is not None
        return survival_curves(found.values[:, 0], found.folds, found.patients, self.targets, groups)


# Over 40 lines: every option is documented here.
def train(
    archive: ArchiveLike,
    targets: Request | Source,
    *,
    model: str = "shazam_abmil",
    folds: int | str = 5,
    by: str = "slide",
    loss: str = "nll",
    sites: str | None = None,
    protocol: str = "held_out",
    selection: SelectionLike = None,
    slide_teachers: SlideTeachersLike | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    **options: Any,
) -> SlideTraining:
    """Train a slide's student, and measure it on slides of patients that it has not seen.

    Args:
        archive: an archive or its path; needs slides. Its groups are the patients; else the table's column of patients
            is used; else every slide counts as a patient of its own.
        targets: a table with labels of slides or patients (see `sf.slides.Classes` for others), {slide: label},
            `sf.slides.Regression(...)` or `sf.slides.Survival(...)`.
        model: "mean", "max", "abmil", "gated_abmil", "shazam_abmil", which fuses the teachers of every patch first, or
            "fusecpath", which needs a selection; see `SlideConfig`.
        folds: number of folds, 3 or more; or the column of the targets' table that says each slide's fold.
        by: "slide", or "patient" to join the slides of a patient in one bag.
        loss: of survival: "nll" (discrete times) or "cox" (partial likelihood over the slides of a step).
        sites: the column of the targets' table that holds the site (hospital, scanner) of each slide. All patients of a
            site are then in one fold, so that a model cannot score well by recognising the site.
        protocol: "held_out": each fold is tested by a model whose epoch another fold has chosen. "reported_folds": the
            tested fold chooses the epoch itself, as FuseCPath (arXiv 2510.27237) and others report it; the metrics are
            too good and are marked so.
        selection: train on selected patches alone, see `sf.slides.select`.
        slide_teachers: features of slide-level teachers: a directory of TRIDENT or AtlasPatch, or {teacher: directory}.
            "slide_linear" reads them; other models are distilled from them (FuseCPath) and do without them afterwards.
        out: directory for the student. After an interruption, run the same call again: finished folds are kept.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.
        options: `dim`, `depth`, `dropout`, `top_k` (see `SlideConfig`), and `epochs`, `batch_size`, `patches`, `lr`,
            `weight_decay`, `patience`, `seed`, `distillation`, `temperature`, `kl`, `supervise_teachers`, `precision`
            (see `FitOptions`).

    Returns the student with metrics, predictions and history.

    Raises:
        ShazamError: an unknown option or one out of range; a device that is not there; `out` cannot be written.
        ArchiveError: the archive, the table, or what `out` holds, is missing or damaged.
        MismatchError: no slide has a target, targets contradict each other, a class has fewer patients than folds, no
            event was observed, a patient is in two folds or of two sites, or `out` holds another training.
        NonFiniteError: a NaN or infinite feature (names teacher and row) or loss.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> labels = {f"s{i}": "lusc" if i % 2 else "luad" for i in range(12)}
    >>> slides = np.repeat(list(labels), 4)
    >>> features = {"uni": np.random.default_rng(0).normal(size=(48, 8)) + (slides[:, None] > "s5")}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=slides)
    >>> result = train(path, labels, folds=3, epochs=2, dim=8, device="cpu")
    >>> result.metrics.n_slides, sorted(result.metrics.values)
    (12, ['auroc', 'balanced_accuracy', 'log_loss', 'weighted_f1'])
    """
    folder = None if out is None else require_path("out", out)
    if folder is not None:
        require_writable(folder)
    work = plan_work(
        archive, targets, model=model, folds=folds, by=by, loss=loss, sites=sites, protocol=protocol,
        selection=selection, slide_teachers=slide_teachers, device=device, options=options,
    )  # fmt: skip
    return run_work(work, folder)


def run_work(work: Work, folder: Path | None) -> SlideTraining:
    """Train all folds; in a directory, those that are missing there."""
    if folder is None:
        return _finish(work, [_run_fold(work, number) for number in range(work.count)])
    return _train_into(folder, work)


@dataclass(frozen=True)
class _Done:
    """A fitted fold: its model, its history, and its scores of the test bags."""

    model: SlideModel
    history: list[dict[str, Any]]
    scores: NDArray[np.float64]


def _run_fold(work: Work, number: int) -> _Done:
    fold = work.fold(number)
    options = replace(work.options, seed=_seed_of(work.options.seed, number))
    name = f"fold {number + 1} of {work.count}"
    model, history = fit(work.bags, work.targets, fold, work.config, options, work.device, name)
    outputs = predict([model.to(work.device)], work.bags, fold.test, work.device)[0]
    scores = read_outputs(work.config, outputs).double().cpu().numpy()
    return _Done(model.cpu(), history, scores)


def _train_into(folder: Path, work: Work) -> SlideTraining:
    """Train the folds that are missing in a directory, a part for each, then write the card."""
    parts = PartDirectory(folder, work.job(), count=work.count, suffix=".safetensors", manifest=CARD)
    parts.complete(partial(_train_missing, parts, work))
    student = load(folder)
    require_same_job(folder, student.training_record.get("job"), parts.job)
    parts.tidy_after_kill()
    done = [
        _Done(model, history, np.array(scores, dtype=np.float64))
        for model, history, scores in zip(
            student.models, student.training_record["history"], student.training_record["scores"], strict=True
        )
    ]
    return _finish(work, done)


def _train_missing(parts: PartDirectory, work: Work) -> None:
    for number in parts.missing(range(parts.count)):
        done = _run_fold(work, number)
        notes: dict[str, Any] = {"history": done.history, "scores": done.scores.tolist()}
        parts.write_part(number, save(done.model.state_dict()), len(done.scores), notes)
    records = parts.records()
    files = [record.part for record in records if record.part is not None]
    result = _finish(work, [_from_record(parts.path, work.config, record) for record in records])
    about = {**result.student.training_record, "job": parts.job}
    with writing(parts.path):
        parts.publish(encode_card(work.config, files, about))


def _from_record(folder: Path, config: SlideConfig, record: PartRecord) -> _Done:
    assert record.part is not None
    model = read_member(folder, config, record.part)
    return _Done(model, record.notes["history"], np.array(record.notes["scores"], dtype=np.float64))


def _finish(work: Work, done: list[_Done]) -> SlideTraining:
    """The result of all folds."""
    bags, targets = work.bags, work.targets
    tested = np.concatenate([work.fold(number).test for number in range(work.count)])
    order = np.argsort(tested)
    chosen, scores = tested[order], np.concatenate([one.scores for one in done])[order]
    by_fold = [targets.constant(work.fold(number).train) for number in range(work.count)]
    constant = None if by_fold[0] is None else np.stack([one for one in by_fold if one is not None])[work.folds[chosen]]
    patients = np.array([bags.patients[bag] for bag in chosen.tolist()])
    _, codes = np.unique(patients, return_inverse=True)
    known = take(targets, chosen)
    drawn = measure(Predictions(scores, work.folds[chosen], codes, constant), known, work.options.seed)
    metrics = drawn.summary(work.protocol == "reported_folds")
    student = SlideStudent(work.config, [one.model for one in done]).eval()
    of_all = targets.constant(chosen)
    student.training_record = {
        "metrics": metrics.to_dict(),
        "history": [one.history for one in done],
        "scores": [one.scores.tolist() for one in done],
        "constant": None if of_all is None else of_all.tolist(),
        "archive": bags.archive.path.name,
        "slides": {"train": bags.slide_names(chosen)},
        "device": describe_device(work.device),
        "versions": {"shazam_fast": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }
    predictions = SlideScores(
        names=tuple(bags.names[bag] for bag in chosen.tolist()),
        patients=tuple(patients.tolist()),
        n_patches=bags.sizes[chosen],
        classes=tuple(work.config.classes),
        values=scores,
        teachers=tuple(work.config.teachers),
        folds=work.folds[chosen],
        targets=work.config.targets,
    )
    return SlideTraining(student, metrics, predictions, [one.history for one in done], known, drawn)


def _seed_of(seed: int, number: int) -> int:
    """A seed of its own for each fold, reproducible."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
