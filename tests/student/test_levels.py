"""The multi-level student against plain float64 NumPy, patch after patch, teacher after teacher."""

import copy
import math

import equations
import numpy as np
import pytest
import torch
from students import array, layer_of, make_batch, make_student
from synthetic import CLASSES

import shazam_fast as sf
from shazam_fast.ops import dispatch as ops
from shazam_fast.training.objective import Objective

LEVELS = ("low", "mid", "high")
IN_ORDER = {"uni:low": 5, "uni:mid": 6, "uni": 12, "gigapath:low": 7, "gigapath:mid": 7, "gigapath": 9}
MIXED = {"b": 4, "a:mid": 3, "c:high": 5, "b:low": 1, "c:low": 2, "a": 6, "b:mid": 9, "c:mid": 5, "a:low": 8}
ONE = {"uni:mid": 3, "uni:low": 5, "uni": 4}
ALL = [IN_ORDER, MIXED, ONE]


def make(teachers=IN_ORDER, **options):
    """A student whose gates are not uniform and whose joins are not sums."""
    student = make_student("levels", teachers, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (student.levels.gate_weight_2, student.levels.gate_bias_2):
            parameter.normal_(generator=generator)
        student.levels.carry.copy_(torch.tensor([0.6, -1.7]))
    return student


def batch(student, B=5, missing=False):
    """Features and mask; whole teachers are missing, at least one is there."""
    features, _ = make_batch(student, B)
    if not missing:
        return features, None
    encoders = torch.tensor(student.config.encoders)
    there = torch.rand(B, int(encoders.max()) + 1, generator=torch.Generator().manual_seed(4)) < 0.5
    there[torch.arange(B), torch.arange(B) % there.shape[1]] = True
    return features, there[:, encoders]


def names_of(teachers, level):
    """Columns' names of a level, teachers in order of appearance."""
    bases = list(dict.fromkeys(name.split(":")[0] for name in teachers))
    spelt = [f"{base}:{level}" for base in bases]
    return [name if name in teachers else base for name, base in zip(spelt, bases, strict=True)]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def expected_gate(trunk, level, p, here):
    side_by_side = np.concatenate([row if there else 0 * row for row, there in zip(p, here, strict=True)])
    hidden = gelu(side_by_side @ array(trunk.gate_weight_1)[level] + array(trunk.gate_bias_1)[level])
    hidden = equations.layer_norm(hidden, array(trunk.gate_norm.weight)[level], array(trunk.gate_norm.bias)[level])
    scores = hidden @ array(trunk.gate_weight_2)[level] + array(trunk.gate_bias_2)[level]
    return equations.softmax_rows(scores[here])


def layers_of(student, level):
    K = student.config.depth
    return [layer_of(student.qkv, student.levels, k) for k in range(level * K, (level + 1) * K)]


def expected(student, features, present):
    """Linear tokens by name, o_1 to o_3 and logits."""
    teachers, trunk = student.config.teachers, student.levels
    mean, scale = array(student.feature_mean), array(student.feature_scale)
    ends = np.cumsum(student.dims)[:-1]
    parts = np.split(equations.standardise(array(features), mean, scale), ends, axis=1)
    weights, biases = np.split(array(student.projection.weight), ends), array(student.projection.bias)
    tokens = {n: x @ w + b for n, x, w, b in zip(teachers, parts, weights, biases, strict=True)}
    there = dict.fromkeys(teachers, np.ones(len(features), bool))
    if present is not None:
        there = dict(zip(teachers, array(present).T, strict=True))
    outputs = []
    for level, level_name in enumerate(LEVELS):
        names, layers, rows = names_of(teachers, level_name), layers_of(student, level), []
        for b in range(len(features)):
            p, here = np.stack([tokens[name][b] for name in names]), np.array([there[name][b] for name in names])
            gate = expected_gate(trunk, level, p, here)
            normed = equations.layer_norm(
                p[here], array(trunk.token_norm.weight)[level], array(trunk.token_norm.bias)[level]
            )
            t = here.sum() * gate[:, None] * normed
            for layer in layers:
                t = equations.residual_layer(t, layer)
            o = t.mean(axis=0)
            if level:
                gain, shift = array(trunk.join_norm.weight)[level - 1], array(trunk.join_norm.bias)[level - 1]
                o = equations.layer_norm(o + array(trunk.carry)[level - 1] * outputs[-1][b], gain, shift)
            rows.append(o)
        outputs.append(np.stack(rows))
    first, _, norm, last = student.head
    hidden = gelu(outputs[-1] @ array(first.weight).T + array(first.bias))
    hidden = equations.layer_norm(hidden, array(norm.weight), array(norm.bias))
    return tokens, there, outputs, hidden @ array(last.weight).T + array(last.bias)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("teachers", ALL)
@pytest.mark.parametrize(("B", "dim", "depth"), [(1, 16, 1), (5, 7, 3)])
def test_forward_is_what_the_formulas_say(teachers, missing, B, dim, depth):
    student = make(teachers, dim=dim, depth=depth)
    features, present = batch(student, B, missing)
    output = student(features, present)
    tokens, there, outputs, logits = expected(student, features, present)
    for i, name in enumerate(teachers):
        ours = array(student.tokens(features, present))[:, i]
        np.testing.assert_allclose(ours[there[name]], tokens[name][there[name]], atol=1e-12)
    for ours, wanted in zip(output.outputs, outputs, strict=True):
        np.testing.assert_allclose(array(ours), wanted, atol=1e-11)
    assert output.fused is output.outputs[-1]
    assert output.shares is None
    np.testing.assert_allclose(array(output.logits), logits, atol=1e-11)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("huber", ["norm", "elementwise"])
@pytest.mark.parametrize("teachers", ALL)
def test_losses_are_those_of_every_level_to_its_own_teachers(teachers, huber, missing):
    student = make(teachers)
    features, present = batch(student, 5, missing)
    labels = torch.tensor([0, 1, 2, 1, 0])
    losses = Objective(0.3, 0.8, huber, "projected")(student, features, labels, present)
    tokens, there, outputs, logits = expected(student, features, present)
    far = equations.huber_norm_loss if huber == "norm" else equations.huber_elementwise_loss
    total = equations.cross_entropy(logits, labels.numpy())
    for level, o in zip(LEVELS, outputs, strict=True):
        for name in names_of(teachers, level):
            T, mask = tokens[name][:, None], there[name][:, None]
            i = list(teachers).index(name)
            cosine, distance = equations.cosine_loss(o, T, mask), far(o, T, 0.8, mask)
            assert losses.cosine[i].item() == pytest.approx(cosine, abs=1e-12)
            assert losses.huber[i].item() == pytest.approx(distance, abs=1e-12)
            total += 0.3 * (cosine + distance)
    assert losses.total.item() == pytest.approx(total, abs=1e-11)


@pytest.mark.parametrize("targets", ["projected", "detached", "frozen"])
def test_gradients_in_float64(targets):
    student = make({"a:low": 2, "a:mid": 3, "a": 2, "b:low": 1, "b:mid": 2, "b": 3}, dim=4, depth=1)
    student.freeze_targets(torch.Generator().manual_seed(5))
    student.double()
    features, present = batch(student, 3, missing=True)
    labels = torch.tensor([0, 1, 2])
    trained = {n: p.detach().clone().requires_grad_() for n, p in student.named_parameters() if p.requires_grad}
    objective = Objective(0.4, 1.0, "norm", targets)

    def loss(*values):
        with torch.nn.utils.stateless._reparametrize_module(student, dict(zip(trained, values, strict=True))):
            return objective(student, features, labels, present).total

    if targets != "detached":  # whose gradient is not that of the loss
        assert torch.autograd.gradcheck(loss, tuple(trained.values()), fast_mode=True)
    gradients = dict(zip(trained, torch.autograd.grad(loss(*trained.values()), list(trained.values())), strict=True))
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


@pytest.mark.parametrize("teachers", ALL)
def test_a_new_student_has_no_gate_and_plain_sums(teachers):
    student = sf.Student(sf.StudentConfig(teachers, CLASSES, dim=8, depth=1, block="levels"))
    p = torch.randn(4, 3, len(teachers) // 3, 8)
    torch.testing.assert_close(student.levels.gates(p, None), torch.ones(4, 3, len(teachers) // 3))
    assert student.levels.carry.tolist() == [1.0, 1.0]


def test_the_gate_acts_behind_the_norm_and_could_not_before_it():
    student = make()
    features, _ = batch(student)
    trunk = student.levels
    p = trunk._by_level(student.tokens(features))
    gates = trunk.gates(p, None)
    torch.testing.assert_close(gates.mean(-1), torch.ones(5, 3, dtype=p.dtype))
    assert (gates - 1).abs().max() > 0.5, "the test needs gates that differ"
    before = trunk._normalised(gates[..., None] * p * 1e6)  # far above the norm's epsilon
    torch.testing.assert_close(before, trunk._normalised(p * 1e6), atol=1e-4, rtol=0.0)
    gated = student(features).logits
    torch.nn.init.zeros_(trunk.gate_weight_2)
    torch.nn.init.zeros_(trunk.gate_bias_2)
    assert (student(features).logits - gated).abs().max() > 0.01


def test_lower_levels_reach_the_result_through_alpha_and_beta_alone():
    student = make()
    features, _ = batch(student)
    changed = features.clone()
    columns = torch.tensor([name.endswith(":low") for name, dim in IN_ORDER.items() for _ in range(dim)])
    changed[:, columns] += 3.0
    assert (student(changed).logits - student(features).logits).abs().max() > 1e-3
    with torch.no_grad():
        student.levels.carry[0] = 0.0
    torch.testing.assert_close(student(changed).logits, student(features).logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_missing_teachers_have_no_influence_at_all(dtype):
    student = make(MIXED, dtype=dtype)
    features, present = batch(student, 6, missing=True)
    poisoned = features.clone()
    for index, columns in enumerate(torch.arange(sum(student.dims)).split(student.dims)):
        poisoned[(~present[:, index]).nonzero()[:, 0][:, None], columns] = float("nan")
    objective, labels = Objective(0.5, 1.0, "norm", "projected"), torch.tensor([0, 1, 2, 0, 1, 2])
    results = []
    for x in (features, poisoned):
        student.zero_grad()
        losses = objective(student, x, labels, present)
        losses.total.backward()
        gradients = [p.grad.clone() for p in student.parameters()]
        results.append([student(x, present).logits.detach(), losses.total.detach(), *gradients])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_the_fused_operations_compute_the_same(backend, missing, device):
    """Tokens, segments and losses in float32, on the CPU in the core and in Triton's interpreter."""
    exact = make(MIXED, depth=2)
    features, present = batch(exact, 5, missing)
    labels = torch.tensor([0, 1, 2, 1, 0])
    objective = Objective(0.3, 1.0, "norm", "projected")
    reference = objective(exact, features, labels, present)
    reference.total.backward()
    single = copy.deepcopy(exact).float().to(device)
    mask = None if present is None else present.to(device)
    with ops.use(backend):
        found = objective(single, features.float().to(device), labels.to(device), mask)
        found.total.backward()
    torch.testing.assert_close(found.total.cpu().double(), reference.total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cosine.cpu().double(), reference.cosine, rtol=1e-4, atol=1e-5)
    for (name, left), right in zip(single.named_parameters(), exact.parameters(), strict=True):
        scale = right.grad.abs().max().clamp_min(1e-3)
        assert ((left.grad.cpu().double() - right.grad) / scale).abs().max() < 2e-3, name


def test_incomplete_levels_are_refused():
    with pytest.raises(sf.MismatchError, match=r"'b' lacks low \('b:low'\), mid \('b:mid'\); extract"):
        sf.StudentConfig({**IN_ORDER, "b": 3}, CLASSES, block="levels")
    assert sf.StudentConfig({**IN_ORDER, "b": 3}, CLASSES).encoders == list(range(7))
    assert sf.StudentConfig(MIXED, CLASSES, block="levels").encoders == [0, 1, 2, 0, 2, 1, 0, 2, 1]


def test_it_is_saved_loaded_and_not_folded(tmp_path):
    student = make(MIXED)
    student.save(tmp_path / "s")
    features, present = batch(student, 4, missing=True)
    loaded = sf.load(tmp_path / "s")
    assert loaded.config == student.config
    assert torch.equal(loaded(features, present).logits, student(features, present).logits)
    with pytest.raises(sf.ShazamError, match="only bare students fold exactly; this one is 'levels'"):
        student.fold()


def test_the_same_generator_makes_the_same_student():
    left, right = make(), make()
    for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_students_on_levels_are_averaged_and_saved(tmp_path):
    first, second = make(), make()
    with torch.no_grad():
        second.qkv.mul_(0.5)
    both = sf.average([first, second])
    assert both.config.block == "levels"
    assert sf.average([first, make_student(teachers=IN_ORDER)]).config.block == "levels"
    features, present = batch(first, 4, missing=True)
    mean = (first(features, present).logits.softmax(1) + second(features, present).logits.softmax(1)) / 2
    torch.testing.assert_close(both(features, present).logits.exp(), mean)
    both.save(tmp_path / "both")
    torch.testing.assert_close(sf.load(tmp_path / "both")(features, present).logits.exp(), mean)
