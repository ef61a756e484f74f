"""The demo's tissue and teachers, apart from the comparison that joins them."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from shazam_fast.errors import ShazamError

pytest.importorskip("skimage", reason="the demo's image comes with scikit-image (extra: demo)")

from shazam_fast.demo.teachers import TEACHERS, extract_demo_features
from shazam_fast.demo.tissue import AREAS, cut_patches, load_tissue

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


def test_missing_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ShazamError, match=r"pip install 'shazam_fast\[demo\]'"):
        load_tissue()


def test_tissue_has_documented_shapes(tissue):
    assert (tissue.rgb.shape, tissue.rgb.dtype) == ((512, 512, 3), np.uint8)
    for stain in (tissue.hematoxylin, tissue.dab):
        assert (stain.shape, stain.dtype) == ((512, 512), np.float32)
        assert np.isfinite(stain).all()


def test_patches_have_documented_shapes(cut):
    n = len(cut.coords)
    assert n > 1000
    assert (cut.pixels.shape, cut.pixels.dtype) == ((n, cut.size, cut.size), np.float32)
    assert (cut.coords.shape, cut.coords.dtype) == ((n, 2), np.int32)
    assert (cut.labels.shape, cut.labels.dtype) == ((n,), np.int64)
    assert set(np.unique(cut.labels)) == {0, 1, 2}
    assert set(np.unique(cut.areas)) == set(range(AREAS**2))


def test_areas_share_no_pixel_not_even_through_the_filter(tissue, cut):
    """A pixel changed in one area changes patches of that area alone."""
    owner = np.full((512, 512), -1)
    for (x, y), area in zip(cut.coords, cut.areas, strict=True):
        pixels = owner[max(0, y - 4) : y + cut.size + 4, max(0, x - 4) : x + cut.size + 4]
        assert set(np.unique(pixels)) <= {-1, area}
        pixels[:] = area
    assert (owner >= 0).mean() > 0.97


def test_patches_are_cut_where_coords_say(tissue, cut):
    for k in (0, 777, len(cut.coords) - 1):
        x, y = cut.coords[k]
        raw = tissue.hematoxylin[y : y + cut.size, x : x + cut.size]
        assert np.corrcoef(raw.ravel(), cut.pixels[k].ravel())[0, 1] > 0.9999


def test_patch_brightness_is_normalised_away(tissue, cut):
    brighter = replace(tissue, hematoxylin=tissue.hematoxylin + np.float32(0.05))
    np.testing.assert_allclose(cut_patches(brighter).pixels, cut.pixels, atol=1e-3)
    np.testing.assert_allclose(cut.pixels.mean(axis=(1, 2)), 0, atol=1e-4)
    assert (cut.pixels.std(axis=(1, 2)) <= 1 + 1e-4).all()


def test_labels_order_patches_by_dab(tissue, cut):
    levels = [tissue.dab[y : y + cut.size, x : x + cut.size].astype(np.float64).mean() for x, y in cut.coords]
    by_class = [np.array(levels)[cut.labels == k] for k in range(3)]
    assert by_class[0].max() < by_class[1].min() < by_class[1].max() < by_class[2].min()


def test_teachers_do_not_see_dab(tissue, cut):
    changed = cut_patches(replace(tissue, dab=tissue.dab[:, ::-1].copy(), rgb=255 - tissue.rgb))
    np.testing.assert_array_equal(changed.pixels, cut.pixels)
    assert (changed.labels != cut.labels).any()


@pytest.mark.parametrize(("size", "stride"), [(8, 8), (95, 8), (40, 0)])
def test_impossible_patches_are_refused(tissue, size, stride):
    with pytest.raises(ShazamError, match=f"found size {size} and stride {stride}"):
        cut_patches(tissue, size, stride)


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
