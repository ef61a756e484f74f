"""The student on the validation split after every epoch: what the best epoch is chosen by."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..archive.archive import FeatureArchive
from ..scoring.inference import ArchiveForm, infer, match_teachers, require_finite_results
from ..scoring.metrics import calibration_error, confusion_matrix, selection_metrics, selection_score
from ..student.student import Student
from .feed import resident_features

RESIDENT_ROWS = 16384  # rows at a time of features that are on the GPU
STREAMED_ROWS = 2048  # rows at a time of features that come from the disk


class Validation:
    """Validates students on the rows of a split; on a GPU the features stay there if they fit.

    Args:
        archive: where the features are.
        rows: the labelled rows of the validation split, int64 [n].
        device: where the student computes.
        class_weights: float64 [C]; then the selection score is the accuracy with patches weighted by their class.
    """

    def __init__(
        self,
        archive: FeatureArchive,
        rows: NDArray[np.int64],
        device: torch.device,
        class_weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._archive, self._rows, self._device, self._class_weights = archive, rows, device, class_weights
        self._features = resident_features(archive, rows, device)

    def __call__(self, student: Student) -> dict[str, Any]:
        """Cross-entropy, calibration error, selection score with its parts; of a bare student the mean teacher shares.

        Raises NonFiniteError naming the teacher and the row of a NaN or infinite feature, or the row of a logit.
        """
        student.eval()
        form = ArchiveForm(student, match_teachers(student, self._archive))
        logits, shares = [], []
        for _, output in infer(form, self._batches()):
            logits.append(output.logits)
            if output.shares is not None:
                shares.append(output.shares)
        found = torch.cat(logits).cpu()  # [n, C]
        require_finite_results(self._archive, self._rows, found.sum(dim=1).numpy())
        return {
            **describe_validation(found, self._archive.labels[self._rows], self._class_weights),
            **(_describe_shares(torch.cat(shares), list(self._archive.teachers)) if shares else {}),
        }

    def _batches(self) -> Iterator[tuple[int, Tensor]]:
        """Position of the first row and features [B, width] on the device, batch after batch."""
        if self._features is not None:
            for start in range(0, len(self._rows), RESIDENT_ROWS):
                yield start, self._features[start : start + RESIDENT_ROWS]
            return
        start = 0
        for batch in self._archive.stream(self._rows, STREAMED_ROWS):
            yield start, torch.from_numpy(batch.features).to(self._device)
            start += len(batch.rows)


def describe_validation(
    logits: Tensor, labels: NDArray[np.int64], class_weights: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """What the record of an epoch says of its validation.

    Args:
        logits: float32 [n, C], on the CPU.
        labels: int64 [n].
        class_weights: float64 [C]; then the selection score is the accuracy with rows weighted by their class.

    Returns cross-entropy, calibration error, and the selection score with its parts.
    """
    confusion = confusion_matrix(labels, logits.argmax(dim=1).numpy(), logits.shape[1])
    balanced_accuracy, weighted_f1 = selection_metrics(confusion)
    return {
        "val_loss": float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))),
        "val_calibration_error": calibration_error(logits.softmax(dim=1).numpy(), labels),
        "val_score": _score(confusion, class_weights),
        "val_balanced_accuracy": balanced_accuracy,
        "val_weighted_f1": weighted_f1,
    }


def _score(confusion: NDArray[np.int64], class_weights: NDArray[np.float64] | None) -> float:
    """What the best epoch is chosen by, of the counts of true class (row) and predicted class [C, C]."""
    if class_weights is None:
        return selection_score(*selection_metrics(confusion))
    weighted = class_weights[:, None] * confusion
    return float(np.trace(weighted) / weighted.sum()) if weighted.any() else 0.0


def _describe_shares(shares: Tensor, teachers: list[str]) -> dict[str, Any]:
    """Mean share per teacher and mean entropy (nats) of shares [n, N]."""
    entropy = torch.special.entr(shares).sum(dim=1).mean()
    means = shares.mean(dim=0).tolist()
    return {"teacher_shares": dict(zip(teachers, means, strict=True)), "share_entropy": float(entropy)}
