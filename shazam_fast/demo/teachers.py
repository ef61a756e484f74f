"""Four offline stand-ins for foundation models, so that the demo needs no download and no GPU.

None of them has learned anything: `texture`, `gradients` and `gabor` are classical descriptors (the first two from
scikit-image), `random_conv` is a convolutional network with random weights. They differ in kind and in dimension, as
real teachers do. Each is a pure function of patches at mean 0 and variance 1: float32 [n, s, s] -> float32 [n, d].

The Gabor filters are applied here in the frequency domain, to 64 patches at a time: `skimage.filters.gabor`, one filter
and one patch at a time, takes 360 s for the demo's 3,600 patches instead of 3 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.feature import graycomatrix, graycoprops, hog, local_binary_pattern
from torch.nn import functional

FloatArray = NDArray[np.float32]
Teacher = Callable[[FloatArray], FloatArray]

CHUNK = 64  # patches at a time: keeps the intermediates in cache
RADII = (1, 2, 3, 5)  # pixels, for binary patterns and for co-occurrence
GREY_LEVELS = 8  # of co-occurrence, over +-2 standard deviations
PAIR_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)  # directions of co-occurrence
PAIR_STATISTICS = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")
GRADIENT_SIGMAS, ANGLE_BINS, CELLS = (1.0, 2.0, 4.0), 18, 4  # pixels; over half a turn; cells per side
GABOR_WAVELENGTHS, GABOR_ANGLES = (4.0, 6.0, 9.0, 14.0), 6  # pixels; angles over half a turn
CONV_CHANNELS, CONV_SEED = (1, 16, 32, 64, 128), 20240229


def texture(pixels: FloatArray) -> FloatArray:
    """Local binary patterns and grey-level co-occurrence, at four radii each: [n, s, s] -> [n, 60]."""
    rows = [np.concatenate([_binary_patterns(patch), _co_occurrence(patch)]) for patch in pixels]
    return np.stack(rows).astype(np.float32)


def gradients(pixels: FloatArray) -> FloatArray:
    """Histograms of oriented gradients at three scales, mean and spread over cells: [n, s, s] -> [n, 108]."""
    scales = [gaussian_filter(pixels, (0, sigma, sigma)) for sigma in GRADIENT_SIGMAS]
    by_angle = [[_oriented_gradients(patch) for patch in patches] for patches in scales]  # 3 x n x [2, 18]
    return _turn_upright(np.concatenate(by_angle, axis=1).astype(np.float32))  # of [n, 6, 18]


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
    """Features of the same patches by every teacher.

    Args:
        pixels: float32 [n, s, s].

    Returns:
        {teacher: float32 [n, d]}.

    >>> features = extract_demo_features(np.zeros((2, 40, 40), dtype=np.float32))
    >>> {name: array.shape[1] for name, array in features.items()}
    {'texture': 60, 'gradients': 108, 'gabor': 48, 'random_conv': 256}
    """
    return {name: teacher(pixels) for name, teacher in TEACHERS.items()}


def _chunks(pixels: FloatArray) -> Iterator[FloatArray]:
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    return (pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK))


def _binary_patterns(patch: FloatArray) -> FloatArray:
    """Frequencies of the 10 rotation-invariant uniform patterns, at four radii: [s, s] -> [40]."""
    grey = np.clip((patch + 2) * 64, 0, 255).astype(np.uint8)
    frequencies = []
    for radius in RADII:
        codes = local_binary_pattern(grey, 8, radius, "uniform")[radius:-radius, radius:-radius]
        frequencies.append(np.bincount(codes.astype(np.int64).ravel(), minlength=10) / codes.size)
    return np.concatenate(frequencies)


def _co_occurrence(patch: FloatArray) -> FloatArray:
    """Five statistics of grey-level pairs, averaged over four directions, at four distances: [s, s] -> [20]."""
    grey = np.clip((patch + 2) * (GREY_LEVELS / 4), 0, GREY_LEVELS - 1).astype(np.uint8)
    pairs = graycomatrix(grey, RADII, PAIR_ANGLES, GREY_LEVELS, symmetric=True, normed=True)  # [8, 8, radii, angles]
    pairs = pairs.mean(axis=3, keepdims=True)
    return np.concatenate([graycoprops(pairs, statistic)[:, 0] for statistic in PAIR_STATISTICS])


def _oriented_gradients(smoothed: FloatArray) -> FloatArray:
    """Gradients by unsigned angle, mean and spread over a 4 x 4 grid of cells: [s, s] -> [2, 18]."""
    cell = smoothed.shape[0] // CELLS
    grid = hog(smoothed, ANGLE_BINS, (cell, cell), (CELLS, CELLS), block_norm="L2", feature_vector=False)
    cells = grid[0, 0].reshape(-1, ANGLE_BINS)  # [16, 18]
    return np.stack([cells.mean(axis=0), cells.std(axis=0)])


def _turn_upright(by_angle: FloatArray) -> FloatArray:
    """Turn [b, m, angles] so that each patch's strongest angle comes first, and flatten: [b, m * angles].

    Tissue has no preferred direction: with this, features hardly depend on how a gland is turned.
    """
    angles = by_angle.shape[2]
    order = by_angle.sum(axis=1).argmax(axis=1)[:, None] + np.arange(angles)  # [b, angles]
    turned = np.take_along_axis(by_angle, order[:, None] % angles, axis=2)
    return turned.reshape(len(turned), -1).astype(np.float32)


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
