"""Values of patches as values of pixels."""

import numpy as np

from shazam_fast.reporting.painting import leading, paint


def test_paint_averages_the_patches_over_a_pixel():
    rng = np.random.default_rng(0)
    coords = rng.integers(0, 12, size=(20, 2)).astype(np.int32)  # x, y
    values = rng.normal(size=(20, 3))
    total, count = np.zeros((17, 19, 3)), np.zeros((17, 19, 1))
    for (x, y), value in zip(coords, values, strict=True):
        total[y : y + 5, x : x + 5] += value
        count[y : y + 5, x : x + 5] += 1
    expected = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(paint(coords, coords + 5, values, (17, 19)), expected, atol=1e-12)


def test_the_leading_teacher_and_its_excess():
    shares = np.array([[[0.25, 0.75], [0.5, 0.5], [np.nan, np.nan]]])  # [1, 3, 2]
    teacher, excess, most = leading(shares)
    assert teacher[0, 0] == 1
    assert excess[0].tolist() == [1.0, 0.0, 0.0]
    assert 0.5 < most <= 0.75
