"""Features on their way into training: their statistics, and batches on the training device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .archive import FeatureArchive
from .progress import Progress

RESIDENT_SHARE = 0.6  # of the free device memory that the training split may take


def feature_statistics(archive: FeatureArchive, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column over the given rows, float32 [width] each.

    Accumulated in float64 around the first batch's mean; a constant column gets scale 1.
    Raises NonFiniteError naming the teacher and the row of the first NaN or infinity.
    """
    total = torch.zeros(archive.width, dtype=torch.float64)
    squares = torch.zeros_like(total)
    shift: Tensor | None = None
    with Progress("reading features", len(rows), "patches") as progress:
        for batch in archive.stream(rows):
            x = torch.from_numpy(batch.features).double()
            shift = x.mean(dim=0) if shift is None else shift
            x -= shift
            total += x.sum(dim=0)
            if not torch.isfinite(total).all():
                archive.require_finite(batch.rows, batch.features)
            squares += x.square_().sum(dim=0)
            progress.advance(len(batch.rows))
    assert shift is not None
    mean = total / len(rows)
    scale = (squares / len(rows) - mean.square()).clamp_min(0.0).sqrt()
    mean += shift
    constant = scale <= 1e-12 * mean.abs()  # what rounding leaves of a constant column
    return mean.float(), torch.where(constant, 1.0, scale).float()


class Feed:
    """Batches of chosen rows as float32 on a device.

    On a GPU the features stay resident in their stored dtype where they fit; otherwise, and on the CPU, every batch
    is gathered from the memory map.
    """

    def __init__(self, archive: FeatureArchive, rows: NDArray[np.int64], device: torch.device) -> None:
        self._archive, self._rows, self._device = archive, rows, device
        self._labels = torch.from_numpy(archive.labels[rows]).to(device)
        self._resident = self._load() if self._fits() else None

    def batch(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features [B, width] and labels [B] of the rows at the given positions of this feed."""
        index = torch.from_numpy(positions).to(self._device)
        if self._resident is not None:
            features = self._resident.index_select(0, index).float()
        else:
            gathered = torch.empty(len(positions), self._archive.width)
            self._archive.gather(self._rows[positions], out=gathered.numpy())
            features = gathered.to(self._device)
        return features, self._labels.index_select(0, index)

    def _fits(self) -> bool:
        if self._device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self._device)
        return len(self._rows) * self._archive.row_bytes < RESIDENT_SHARE * free

    def _load(self) -> Tensor:
        dtype: torch.dtype = getattr(torch, self._archive.dtype)
        resident = torch.empty(len(self._rows), self._archive.width, dtype=dtype, device=self._device)
        for start in range(0, len(self._rows), 16384):
            rows = self._rows[start : start + 16384]
            chunk = torch.empty(len(rows), self._archive.width, dtype=dtype)
            raw = chunk.view(torch.uint16) if dtype == torch.bfloat16 else chunk
            self._archive.gather(rows, out=raw.numpy())
            resident[start : start + len(rows)] = chunk.to(self._device)
        return resident
