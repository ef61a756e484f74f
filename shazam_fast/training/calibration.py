"""Temperature scaling (Guo et al., 2017): one number that makes a student's probabilities as sure as they are right.

The logits are divided by it. As they come from linear layers, it goes into those layers: a calibrated student is a
student like any other, folded, scored, averaged and saved without knowing of it. Its record says the temperature.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike
from ..errors import MismatchError
from ..runtime.summaries import counted
from ..scoring.evaluate import open_labelled, slides_of
from ..scoring.inference import ArchiveForm, infer, match_teachers, require_finite_results
from ..scoring.metrics import compute_metrics
from ..student.ensemble import Ensemble
from ..student.saving.seen import seen_slides
from ..student.student import Student

LEAST, MOST = 0.05, 20.0  # temperatures; a best one outside says that the split is too easy, or the student guesses
BATCH_ROWS = 2048

Array = NDArray[np.float64]


# Over 40 lines: every option is documented here.
def calibrate(
    student: Student | str | Path, archive: ArchiveLike, split: str = "val", *, device: str | None = None
) -> Student:
    """A copy of a student whose probabilities are calibrated: its logits are divided by a temperature.

    The temperature minimises the cross-entropy of a labelled split that the student was not trained on. Predicted
    classes, fused features and shares stay as they are. `training_record["calibration"]` says the temperature, and
    cross-entropy and calibration error on the split before and after.

    Args:
        student: a student, an ensemble (all members get the temperature that suits their mean), or where it was saved.
        archive: an archive or its path, with labels and splits.
        split: "val"; another if the student was trained on other patches.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.

    Returns the calibrated student, on the CPU; save it with `save`.

    Raises:
        MismatchError: as for `evaluate`, and for slides that the student was trained on; no temperature from 0.05 to 20
            is the best, as on a split without any wrong prediction.
        ShazamError, ArchiveError, NonFiniteError: as for `evaluate`.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels, splits = np.arange(160) % 2, np.repeat(["train", "val", "test", "train"], 40)
    >>> features = {"uni": np.random.default_rng(0).normal(size=(160, 8)) + labels[:, None]}
    >>> archive = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels, splits=splits)
    >>> student = sf.train(archive, epochs=2, dim=8, depth=1, batch_size=8, device="cpu").student
    >>> sorted(sf.calibrate(student, archive, device="cpu").training_record["calibration"])
    ['calibration_error', 'cross_entropy', 'n_rows', 'split', 'temperature']
    """
    place, student, archive, rows = open_labelled(student, archive, split, device)
    if trained := seen_slides(student.training_record, slides_of(archive, rows), ["train"]):
        raise MismatchError(
            f"{archive.path}: split {split!r} has {counted(len(trained), 'slide')} that the student was trained on; "
            f"the first is {trained[0]!r}. On these it is surer than on others: calibrate on the training's 'val'"
        )
    calibrated = copy.deepcopy(student).cpu().eval()
    members = calibrated.students if isinstance(calibrated, Ensemble) else [calibrated]
    logits = [_logits(member, archive, rows, place) for member in members]
    labels = archive.labels[rows]
    temperature = _best_temperature(logits, labels)
    wrong = int((_mean(logits, 1.0).argmax(axis=1) != labels).sum())
    if wrong == 0 or not LEAST * 1.01 < temperature < MOST / 1.01:
        raise MismatchError(
            f"{archive.path}: no temperature from {LEAST} to {MOST:.0f} calibrates the student on split {split!r} "
            f"({counted(len(rows), 'patch')}, {wrong:,} predicted wrong); use a split with more patches"
        )
    for member in members:
        _cool(member, temperature)
    classes, before, after = tuple(student.config.classes), _mean(logits, 1.0), _mean(logits, temperature)
    errors = [compute_metrics(probabilities, labels, classes).calibration_error for probabilities in (before, after)]
    earlier = student.training_record.get("calibration", {}).get("temperature", 1.0)
    calibrated.training_record["calibration"] = {
        "temperature": earlier * temperature,
        "split": split,
        "n_rows": len(rows),
        "cross_entropy": [_cross_entropy(logits, labels, t) for t in (1.0, temperature)],
        "calibration_error": errors,
    }
    return calibrated


def _logits(student: Student, archive: FeatureArchive, rows: NDArray[np.int64], device: torch.device) -> Array:
    """Of the given rows, float64 [n, C]."""
    form = ArchiveForm(copy.deepcopy(student).to(device), match_teachers(student, archive))
    batches = ((0, torch.from_numpy(batch.features)) for batch in archive.stream(rows, BATCH_ROWS))
    found: Array = np.concatenate([output.logits.double().cpu().numpy() for _, output in infer(form, batches)])
    require_finite_results(archive, rows, found.sum(axis=1))
    return found


def _mean(logits: Sequence[Array], temperature: float) -> Array:
    """Mean of the members' probabilities, float64 [n, C]."""
    members = [torch.from_numpy(one / temperature).softmax(dim=1) for one in logits]
    mean: Array = torch.stack(members).mean(dim=0).numpy()
    return mean


def _cross_entropy(logits: Sequence[Array], labels: NDArray[np.int64], temperature: float) -> float:
    """Mean over the patches, in nats, of the mean of the members' probabilities."""
    logs = torch.stack([torch.from_numpy(one / temperature).log_softmax(dim=1) for one in logits])  # [S, n, C]
    right = logs[:, torch.arange(len(labels)), torch.from_numpy(labels)]  # [S, n]
    return float(math.log(len(logits)) - right.logsumexp(dim=0).mean())


def _best_temperature(logits: Sequence[Array], labels: NDArray[np.int64]) -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: _cross_entropy(logits, labels, math.exp(log)),
        bounds=(math.log(LEAST), math.log(MOST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


@torch.no_grad()
def _cool(student: Student, temperature: float) -> None:
    """Divide the student's logits by the temperature."""
    for layer in (student.head[-1], student.teacher_heads):
        for parameter in () if layer is None else layer.parameters():
            parameter.div_(temperature)
