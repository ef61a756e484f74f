"""Four offline stand-ins for foundation models, so that the demo needs no download and no GPU.

None of them has learned anything: `texture`, `gradients` and `gabor` are the classical hand-made
descriptors, `random_conv` is a convolutional network with random weights. They differ in kind and in
dimension, as real teachers do, and that is all the demo asks of them. Each is a pure function of patches
at mean 0 and variance 1: float32 [n, s, s] -> float32 [n, d].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.nn import functional

FloatArray = NDArray[np.float32]
Teacher = Callable[[FloatArray], FloatArray]

CHUNK = 64  # patches at a time: keeps the intermediates in cache
COMPASS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # (dy, dx), in circle order
RADII = (1, 2, 3, 5)  # pixels, for binary patterns and for co-occurrence
GREY_LEVELS = 8  # of co-occurrence, over +-2 standard deviations
GRADIENT_SIGMAS, ANGLE_BINS, CELLS = (1.0, 2.0, 4.0), 18, 4  # pixels; over half a turn; cells per side
GABOR_WAVELENGTHS, GABOR_ANGLES = (4.0, 6.0, 9.0, 14.0), 6  # pixels; angles over half a turn
CONV_CHANNELS, CONV_SEED = (1, 16, 32, 64, 128), 20240229


def texture(pixels: FloatArray) -> FloatArray:
    """Local binary patterns and grey-level co-occurrence, at four radii each: [n, s, s] -> [n, 60]."""
    blocks = [np.concatenate([_binary_patterns(p), _co_occurrence(p)], axis=1) for p in _chunks(pixels)]
    return np.concatenate(blocks)


def gradients(pixels: FloatArray) -> FloatArray:
    """Histograms of oriented gradients at three scales, mean and spread over cells: [n, s, s] -> [n, 108]."""
    return np.concatenate([_oriented_gradients(p) for p in _chunks(pixels)])


def gabor(pixels: FloatArray) -> FloatArray:
    """Mean and spread of Gabor energy, 4 wavelengths x 6 angles: [n, s, s] -> [n, 48]."""
    bank = _gabor_bank(pixels.shape[1])  # [24, s, s], in the frequency domain
    blocks = []
    for patches in _chunks(pixels):
        spectrum = torch.fft.fft2(torch.from_numpy(patches))[:, None]  # [b, 1, s, s]
        energy = torch.fft.ifft2(spectrum * bank).abs()  # [b, 24, s, s]
        moments = torch.stack([energy.mean((2, 3)), energy.std((2, 3))], dim=1).numpy()  # [b, 2, 24]
        blocks.append(_turn_upright(moments.reshape(len(patches), -1, GABOR_ANGLES)))
    return np.concatenate(blocks)


def random_conv(pixels: FloatArray) -> FloatArray:
    """Pooled activations of a four-layer random network, always the same one: [n, s, s] -> [n, 256]."""
    weights = _random_weights()
    blocks = []
    with torch.inference_mode():
        for patches in _chunks(pixels):
            image = torch.from_numpy(patches)[:, None]  # [b, 1, s, s]
            views = [torch.rot90(v, k, (2, 3)) for v in (image, image.flip(3)) for k in range(4)]
            pooled = _pooled_activations(torch.cat(views), weights)  # [8 * b, 256]
            blocks.append(pooled.reshape(8, len(patches), -1).mean(0))  # over turns and mirrors
    return np.asarray(torch.cat(blocks).numpy(), dtype=np.float32)


TEACHERS: dict[str, Teacher] = {
    "texture": texture,
    "gradients": gradients,
    "gabor": gabor,
    "random_conv": random_conv,
}


def extract_demo_features(pixels: FloatArray) -> dict[str, FloatArray]:
    """Show the same patches, float32 [n, s, s], to every teacher: {teacher: float32 [n, d]}."""
    return {name: teacher(pixels) for name, teacher in TEACHERS.items()}


def _chunks(pixels: FloatArray) -> Iterator[FloatArray]:
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    return (pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK))


def _shifted(patches: NDArray[Any], dy: int, dx: int, border: int) -> NDArray[Any]:
    """View of the inner patch moved by (dy, dx), where `border` pixels are kept free on every side."""
    height, width = patches.shape[1:]
    return patches[:, border + dy : height - border + dy, border + dx : width - border + dx]


def _histogram(codes: NDArray[np.int64], bins: int) -> FloatArray:
    """Relative frequencies of integer codes per patch: [b, ...] in 0..bins-1 -> [b, bins]."""
    flat = codes.reshape(len(codes), -1) + bins * np.arange(len(codes))[:, None]
    counts = np.bincount(flat.ravel(), minlength=bins * len(codes)).reshape(-1, bins)
    return np.asarray(counts / flat.shape[1], dtype=np.float32)


def _binary_patterns(patches: FloatArray) -> FloatArray:
    """Rotation-invariant uniform binary patterns, one histogram of 10 bins per radius: [b, 40].

    Neighbours are taken on the square ring (Chebyshev distance), which needs no interpolation.
    """
    histograms = []
    for radius in RADII:
        centre = _shifted(patches, 0, 0, radius)
        ring = [_shifted(patches, radius * dy, radius * dx, radius) >= centre for dy, dx in COMPASS]
        changes = sum((a != b).astype(np.int64) for a, b in pairwise([*ring, ring[0]]))
        ones = sum(bit.astype(np.int64) for bit in ring)
        histograms.append(_histogram(np.where(changes <= 2, ones, 9), 10))
    return np.concatenate(histograms, axis=1)


def _co_occurrence(patches: FloatArray) -> FloatArray:
    """Five Haralick statistics of grey-level pairs, averaged over directions, per radius: [b, 20]."""
    grey = np.clip((patches + 2) * (GREY_LEVELS / 4), 0, GREY_LEVELS - 1).astype(np.int64)
    i, j = np.divmod(np.arange(GREY_LEVELS**2), GREY_LEVELS)
    statistics = []
    for radius in RADII:
        pairs = [
            GREY_LEVELS * _shifted(grey, 0, 0, radius) + _shifted(grey, radius * dy, radius * dx, radius)
            for dy, dx in COMPASS
        ]  # all eight directions: the matrix is symmetric
        p = np.mean([_histogram(pair, GREY_LEVELS**2) for pair in pairs], axis=0)  # [b, 64]
        centred = i - p @ i[:, None]  # [b, 64]
        covariance = (p * centred * (j - p @ j[:, None])).sum(1)
        variance = (p * centred**2).sum(1)
        statistics += [
            p @ np.abs(i - j),  # dissimilarity
            p @ (1 / (1 + (i - j) ** 2)),  # homogeneity
            (p**2).sum(1),  # energy
            -(p * np.log(p + 1e-12)).sum(1),  # entropy
            covariance / (variance + 1e-6),  # correlation
        ]
    return np.stack(statistics, axis=1).astype(np.float32)


def _turn_upright(by_angle: FloatArray) -> FloatArray:
    """Turn [b, m, angles] so that each patch's strongest angle comes first, and flatten: [b, m * angles].

    Tissue has no up: without this, the same gland seen from another side would look like another.
    """
    angles = by_angle.shape[2]
    order = by_angle.sum(axis=1).argmax(axis=1)[:, None] + np.arange(angles)  # [b, angles]
    turned = np.take_along_axis(by_angle, order[:, None] % angles, axis=2)
    return turned.reshape(len(turned), -1).astype(np.float32)


def _oriented_gradients(patches: FloatArray) -> FloatArray:
    """Gradient magnitude by unsigned angle, mean and spread over a 4 x 4 grid of cells: [b, 108]."""
    cell = np.arange(patches.shape[1]) * CELLS // patches.shape[1]
    cell = cell[:, None] * CELLS + cell + CELLS**2 * np.arange(len(patches))[:, None, None]  # [b, s, s]
    moments = []
    for sigma in GRADIENT_SIGMAS:
        dy = gaussian_filter(patches, (0, sigma, sigma), order=(0, 1, 0))
        dx = gaussian_filter(patches, (0, sigma, sigma), order=(0, 0, 1))
        turn = np.arctan2(dy, dx) % np.pi / np.pi  # in half turns
        slot = cell * ANGLE_BINS + np.minimum(turn * ANGLE_BINS, ANGLE_BINS - 1).astype(np.int64)
        size = len(patches) * CELLS**2 * ANGLE_BINS
        histogram = np.bincount(slot.ravel(), np.hypot(dy, dx).ravel(), minlength=size)
        histogram = histogram.reshape(len(patches), CELLS**2, ANGLE_BINS) / patches[0].size
        moments += [histogram.mean(axis=1), histogram.std(axis=1)]
    return _turn_upright(np.stack(moments, axis=1).astype(np.float32))


def _gabor_bank(size: int) -> torch.Tensor:
    """Gaussians in the frequency plane, one octave wide, on one side of the origin: [24, s, s].

    One side only makes the response complex; its modulus is the energy, whatever the phase.
    """
    fy, fx = torch.meshgrid(torch.fft.fftfreq(size), torch.fft.fftfreq(size), indexing="ij")
    filters = []
    for wavelength in GABOR_WAVELENGTHS:
        for angle in torch.arange(GABOR_ANGLES) * (torch.pi / GABOR_ANGLES):
            distance = (fx - angle.cos() / wavelength) ** 2 + (fy - angle.sin() / wavelength) ** 2
            filters.append(torch.exp(-distance / (2 * (0.28 / wavelength) ** 2)))
    return torch.stack(filters)


def _random_weights() -> list[torch.Tensor]:
    """He-scaled 3 x 3 filters from a generator of its own: the caller's random state is left alone."""
    generator = torch.Generator().manual_seed(CONV_SEED)
    weights = []
    for fan_in, fan_out in pairwise(CONV_CHANNELS):
        weight = torch.randn(fan_out, fan_in, 3, 3, generator=generator)
        weights.append(weight * (2 / (9 * fan_in)) ** 0.5)
    return weights


def _pooled_activations(maps: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    for weight in weights:
        maps = functional.relu(functional.conv2d(maps, weight, stride=2, padding=1))  # [b, c, s', s']
    return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)  # [b, 256]
