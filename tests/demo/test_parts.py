"""The demo's tissue, teachers and figure, apart from the training that joins them."""

import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from shazam_fast.errors import ShazamError

pytest.importorskip("skimage", reason="the demo's image comes with scikit-image (extra: demo)")

from shazam_fast.demo.figure import draw_figure
from shazam_fast.demo.teachers import TEACHERS, extract_demo_features
from shazam_fast.demo.tissue import NO_SPLIT, TEST, TRAIN, VAL, cut_patches, load_tissue
from shazam_fast.reporting.painting import paint

DIMS = {"texture": 60, "gradients": 108, "gabor": 48, "random_conv": 256}


@pytest.fixture(scope="module")
def tissue():
    return load_tissue()


@pytest.fixture(scope="module")
def cut(tissue):
    return cut_patches(tissue)


@pytest.fixture(scope="module")
def few(cut):
    """Pixels of some patches from all over the image."""
    return cut.pixels[::37]


def covered(patches, split):
    """Bool [H, W]: pixels inside any patch of a split, marked one patch at a time."""
    mask = np.zeros((512, 512), dtype=bool)
    for x, y in patches.coords[patches.splits == split]:
        mask[y : y + patches.size, x : x + patches.size] = True
    return mask


def test_missing_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ShazamError, match=r"pip install 'shazam_fast\[demo\]'"):
        load_tissue()


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path, tissue, cut):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    one_hot = np.eye(3)[cut.labels]
    with pytest.raises(ShazamError, match=r"pip install 'shazam_fast\[demo\]'"):
        draw_figure(tmp_path / "x.png", tissue, cut, cut.labels, one_hot, one_hot, list("abc"), "")


def test_tissue_has_documented_shapes(tissue):
    assert (tissue.rgb.shape, tissue.rgb.dtype) == ((512, 512, 3), np.uint8)
    for stain in (tissue.hematoxylin, tissue.dab):
        assert (stain.shape, stain.dtype) == ((512, 512), np.float32)
        assert np.isfinite(stain).all()


def test_patches_have_documented_shapes(cut):
    n = len(cut.coords)
    assert n > 2000
    assert (cut.pixels.shape, cut.pixels.dtype) == ((n, cut.size, cut.size), np.float32)
    assert (cut.coords.shape, cut.coords.dtype) == ((n, 2), np.int32)
    assert (cut.labels.shape, cut.labels.dtype) == ((n,), np.int64)
    assert (cut.splits.shape, cut.splits.dtype) == ((n,), np.uint8)
    assert set(np.unique(cut.splits)) == {TRAIN, VAL, TEST, NO_SPLIT}


@pytest.mark.parametrize(("size", "stride"), [(40, 8), (40, 7), (32, 5), (64, 16)])
def test_splits_share_no_pixel_and_hold_every_class(tissue, size, stride):
    patches = cut_patches(tissue, size, stride)
    masks = [covered(patches, split) for split in (TRAIN, VAL, TEST)]
    for one, other in combinations(masks, 2):
        assert not (one & other).any()
    for split in (TRAIN, VAL, TEST):
        assert set(patches.labels[patches.splits == split]) == {0, 1, 2}


def test_split_areas_lie_a_patch_width_apart(cut):
    rows = [np.flatnonzero(covered(cut, split).any(axis=1)) for split in (TRAIN, VAL, TEST)]
    for one, other in combinations(rows, 2):
        assert np.abs(one[:, None] - other).min() > cut.size


def test_patches_are_cut_where_coords_say(tissue, cut):
    for k in (0, 777, len(cut.coords) - 1):
        x, y = cut.coords[k]
        raw = tissue.hematoxylin[y : y + cut.size, x : x + cut.size]
        assert np.corrcoef(raw.ravel(), cut.pixels[k].ravel())[0, 1] > 0.9999


def test_every_pixel_is_in_a_patch_at_odd_strides(tissue):
    patches = cut_patches(tissue, 40, 7)
    assert np.isfinite(paint(patches.coords, patches.coords + 40, np.ones((len(patches.coords), 1)), (512, 512))).all()


def test_patch_brightness_is_normalised_away(tissue, cut):
    brighter = replace(tissue, hematoxylin=tissue.hematoxylin + np.float32(0.05))
    np.testing.assert_allclose(cut_patches(brighter).pixels, cut.pixels, atol=1e-3)
    np.testing.assert_allclose(cut.pixels.mean(axis=(1, 2)), 0, atol=1e-4)
    assert (cut.pixels.std(axis=(1, 2)) <= 1 + 1e-4).all()


def test_labels_order_patches_by_dab(tissue, cut):
    levels = [tissue.dab[y : y + cut.size, x : x + cut.size].astype(np.float64).mean() for x, y in cut.coords]
    by_class = [np.array(levels)[cut.labels == k] for k in range(3)]
    assert by_class[0].max() < by_class[1].min() < by_class[1].max() < by_class[2].min()


def test_thresholds_come_from_the_training_area_alone(tissue, cut):
    """Changing DAB outside the training area leaves its labels alone; outside, old thresholds are applied."""
    outside = ~covered(cut, TRAIN)
    rows = np.flatnonzero(outside.all(axis=1) & (np.arange(512) > 256))  # test area and the margin above it
    dab = tissue.dab.copy()
    dab[rows] = np.flip(dab[rows], axis=1) * 1.5
    changed = cut_patches(replace(tissue, dab=dab))
    elsewhere = cut.coords[:, 1] + cut.size <= rows[0]
    np.testing.assert_array_equal(changed.labels[elsewhere], cut.labels[elsewhere])
    is_test = cut.splits == TEST
    assert (changed.labels[is_test] == 2).sum() > (cut.labels[is_test] == 2).sum()


def test_teachers_do_not_see_dab(tissue, cut):
    changed = cut_patches(replace(tissue, dab=tissue.dab[:, ::-1].copy(), rgb=255 - tissue.rgb))
    np.testing.assert_array_equal(changed.pixels, cut.pixels)
    assert (changed.labels != cut.labels).any()


@pytest.mark.parametrize(("size", "stride"), [(8, 8), (513, 8), (40, 0)])
def test_impossible_patches_are_refused(tissue, size, stride):
    with pytest.raises(ShazamError, match=f"found size {size} and stride {stride}"):
        cut_patches(tissue, size, stride)


def test_a_split_without_a_class_is_refused(tissue):
    with pytest.raises(ShazamError, match="misses a class"):
        cut_patches(tissue, 120, 8)


def test_a_tissue_without_dab_is_refused(tissue):
    with pytest.raises(ShazamError, match="levels of DAB"):
        cut_patches(replace(tissue, dab=np.zeros_like(tissue.dab)))


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_give_finite_rows_that_tell_patches_apart(name, few):
    features = TEACHERS[name](few)
    assert (features.shape, features.dtype) == ((len(few), DIMS[name]), np.float32)
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == len(few)


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_are_pure(name, few):
    """Same patch, same row: whatever its neighbours, its place and the global random state."""
    before = few.copy()
    first = TEACHERS[name](few)
    torch.manual_seed(1)
    np.testing.assert_allclose(TEACHERS[name](few[::-1])[::-1], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(few, before)


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_survive_a_blank_patch(name):
    assert np.isfinite(TEACHERS[name](np.zeros((2, 40, 40), dtype=np.float32))).all()


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_ignore_a_half_turn(name, few):
    """Tissue has no up: turning a patch moves its features far less than another patch would."""
    upright, turned = TEACHERS[name](few), TEACHERS[name](np.ascontiguousarray(few[:, ::-1, ::-1]))
    assert (np.abs(turned - upright) <= 0.02 * upright.std(axis=0) + 1e-6).mean() > 0.98


def test_random_conv_leaves_the_global_random_state_alone(few):
    state = torch.get_rng_state()
    TEACHERS["random_conv"](few[:2])
    assert torch.equal(torch.get_rng_state(), state)


def test_extraction_names_every_teacher_in_order(few):
    features = extract_demo_features(few[:3])
    assert list(features) == list(TEACHERS) == list(DIMS)


@pytest.mark.parametrize("n_teachers", [1, 4, 9])
def test_figure_is_one_png_of_the_promised_width(tmp_path, tissue, n_teachers):
    image = pytest.importorskip("matplotlib.image", reason="the demo's figure needs matplotlib (extra: demo)")
    patches = cut_patches(tissue, 40, 24)
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=len(patches.coords))
    weights = rng.dirichlet(np.ones(n_teachers), size=len(patches.coords))
    prediction = np.minimum(probabilities.argmax(axis=1), 1)  # nothing is predicted "strong": an empty bar
    teachers = [f"teacher {k}" for k in range(n_teachers)]
    path = tmp_path / "demo.png"
    draw_figure(path, tissue, patches, prediction, probabilities, weights, teachers, "A headline " * 15)
    drawn = image.imread(path)  # [H, W, 4]
    assert drawn.shape[1] == 1800
    assert 1400 < drawn.shape[0] < 2000
    assert 100_000 < path.stat().st_size < 5_000_000
    assert (drawn[:, -12:, :3] == 1).all()  # nothing runs over the right edge
