"""Running models over whole slides: patches are encoded chunk by chunk and pooled once.

Memory holds the features of a chunk, and of the patches of a few slides (of one, where it is large) their scores and
shares. Models that need all patches of a slide at once, "max", "fusecpath" and torchmil's, hold D numbers of each.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...errors import NonFiniteError
from ..bags import Bags
from .packs import round_up
from .pooling import PatchCodes, SlideModel, SlideOutput, Slides
from .regions import Regions, measure_room, tabulate
from .streaming import Collected

CHUNK_ROWS = 2048  # patches that are encoded at once
STEP_ROWS = 256  # multiples of which are encoded, with zeros at the end: oneDNN compiles its products for each number
TOO_LARGE = "the model's values are not finite: its features are too large for float32; scale them"
GROUP_ROWS = 8192  # patches of slides that are pooled at once, more where one slide has more


class Group(NamedTuple):
    """Some bags that were read together.

    Args:
        bags: int64 [n], their numbers.
        rows: int64 [P], rows of the archive.
        segments: int64 [P], which of the n bags each is of.
        outputs: one per model.
    """

    bags: NDArray[np.int64]
    rows: NDArray[np.int64]
    segments: NDArray[np.int64]
    outputs: list[SlideOutput]


@torch.no_grad()
def walk(models: Sequence[SlideModel], bags: Bags, chosen: NDArray[np.int64], device: torch.device) -> Iterator[Group]:
    """Run models over all patches of chosen bags.

    Args:
        models: in evaluation mode, on the device.
        bags: the bags.
        chosen: int64 [n], numbers of the bags.
        device: where the models are.

    Yields groups of bags, in the order of `chosen`. Raises NonFiniteError for NaN or infinity, naming the first row, or
    the first bag where only the model's outputs are.
    """
    for members in _group(bags.sizes[chosen]):
        numbers = chosen[members]
        rows = np.concatenate([bags.rows_of(bag) for bag in numbers.tolist()])
        segments = np.repeat(np.arange(len(numbers)), bags.sizes[numbers])
        places = torch.from_numpy(segments).to(device)
        regions = _regions(bags, numbers).to(device) if models[0].needs_regions else None
        of_slides = None if bags.slide_features is None else torch.from_numpy(bags.slide_features[numbers]).to(device)
        slides = Slides(places, len(numbers), regions, of_slides)
        outputs = [collected.read() for collected in _encode(models, bags, rows, slides)]
        if models[0].reads_patches:
            _require_finite(bags, numbers, outputs)
        yield Group(numbers, rows, segments, outputs)


def _encode(models: Sequence[SlideModel], bags: Bags, rows: NDArray[np.int64], slides: Slides) -> list[Collected]:
    """What each model makes of the patches of some slides, read chunk by chunk."""
    device = slides.segments.device
    collected = [Collected(model, slides) for model in models]
    if not models[0].reads_patches:
        for model, own in zip(models, collected, strict=True):
            own.add(model.encode(torch.empty(len(rows), 0, device=device)))
        return collected
    for batch in bags.archive.stream(rows, CHUNK_ROWS):
        features, count = torch.from_numpy(batch.features).to(device), len(batch.rows)
        if spare := round_up(count, STEP_ROWS) - count:
            features = F.pad(features, (0, 0, 0, spare))
        for model, own in zip(models, collected, strict=True):
            codes = _first(model.encode(features), count)
            finite = torch.isfinite(codes.values).all(dim=1)
            if not finite.all():
                bags.archive.require_finite(batch.rows, batch.features)
                raise NonFiniteError(f"{bags.archive.path}: row {batch.rows[int(finite.int().argmin())]}: {TOO_LARGE}")
            own.add(codes)
    return collected


def _require_finite(bags: Bags, numbers: NDArray[np.int64], outputs: Sequence[SlideOutput]) -> None:
    for output in outputs:
        finite = torch.isfinite(output.outputs).all(dim=1)
        if not finite.all():
            bag = bags.names[numbers[int(finite.int().argmin())]]
            raise NonFiniteError(f"{bags.archive.path}: {bag!r}: {TOO_LARGE}")


def _first(codes: PatchCodes, count: int) -> PatchCodes:
    shares = None if codes.shares is None else codes.shares[:count]
    return PatchCodes(codes.values[:count], codes.scores[:count], shares)


def predict(models: Sequence[SlideModel], bags: Bags, chosen: NDArray[np.int64], device: torch.device) -> list[Tensor]:
    """Outputs [n, O] of each model for chosen bags; arguments as for `walk`."""
    groups = [group.outputs for group in walk(models, bags, chosen, device)]
    return [torch.cat([outputs[i].outputs for outputs in groups]) for i in range(len(models))]


def _group(sizes: NDArray[np.int64]) -> Iterator[slice]:
    """Ranges of bags with about GROUP_ROWS patches."""
    start, rows = 0, 0
    for index, size in enumerate(sizes.tolist()):
        if rows and rows + size > GROUP_ROWS:
            yield slice(start, index)
            start, rows = index, 0
        rows += size
    if rows:
        yield slice(start, len(sizes))


def _regions(bags: Bags, numbers: NDArray[np.int64]) -> Regions:
    codes = [bags.regions_of(bag, bags.rows_of(bag)) for bag in numbers.tolist()]
    return tabulate(codes, sum(map(len, codes)), len(numbers), measure_room(codes))
