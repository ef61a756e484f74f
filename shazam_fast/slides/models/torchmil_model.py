"""Any model of torchmil (arXiv 2509.08129) that reads a bag's patches alone, by its name there."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ShazamError
from .pooling import PatchCodes, PatchEncoder, SlideModel, SlideOutput, Slides

AFTER_SOFTMAX = ("TransMIL",)  # models whose attention is not negative and sums to about 1
INSTALL = "torchmil's models are in the extra 'mil': pip install 'shazam_fast[mil]'"


class TorchmilModel(SlideModel):
    """h_p = ReLU(W x_p + b), then a model of torchmil with its own defaults on each slide's h by itself.

    torchmil's models have one output. A task with O outputs has O of them, each with its own parameters; two classes
    have one, y, with the logits (0, y). The outputs go through a last linear map, which begins as the identity. In
    training on classes, the losses of their own that they have beside the bag's (CLAM's and DSMIL's of instances,
    DTFD's of pseudo-bags) are added to the task's loss.

    The attention of a patch is the softmax of the value that torchmil gives it, or where that is attention after a
    softmax (TransMIL), its part in the slide's sum. Models that draw at random (DTFD) draw the same in every scoring.

    Args:
        name: of the class in `torchmil.models`, such as "TransMIL".
        dims, D, outputs: as for `SlideModel`.
        two_classes: whether the outputs are the logits of two classes.

    Raises ShazamError when torchmil is not installed, has no such model, or the model reads more than patches.
    """

    pools_by_attention = False

    def __init__(self, name: str, dims: Sequence[int], D: int, outputs: int, two_classes: bool) -> None:
        kind = find_model(name)
        super().__init__(dims, outputs, outputs, 0.0)
        self.two_classes, self.after_softmax = two_classes, name in AFTER_SOFTMAX
        self.takes_mask = "mask" in inspect.signature(kind.forward).parameters
        self.encoder = PatchEncoder(sum(dims), D)
        self.bag_models = nn.ModuleList([kind(in_shape=(D,)) for _ in range(1 if two_classes else outputs)])
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(outputs))
            self.head.bias.zero_()

    def encode(self, features: Tensor) -> PatchCodes:
        """As `SlideModel.encode`."""
        values = self.encoder(features, self.feature_mean, self.feature_scale)
        return PatchCodes(values, values.new_zeros(len(values)), None)

    def read(self, codes: PatchCodes, slides: Slides) -> SlideOutput:
        """As `SlideModel.read`, slide by slide; slides without patches have outputs of 0."""
        if self.training:
            with numpy_seeded(int(torch.randint(1 << 31, ()))):
                return self._read(codes, slides)
        here = slides.segments
        with torch.random.fork_rng(devices=[here.device] if here.is_cuda else []), numpy_seeded(0):
            torch.manual_seed(0)
            return self._read(codes, replace(slides, labels=None))

    def _read(self, codes: PatchCodes, slides: Slides) -> SlideOutput:
        segments, count, labels = slides.segments, slides.count, slides.labels
        models: list[Any] = list(self.bag_models)
        logits = codes.values.new_zeros(count, len(models))
        attention = torch.zeros_like(codes.scores)
        own_losses = codes.values.new_zeros(())
        for slide in range(count):
            own = (segments == slide).nonzero()[:, 0]
            for column, model in enumerate(models if len(own) else ()):
                bag = {"X": codes.values[own][None]}  # [1, n, D]
                if self.takes_mask:
                    bag["mask"] = torch.ones_like(bag["X"][:, :, 0], dtype=torch.bool)
                if not self.training:
                    output, of_patches = model.predict(**bag, return_inst_pred=True)
                    attention[own] += self._parts(of_patches.reshape(-1)) / len(models)
                elif labels is None or labels[slide] < 0:
                    output = model.predict(**bag, return_inst_pred=False)
                else:
                    is_this = labels[slide] == (1 if self.two_classes else column)
                    output, losses = model.compute_loss(is_this.float()[None], **bag)
                    own_losses = own_losses + sum(auxiliary(model, losses))
                logits[slide, column] = output.reshape(())
        if self.two_classes:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return SlideOutput(self.head(logits), attention, None, None, own_losses if self.training else None)

    def _parts(self, values: Tensor) -> Tensor:
        """Patches' values [n] as parts that sum to 1."""
        return values / values.sum() if self.after_softmax else values.softmax(dim=0)


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator, which torchmil's DTFDMIL draws from, at a seed; as it was afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def find_model(name: str) -> Any:
    """The class of a model of torchmil.

    Raises ShazamError when torchmil is not installed, has no such model, or the model reads more than patches.
    """
    try:
        from torchmil import models
    except ImportError as error:
        raise ShazamError(f"model 'torchmil:{name}': {INSTALL} ({error})") from None
    usable = [other for other, kind in vars(models).items() if inspect.isclass(kind) and reads_patches_alone(kind)]
    if name not in usable:
        reason = "reads positions or other things beside patches" if hasattr(models, name) else "is not in torchmil"
        raise ShazamError(f"model 'torchmil:{name}': {name} {reason}; one of {', '.join(sorted(usable))} expected")
    return getattr(models, name)


def reads_patches_alone(kind: Any) -> bool:
    """Whether a class of torchmil is built from `in_shape` and called with `X`, without anything else."""
    if not hasattr(kind, "compute_loss") or "in_shape" not in inspect.signature(kind).parameters:
        return False
    needed = [
        {p.name for p in inspect.signature(made).parameters.values() if p.default is p.empty}
        - {"self", "args", "kwargs"}
        for made in (kind, kind.forward, kind.compute_loss)
    ]
    return needed[0] <= {"in_shape"} and needed[1] <= {"X"} and needed[2] <= {"Y", "X"}


def auxiliary(model: nn.Module, losses: dict[str, Tensor]) -> list[Tensor]:
    """The losses of a model of torchmil beside that of its bag, which is named after its criterion."""
    main = type(model.criterion).__name__  # as torchmil names it
    return [loss for name, loss in losses.items() if name not in (main, f"{main}_t1")]
