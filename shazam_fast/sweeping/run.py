"""The training loop of students of one shape: each batch is read and standardised once for all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..archive.archive import FeatureArchive
from ..errors import NonFiniteError
from ..runtime.progress import Progress
from ..runtime.summaries import counted
from ..scoring.inference import require_finite_results
from ..scoring.metrics import Metrics, compute_metrics, confusion_matrix, selection_metrics, selection_score
from ..student.student import Student
from ..training.config import TrainConfig
from ..training.feed import TrainingFeed
from ..training.loop import new_student
from ..training.plan import EpochPlan, plan_epoch
from .lanes import Lanes
from .stacking import Batch, StackedTraining

VALIDATED_ROWS = 512  # rows of the validation split at a time


@dataclass
class Member:
    """One student of a sweep while it is trained.

    Attributes:
        student: the student; once the training is over, with the parameters of the epoch that is kept.
        name: its name in messages.
        history: one record per finished epoch.
        best: parameters of the epoch that is kept.
        probabilities: of that epoch on the validation split, float32 [n, C].
    """

    config: TrainConfig
    student: Student
    name: str
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    probabilities: NDArray[np.float32] | None = None

    @property
    def kept_epoch(self) -> int:
        """The epoch that is kept so far: the first with the highest validation score, or the last, as configured."""
        if self.config.selection == "last":
            return len(self.history) - 1
        scores = [record["val_score"] for record in self.history]
        return scores.index(max(scores))

    @property
    def finished(self) -> bool:
        """Whether the score has not improved for `patience` epochs, or all epochs are done."""
        epochs = len(self.history)
        return epochs >= self.config.epochs or epochs - 1 - self.kept_epoch >= self.config.patience

    def metrics(self, labels: NDArray[np.int64]) -> Metrics:
        """Metrics of the epoch that is kept, on the validation split, whose labels are given."""
        assert self.probabilities is not None
        return compute_metrics(self.probabilities, labels, tuple(self.student.config.classes))


class GroupRun:
    """The training of students of one shape.

    Args:
        archive: where the features and labels are.
        members: the students; apart from `grid.OWN`, their configurations are alike.
        device: where the students compute.
        rows: the labelled rows of "train" and "val", int64 each.
        standard: mean and scale of every column, [sum of dims] each.
        order_seed: seed of the order of patches and of all dropout.
    """

    def __init__(
        self,
        archive: FeatureArchive,
        members: Sequence[Member],
        device: torch.device,
        rows: dict[str, NDArray[np.int64]],
        standard: tuple[Tensor, Tensor],
        order_seed: int,
    ) -> None:
        first = members[0]
        self._archive, self._members, self._device, self._rows = archive, list(members), device, rows
        self._dims, self._dtype = first.student.dims, first.student.qkv.dtype
        self._mean, self._scale = (x.to(device, self._dtype) for x in standard)
        # The order and the masks are those of a training alone with this seed, the rates relative to each student's lr.
        self._shared = replace(first.config, seed=order_seed, lr=1.0)
        self._feed = TrainingFeed(archive, rows["train"], device, first.config.batch_size)
        self._epoch = 0

    def train(self, progress: Progress) -> None:
        """Train every student to its end and give it the parameters of the epoch that is kept.

        Raises NonFiniteError naming the student with a loss or a logit that is not finite.
        """
        with Lanes(self._device, len(self._members), self._shared.threads) as lanes:
            size = lanes.stacked
            parts = [self._members[start : start + size] for start in range(0, len(self._members), size)]
            stacks = [(part, self._stack(part)) for part in parts]
            while stacks:
                left = sum(len(part) for part, _ in stacks)
                note = f"epoch {self._epoch + 1}/{self._shared.epochs}, {counted(left, 'student')}"
                losses = self._train_epoch(lanes, [stack for _, stack in stacks], progress, note)
                self._validate(lanes, stacks, losses)
                self._epoch += 1
                stacks = [remaining for part, stack in stacks if (remaining := _remaining(part, stack))]
        for member in self._members:
            member.student.load_state_dict({**member.student.state_dict(), **member.best})
            member.student.eval()

    def _stack(self, members: Sequence[Member]) -> StackedTraining:
        counts = np.bincount(self._archive.labels[self._rows["train"]], minlength=len(self._archive.classes))
        prior = torch.from_numpy(counts / counts.sum()).log()
        offsets = torch.stack([member.config.balance * prior for member in members])
        students = [member.student for member in members]
        configs = [member.config for member in members]
        return StackedTraining(students, configs, offsets.to(self._device, self._dtype))

    def _train_epoch(
        self, lanes: Lanes, stacks: Sequence[StackedTraining], progress: Progress, note: str
    ) -> list[Tensor]:
        """All steps of an epoch. Returns every stack's mean losses [S, 2], total and cross-entropy."""
        n, most = len(self._rows["train"]), self._shared.batch_size
        plan = plan_epoch(self._shared, self._epoch, n, range(len(self._dims)), self._archive.width)
        self._feed.begin(plan.order, 0, plan.window)
        sums = [torch.zeros(len(stack.students), 2, device=self._device, dtype=self._dtype) for stack in stacks]
        for step in range(math.ceil(n / most)):
            size = min(most, n - step * most)
            batch, rate = self._batch(plan, step, size), 1.0 if plan.rates is None else float(plan.rates[step])
            found = lanes.map(lambda stack, b=batch, r=rate: stack.step(b, r), stacks)  # type: ignore[misc]
            for total, losses in zip(sums, found, strict=True):
                total.add_(losses, alpha=size / n)
            progress.advance(size, note)
        return sums

    def _batch(self, plan: EpochPlan, step: int, size: int) -> Batch:
        self._feed.fetch()
        features, rows, labels, positions = self._feed.take(size)
        features = features if rows is None else features[rows]
        present = None
        if plan.present is not None:
            present = torch.from_numpy(plan.present).to(self._device)[positions]
        scale = self._scale
        if plan.kept is not None:
            kept = torch.from_numpy(plan.kept[step % len(plan.kept)]).to(self._device)
            scale = torch.where(kept, scale * (1.0 - self._shared.feature_dropout), torch.inf)
        columns = self._columns(features, scale, present)
        frozen, dropped = self._shared.targets == "frozen", plan.kept is not None
        targets = self._columns(features, self._scale, present) if frozen and dropped else columns
        own = 1.0 if plan.mixtures is None else float(plan.mixtures[step])
        return Batch(columns, targets, labels, present, own)

    def _columns(self, features: Tensor, scale: Tensor, present: Tensor | None) -> list[Tensor]:
        """Standardised features [B, width] of each teacher, [B, dim]; 0 where it is missing."""
        parts = zip(*(x.split(self._dims, dim=-1) for x in (features, self._mean, scale)), strict=True)
        columns = [torch.sub(part.to(self._dtype), mean).div_(by) for part, mean, by in parts]
        if present is None:
            return columns
        return [x.masked_fill_(~there[:, None], 0.0) for x, there in zip(columns, present.unbind(1), strict=True)]

    def _validate(
        self, lanes: Lanes, stacks: Sequence[tuple[list[Member], StackedTraining]], losses: Sequence[Tensor]
    ) -> None:
        """Append a record of the epoch to every student's history; keep the parameters where it is the one to keep."""
        found: list[list[Tensor]] = [[] for _ in stacks]
        for batch in self._archive.stream(self._rows["val"], VALIDATED_ROWS):
            columns = self._columns(torch.from_numpy(batch.features).to(self._device), self._scale, None)
            parts = lanes.map(lambda pair, c=columns: pair[1].logits(c), stacks)  # type: ignore[misc]
            for whole, part in zip(found, parts, strict=True):
                whole.append(part)
        for (members, stack), parts, means in zip(stacks, found, losses, strict=True):
            logits, rows = torch.cat(parts, dim=1), means.tolist()  # [S, n, C]
            for index, member in enumerate(members):
                self._record(member, logits[index], rows[index])
                if member.kept_epoch == self._epoch:
                    member.best = stack.students.parameters_of(index)
                    member.probabilities = logits[index].softmax(dim=1).float().cpu().numpy()

    def _record(self, member: Member, logits: Tensor, losses: Sequence[float]) -> None:
        if not np.isfinite(losses).all():
            raise NonFiniteError(
                f"epoch {self._epoch}: the loss of {member.name} is not finite; lower its lr, or leave it out"
            )
        require_finite_results(self._archive, self._rows["val"], logits.sum(dim=1).cpu().numpy())
        labels, prediction = self._archive.labels[self._rows["val"]], logits.argmax(dim=1).cpu().numpy()
        scores = selection_metrics(confusion_matrix(labels, prediction, logits.shape[1]))
        member.history.append({
            "epoch": self._epoch, "loss": losses[0], "cross_entropy": losses[1], "val_score": selection_score(*scores),
            "val_balanced_accuracy": scores[0], "val_weighted_f1": scores[1],
        })  # fmt: skip


def make_member(
    archive: FeatureArchive, config: TrainConfig, device: torch.device, standard: tuple[Tensor, Tensor], name: str
) -> Member:
    """A student with its initial parameters, those of a training alone with the same seed, on the device."""
    student = new_student(archive, config)
    for buffer, values in zip((student.feature_mean, student.feature_scale), standard, strict=True):
        buffer.copy_(values)
    return Member(config, student.to(device).train(), name)


def _remaining(members: list[Member], stack: StackedTraining) -> tuple[list[Member], StackedTraining] | None:
    """The students that are not finished, and the stack of them alone; None when there is none."""
    kept = [index for index, member in enumerate(members) if not member.finished]
    if not kept:
        return None
    if len(kept) < len(members):
        stack.keep(kept)
    return [members[index] for index in kept], stack
