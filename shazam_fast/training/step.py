"""One step of training: batch, forward, losses, gradients, AdamW; on a GPU one CUDA graph.

A step is nine to twenty kernels where `fused` applies, else some fifty to hundred small operations; the GPU
finishes them sooner than Python can launch them. Captured once, it is replayed with a single launch and asks nothing of
the host: rows come from the epoch's order by a counter on the device, losses go to a row of a table there.
"""

import logging
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..ops.training_step import compile_kernels
from ..student.student import Student
from .feed import TrainingFeed
from .fused import make_fused_step
from .objective import Objective
from .plan import EpochPlan

logger = logging.getLogger("shazam_fast")

WARM_UPS = 3  # steps before a CUDA graph is captured


class TrainingStep:
    """Steps over a feed, each leaving its losses [total, cross-entropy, cosine per teacher, Huber per teacher].

    Behind them, with teacher heads, the cross-entropy of each teacher's head.

    Args:
        student: the student to train, on the device of `losses`.
        optimizer: of its parameters; its learning rate is a tensor where plans set one for each step.
        objective: what is minimised.
        feed: the batches.
        losses: [steps of an epoch, terms], on the student's device.
        feature_dropout: the fraction of columns that plans leave out; those kept are divided by 1 minus it.
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        feed: TrainingFeed,
        losses: Tensor,
        feature_dropout: float = 0.0,
    ) -> None:
        self._student, self._optimizer, self._objective = student, optimizer, objective
        self._feed, self._losses, self._kept_fraction = feed, losses, 1.0 - feature_dropout
        self._index = torch.zeros(1, dtype=torch.int64, device=losses.device)
        self._plan: dict[str, Tensor] = {}  # tensors that keep their place on the device from epoch to epoch
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self._step: Callable[[int], None] | None = None  # chosen before the first step

    def begin(self, plan: EpochPlan, step: int) -> None:
        """Start or continue an epoch at `step`; every plan has the same parts."""
        self._feed.begin(plan.order, step, plan.window)
        self._index.fill_(step)
        for name, values in (
            ("present", plan.present),
            ("kept", plan.kept),
            ("mixtures", plan.mixtures),
            ("rates", plan.rates),
        ):
            if values is None:
                continue
            if name not in self._plan:
                self._plan[name] = torch.empty_like(torch.from_numpy(values), device=self._losses.device)
            self._plan[name].copy_(torch.from_numpy(values))

    def run(self, size: int) -> None:
        """One step over the next `size` patches. On a GPU it is only enqueued."""
        self._feed.fetch()
        if self._losses.device.type != "cuda":
            self._compute(size)
            return
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        graph = self._graphs[size]
        if graph is None:
            self._compute(size)
        else:
            graph.replay()

    def _compute(self, size: int) -> None:
        self._chosen_step()(size)

    def _chosen_step(self) -> Callable[[int], None]:
        if self._step is None:
            parts = self._student, self._optimizer, self._objective, self._feed, self._losses, self._index, self._plan
            self._step = make_fused_step(*parts, self._kept_fraction) or self._differentiate
        return self._step

    def _differentiate(self, size: int) -> None:
        """A step by autograd and the optimizer: what `make_fused_step` is held to."""
        features, rows, labels, positions = self._feed.take(size)
        present = self._plan["present"].index_select(0, positions) if "present" in self._plan else None
        mixture = self._plan["mixtures"].index_select(0, self._index) if "mixtures" in self._plan else None
        losses = self._objective(self._student, features, labels, present, rows, self._scale(), mixture)
        self._optimizer.zero_grad()
        losses.total.backward()
        if "rates" in self._plan:
            for group in self._optimizer.param_groups:
                group["lr"].copy_(self._plan["rates"].index_select(0, self._index)[0])
        self._optimizer.step()
        terms = torch.cat([losses.total[None], losses.cross_entropy[None], losses.cosine, losses.huber, losses.heads])
        self._losses.index_copy_(0, self._index, terms.detach()[None])
        self._index += 1

    def _scale(self) -> Tensor | None:
        """What this step divides the features by, infinity for the columns that it leaves out; None: as always."""
        if "kept" not in self._plan:
            return None
        kept = self._plan["kept"]
        mask = kept.index_select(0, self._index % len(kept))[0]
        return torch.where(mask, self._student.feature_scale * self._kept_fraction, torch.inf)

    def _capture(self, size: int) -> torch.cuda.CUDAGraph | None:
        """The graph of a step; None, with a warning, where it cannot be captured."""
        with torch.cuda.device(self._losses.device):  # capturing synchronises the current one, which must be no other
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
                self._warm_up(size)
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:  # on the stream where libraries have their workspaces by now; other threads may go on allocating
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self._compute(size)
            except RuntimeError as error:
                logger.warning("no CUDA graph could be made of a step, which is then slower: %s", error)
                return None
        return graph

    def _warm_up(self, size: int) -> None:
        """Steps whose results are undone; they compile kernels and allocate workspaces and the optimizer's moments."""
        before = [(tensor, tensor.clone()) for tensor in self._state()]
        if (step := self._chosen_step()) != self._differentiate:
            compile_kernels(partial(step, size))
        for _ in range(WARM_UPS):
            self._compute(size)
            for tensor in self._state():
                tensor.zero_()  # moments that were not there before
            for tensor, value in before:
                tensor.copy_(value)

    def _state(self) -> list[Tensor]:
        """Everything that a step changes."""
        moments = [value for state in self._optimizer.state.values() for value in state.values()]
        parameters = [p.detach() for group in self._optimizer.param_groups for p in group["params"]]
        return [*parameters, *moments, self._losses, self._index, *self._feed.state]
