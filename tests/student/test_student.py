"""The student in both forms against the float64 NumPy implementation of the equations."""

import equations
import numpy as np
import pytest
import torch
from students import array, layer_of, make_batch, make_student, maps_of
from synthetic import CLASSES, TEACHERS

import shazam_fast as sf
from shazam_fast.training.objective import Objective


def split_standardised(student, features):
    mean, scale = array(student.feature_mean), array(student.feature_scale)
    standard = equations.standardise(array(features), mean, scale)
    return np.split(standard, np.cumsum(student.dims)[:-1], axis=1)


def head_of(student, fused):
    first, _, norm, last = student.head
    return equations.head(
        fused, array(first.weight).T, array(first.bias), array(norm.weight), array(norm.bias),
        array(last.weight).T, array(last.bias),
    )  # fmt: skip


def maps_per_teacher(student, projection):
    """Weights [dim, D] and biases [D] of every teacher."""
    return np.split(array(projection.weight), np.cumsum(student.dims)[:-1]), list(array(projection.bias))


def expected_bare(student, features, present):
    parts = split_standardised(student, features)
    tokens = equations.project(parts, *maps_per_teacher(student, student.projection))
    fused, attention = equations.bare_stack(tokens, *maps_of(student), present)
    return tokens, fused, equations.teacher_shares(attention, present), head_of(student, fused)


def expected_residual(student, features, present):
    blocks, tokens = student.blocks, []
    weights, biases = maps_per_teacher(student, student.projection)
    for i, part in enumerate(split_standardised(student, features)):
        first, second = blocks.first_norm, blocks.second_norm
        maps = {
            "w1": weights[i], "b1": biases[i], "g1": array(first.weight)[i], "h1": array(first.bias)[i],
            "w2": array(blocks.second_weight)[i], "b2": array(blocks.second_bias)[i],
            "g2": array(second.weight)[i], "h2": array(second.bias)[i],
        }  # fmt: skip
        tokens.append(equations.residual_projection(part, maps))
    tokens = np.stack(tokens, axis=1)
    layers = [layer_of(student.qkv, blocks, k) for k in range(student.config.depth)]
    fused = equations.residual_stack(tokens, layers, present)
    return tokens, fused, None, head_of(student, fused)


EXPECTED = {"bare": expected_bare, "residual": expected_residual}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("block", ["bare", "residual"])
@pytest.mark.parametrize("teachers", [TEACHERS, {"uni": 5}, {"a": 1, "b": 3, "c": 2, "d": 9, "e": 4}])
@pytest.mark.parametrize(("B", "heads"), [(1, False), (5, False), (5, True)])
def test_forward_is_what_the_equations_say(block, missing, teachers, B, heads):
    student = make_student(block, teachers, heads=heads)
    features, present = make_batch(student, B, missing=missing)
    output = student(features, present)
    mask = None if present is None else present.numpy()
    tokens, fused, weights, logits = EXPECTED[block](student, features, mask)
    there = np.ones(tokens.shape[:2], bool) if mask is None else mask
    if heads:
        maps = student.teacher_heads
        each = np.einsum("bnd,ndc->bnc", tokens, array(maps.weight)) + array(maps.bias)
        votes = np.where(there[:, :, None], each, 0.0).mean(axis=1)
        logits = 0.25 * logits + 0.75 * votes
    np.testing.assert_allclose(array(student.tokens(features, present))[there], tokens[there], atol=1e-12)
    np.testing.assert_allclose(array(output.fused), fused, atol=1e-12)
    np.testing.assert_allclose(array(output.logits), logits, atol=1e-11)
    if block == "bare":
        np.testing.assert_allclose(array(output.shares), weights, atol=1e-12)
    else:
        assert output.shares is None


def test_teacher_shares_are_shares_of_the_fused_feature():
    """t = (w T) C with the same C for every patch: w says exactly how much of each teacher's token is in t."""
    student = make_student()
    features, present = make_batch(student, 7, missing=True)
    output = student(features, present)
    w = output.shares
    torch.testing.assert_close(w.sum(1), torch.ones(7, dtype=w.dtype))
    assert (w >= 0).all()
    assert (w[~present] == 0).all()
    C = torch.eye(16, dtype=w.dtype)
    for layer in student.qkv:
        C = C @ layer[:, 32:]
    torch.testing.assert_close(output.fused, (w[:, None] @ student.tokens(features, present)).squeeze(1) @ C)


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_absent_teachers_have_no_influence_at_all(block):
    """Not even a NaN in an absent teacher's features reaches a logit or a gradient."""
    student = make_student(block)
    features, present = make_batch(student, 6, missing=True)
    poisoned = features.clone()
    for index, columns in enumerate(torch.arange(sum(student.dims)).split(student.dims)):
        poisoned[(~present[:, index]).nonzero()[:, 0][:, None], columns] = float("nan")
    assert poisoned.isnan().any()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    objective = Objective(lam=0.5, delta=1.0, huber="norm", targets="projected")
    gradients = []
    for x in (features, poisoned):
        student.zero_grad()
        objective(student, x, labels, present).total.backward()
        gradients.append([p.grad.clone() for p in student.parameters()])
    torch.testing.assert_close(student(poisoned, present).logits, student(features, present).logits, rtol=0, atol=0)
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    if block == "bare":
        torch.testing.assert_close(student.fold()(poisoned, present).logits, student(features, present).logits)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("targets", ["projected", "detached", "frozen"])
@pytest.mark.parametrize("huber", ["norm", "elementwise"])
@pytest.mark.parametrize("delta", [0.3, 1.0, 40.0])
def test_objective_is_what_the_equations_say(huber, targets, missing, delta):
    student = make_student()
    student.freeze_targets(torch.Generator().manual_seed(2))
    student.double()
    features, present = make_batch(student, 6, missing=missing)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    losses = Objective(lam=0.7, delta=delta, huber=huber, targets=targets)(student, features, labels, present)

    mask = None if present is None else present.numpy()
    tokens, fused, _, logits = expected_bare(student, features, mask)
    if targets == "frozen":
        parts = split_standardised(student, features)
        tokens = equations.project(parts, *maps_per_teacher(student, student.frozen_targets))
    distance = equations.huber_norm_loss if huber == "norm" else equations.huber_elementwise_loss
    cross_entropy = equations.cross_entropy(logits, labels.numpy())
    cosine = equations.cosine_loss(fused, tokens, mask)
    far = distance(fused, tokens, delta, mask)
    assert losses.cross_entropy.item() == pytest.approx(cross_entropy, abs=1e-12)
    assert losses.cosine.sum().item() == pytest.approx(cosine, abs=1e-12)
    assert losses.huber.sum().item() == pytest.approx(far, abs=1e-12)
    assert losses.total.item() == pytest.approx(cross_entropy + 0.7 * (cosine + far), abs=1e-12)


@pytest.mark.parametrize(("targets", "flows"), [("projected", True), ("detached", False)])
def test_which_targets_get_a_gradient(targets, flows, monkeypatch):
    student = make_student()
    features, _ = make_batch(student, 2)
    fuse = student.fuse

    def fuse_without_gradient(tokens, present):
        return fuse(tokens.detach(), present)

    monkeypatch.setattr(student, "fuse", fuse_without_gradient)
    student.qkv.requires_grad_(False)
    losses = Objective(lam=1.0, delta=1.0, huber="norm", targets=targets)(student, features, torch.tensor([0, 1]))
    losses.total.backward()
    assert (student.projection.weight.grad is not None) is flows


def test_what_costs_extra_is_computed_when_it_is_read():
    from shazam_fast.student.output import StudentOutput

    calls = []

    def compute(name):
        calls.append(name)
        return torch.ones(2, 3)

    output = StudentOutput(torch.zeros(2, 2), lambda: compute("fused"), lambda: compute("shares"))
    assert calls == []
    assert torch.equal(output.shares, torch.ones(2, 3))
    assert output.shares is output.shares
    assert calls == ["shares"]


def test_frozen_targets_are_not_trained():
    student = make_student()
    student.freeze_targets()
    student.double()
    assert not any(p.requires_grad for p in student.frozen_targets.parameters())
    features, _ = make_batch(student)
    student.frozen_targets = None
    with pytest.raises(sf.ShazamError, match="needs a student with frozen_targets"):
        Objective(0.5, 1.0, "norm", "frozen")(student, features, torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("huber", ["norm", "elementwise"])
@pytest.mark.parametrize("zero", ["fused", "targets", "both"])
def test_zero_vectors_give_finite_losses_and_gradients(huber, zero):
    from shazam_fast.kernels import reference

    fused = torch.randn(3, 4, dtype=torch.float64)
    tokens = torch.randn(3, 2, 4, dtype=torch.float64)
    if zero != "targets":
        fused[1] = 0
    if zero != "fused":
        tokens[1] = 0
    fused.requires_grad_()
    tokens.requires_grad_()
    cosine = reference.cosine_losses(fused, tokens, None)
    far = (reference.huber_norm_losses if huber == "norm" else reference.huber_elementwise_losses)(
        fused, tokens, 1.0, None
    )
    assert cosine.sum().item() == pytest.approx(equations.cosine_loss(array(fused), array(tokens), None))
    (cosine.sum() + far.sum()).backward()
    assert fused.grad.isfinite().all()
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cosine", "huber_norm", "huber_elementwise", "bare_stack", "folded_stack"])
def test_gradients_of_the_definitions(name):
    from shazam_fast.kernels import reference

    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    fused = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
    maps = torch.randn(2, 5, 15, generator=generator, dtype=torch.float64, requires_grad=True)
    functions = {
        "cosine": lambda: (lambda t, T: reference.cosine_losses(t, T, present), (fused, tokens)),
        "huber_norm": lambda: (lambda t, T: reference.huber_norm_losses(t, T, 2.0, present), (fused, tokens)),
        "huber_elementwise": lambda: (
            lambda t, T: reference.huber_elementwise_losses(t, T, 0.9, present),
            (fused, tokens),
        ),
        "bare_stack": lambda: (lambda T, W: reference.bare_stack(T, W, present), (tokens, maps)),
        "folded_stack": lambda: (
            lambda T, W: reference.folded_stack(T, W.reshape(5, 30)[:, :10], present),
            (tokens, maps),
        ),
    }
    function, inputs = functions[name]()
    assert torch.autograd.gradcheck(function, inputs)


def test_the_same_generator_makes_the_same_student():
    left, right = make_student("residual"), make_student("residual")
    for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {}}, "teachers: a mapping of at least one"),
        ({"teachers": {"uni": 0}}, "teachers: dim of 'uni': a whole number from 1"),
        ({"teachers": {"uni": True}}, "teachers: dim of 'uni'"),
        ({"teachers": {3: 5}}, "teachers: names"),
        ({"classes": "ab"}, "two or more"),
        ({"classes": [1, 2]}, "two or more"),
        ({"depth": 2.0}, "depth: a whole number"),
        ({"teacher_dropout": float("nan")}, "teacher_dropout: a number"),
        ({"classes": ["only"]}, "two or more"),
        ({"classes": ["a", "a"]}, "two or more different"),
        ({"dim": 0}, "dim: a whole number from 1 to 16384 expected, found 0"),
        ({"block": "transformer"}, "block: one of"),
        ({"teacher_dropout": 1.0}, "teacher_dropout"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(sf.ShazamError, match=message):
        sf.StudentConfig(**{"teachers": TEACHERS, "classes": CLASSES, **changes})


def test_features_of_another_width():
    with pytest.raises(sf.MismatchError, match=r"features \[B, 39\] expected.*found \[2, 40\]"):
        make_student()(torch.zeros(2, 40))
    with pytest.raises(sf.MismatchError, match=r"a tensor expected, found ndarray; predict\(\)"):
        make_student()(np.zeros((2, 39)))
