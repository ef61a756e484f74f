"""Folding is exact, before and after training, and where float32 ends is known."""

import equations
import numpy as np
import pytest
import torch
from students import array, make_batch, make_student, maps_of
from synthetic import make_patches

import shazam_fast as sf


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("teachers", [{"uni": 5}, {"a": 6, "b": 3, "c": 2, "d": 9, "e": 4}])
def test_folded_is_what_the_equations_say(teachers, missing, heads):
    student = make_student(teachers=teachers, heads=heads)
    features, present = make_batch(student, 6, missing=missing)
    mask = None if present is None else present.numpy()
    folded = student.fold()
    score_maps, value_map = equations.fold(*maps_of(student))
    np.testing.assert_allclose(array(folded.score_maps), np.concatenate(score_maps, axis=1), atol=1e-13)
    tokens = array(student.tokens(features, present))
    fused, w = equations.folded_forward(tokens, score_maps, value_map, mask)
    found, output = folded(features, present), student(features, present)
    np.testing.assert_allclose(array(output.fused), fused, atol=1e-12)
    np.testing.assert_allclose(array(found.shares), w, atol=1e-12)
    torch.testing.assert_close(found.logits, output.logits, atol=1e-11, rtol=0)
    torch.testing.assert_close(found.shares, output.shares, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.fused, output.fused, atol=1e-11, rtol=0)


def errors(student, features):
    """Relative error of the logits and absolute error of w: folded in float64, plain and folded in float32."""
    exact = student.double()
    with torch.no_grad():
        output = exact(features.double())
        results = {"folded64": exact.fold()(features.double())}
        single = student.float()
        results["plain32"] = single(features.float())
        results["folded32"] = single.fold()(features.float())
    scale = output.logits.abs().max()
    return {
        name: (
            float((found.logits.double() - output.logits).abs().max() / scale),
            float((found.shares.double() - output.shares).abs().max()),
        )
        for name, found in results.items()
    }


def check_exactness(archive, **options):
    result = sf.train(archive, **options)
    features = torch.from_numpy(archive.gather(archive.split("test")))
    found = errors(result.student, features)
    assert max(found["folded64"]) < 1e-9, found
    # In float32 folding must cost no accuracy that the student itself has.
    assert found["folded32"][0] < max(4 * found["plain32"][0], 1e-5), found
    assert found["folded32"][1] < max(4 * found["plain32"][1], 1e-5), found
    return found


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_folding_is_exact_after_training(tmp_path, lam):
    archive = sf.open(sf.write_archive(tmp_path / "a", **make_patches(rows=400)))
    check_exactness(archive, epochs=10, batch_size=16, dim=64, lam=lam)


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_folding_is_exact_after_training_on_real_features(real_archive, lam):
    check_exactness(real_archive, epochs=4, lam=lam)


def sharpened_student(sharpness):
    """Orthogonal maps, query and key scaled up: scores grow with the square of the sharpness."""
    student = make_student(dim=64, depth=5, teachers=dict.fromkeys("abcd", 64))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        student.feature_mean.zero_()
        student.feature_scale.fill_(1.0)
        for matrix in [w for layer in student.qkv for w in layer.split(64, dim=1)]:
            torch.nn.init.orthogonal_(matrix, generator=generator)
        for weight in student.projection.weight.split(student.dims):
            torch.nn.init.orthogonal_(weight, generator=generator)
        student.projection.bias.zero_()
        student.qkv[:, :, :128] *= sharpness
    return student, torch.randn(4000, 256, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("sharpness", "float32_is_enough"), [(3, True), (10, False), (100, False)])
def test_where_float32_ends_the_folded_form_is_no_worse(sharpness, float32_is_enough):
    """Largest score 50 to 5e4: from some hundreds on, the worst of 4,000 patches errs by 1e-4 and more in float32."""
    found = errors(*sharpened_student(sharpness))
    assert max(found["folded64"]) < 1e-10, found
    assert max(found["folded32"]) < 4 * max(found["plain32"]) + 1e-6, found
    assert (max(found["plain32"]) < 1e-4) is float32_is_enough, found
    assert (max(found["folded32"]) < 1e-4) is float32_is_enough, found


def test_residual_students_do_not_fold():
    with pytest.raises(sf.ShazamError, match="only bare students fold exactly"):
        make_student("residual").fold()


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_far_from_zero_for_their_spread_cost_no_digits(tmp_path, ratio, dtype):
    """Mean over spread: the folded student errs no more than the plain one, in PyTorch and in the compiled core."""
    student = make_student(dim=32, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, sum(student.dims), generator=generator) * 0.01 + 0.01 * ratio
    student.feature_mean.copy_(features.double().mean(0))
    student.feature_scale.copy_(features.double().std(0))
    exact = make_student(dim=32)
    exact.load_state_dict(student.state_dict())
    with torch.no_grad():
        truth = exact(features.double()).logits.softmax(1)
        plain = (student(features).logits.softmax(1) - truth).abs().max()
        folded = (student.fold()(features).logits.softmax(1) - truth).abs().max()
        archive = sf.open(sf.write_archive(tmp_path / "a", split_by_teacher(student, features), dtype="float32"))
        scored = torch.from_numpy(sf.score(student, archive, device="cpu").probabilities)
    assert folded <= 4 * plain + 1e-6
    assert (scored - truth).abs().max() <= 4 * plain + 1e-6


def split_by_teacher(student, features):
    parts = features.split(student.dims, dim=1)
    return {name: part.numpy() for name, part in zip(student.config.teachers, parts, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_copies(dtype):
    """A student that is trained on after folding leaves the folded one as it was."""
    student = make_student(dtype=dtype)
    folded = student.fold()
    before = {name: tensor.clone() for name, tensor in folded.state_dict().items()}
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.add_(1.0)
    for name, tensor in folded.state_dict().items():
        assert torch.equal(tensor, before[name]), name
