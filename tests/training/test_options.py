"""What a training may have beyond the paper, each against its formula; and the paper's settings, without any of it."""

import equations
import numpy as np
import pytest
import torch
from students import array, make_batch, make_student
from torch.nn import functional as F
from trainings import QUICK, assert_same_bits, tensors, without_times

import shazam_fast as sf
from shazam_fast.training.feed import feature_statistics
from shazam_fast.training.objective import Objective
from shazam_fast.training.plan import MASKS, plan_epoch

EVERYTHING = {
    "teacher_dropout": 0.3, "balance": 0.7, "teacher_heads": 0.4, "feature_dropout": 0.5, "schedule": "one_cycle",
    "mixup": 0.3,
}  # fmt: skip
PAPER = {
    "epochs": 100, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-3, "schedule": "constant", "lam": 0.5, "delta": 1.0,
    "huber": "norm", "targets": "projected", "balance": 0.0, "teacher_heads": 0.0, "mixup": 0.0, "dim": 128, "depth": 5,
    "block": "bare", "teacher_dropout": 0.0, "feature_dropout": 0.0, "standardize": True, "selection": "best",
    "patience": 20, "seed": 0, "device": None, "backend": "auto", "precision": "ieee", "checkpoint_seconds": 30.0,
    "shuffle": "full", "threads": None,
}  # fmt: skip
SCRIPT = {
    "block": "residual", "huber": "elementwise", "targets": "frozen", "standardize": False, "epochs": 50,
    "patience": 10,
}  # fmt: skip


@pytest.mark.parametrize("missing", [False, True])
def test_offsets_and_heads_are_what_the_formula_says(missing):
    """Cross-entropies of z + offsets; mean over teachers and patches of each head's, a missing teacher counting 0."""
    student = make_student()
    student.add_teacher_heads(torch.Generator().manual_seed(1))
    student.double()
    features, present = make_batch(student, 6, missing=missing)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    offsets = torch.tensor([-0.2, -1.5, -2.5], dtype=torch.float64)
    found = Objective(0.7, 1.0, "norm", "projected", 0.3, offsets)(student, features, labels, present)
    plain = Objective(0.7, 1.0, "norm", "projected")(student, features, labels, present)
    logits = array(student.fuse(student.tokens(features, present), present).logits) + array(offsets)
    cross_entropy = equations.cross_entropy(logits, labels.numpy())
    tokens, maps = array(student.tokens(features, present)), student.teacher_heads
    expected = []
    for i, (W, b) in enumerate(zip(array(maps.weight), array(maps.bias), strict=True)):
        single = [equations.cross_entropy((t @ W + b + array(offsets))[None], labels[k : k + 1].numpy())
                  for k, t in enumerate(tokens[:, i]) if present is None or present[k, i]]  # fmt: skip
        expected.append(sum(single) / 6)
    np.testing.assert_allclose(array(found.heads), expected, atol=1e-12)
    assert found.cross_entropy.item() == pytest.approx(cross_entropy, abs=1e-12)
    distillation = (plain.total - plain.cross_entropy).item()
    assert found.total.item() == pytest.approx(cross_entropy + distillation + 0.3 * np.mean(expected), abs=1e-12)
    assert plain.heads.shape == (0,)


def test_heads_without_a_student_that_has_them():
    student = make_student()
    features, _ = make_batch(student)
    with pytest.raises(sf.ShazamError, match="needs a student with teacher_heads; train"):
        Objective(0.5, 1.0, "norm", "projected", 0.3)(student, features, torch.zeros(5, dtype=torch.long))


def test_balance_is_the_log_of_the_frequencies():
    objective = sf.TrainConfig(balance=0.5).objective(torch.tensor([6, 3, 1]))
    np.testing.assert_allclose(objective.offsets, 0.5 * np.log([0.6, 0.3, 0.1]), rtol=1e-6)
    assert sf.TrainConfig(balance=0.0).objective().offsets is None


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_an_infinite_scale_leaves_a_column_out(block):
    """The column has no influence on a token, and its weights get no gradient."""
    student = make_student(block)
    features, _ = make_batch(student)
    kept = torch.rand(features.shape[1], generator=torch.Generator().manual_seed(0)) > 0.5
    scale = torch.where(kept, student.feature_scale * 0.5, torch.inf)
    found = student.tokens(features, scale=scale)
    replaced = torch.where(kept, features, student.feature_mean)
    doubled = student.feature_mean + 2.0 * (replaced - student.feature_mean)
    torch.testing.assert_close(found, student.tokens(doubled))
    found.sum().backward()
    assert (student.projection.weight.grad[~kept] == 0).all()
    assert (student.projection.weight.grad[kept] != 0).any()


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_mixing_is_that_of_features_and_losses(block):
    """The losses of mixed features, against those of features that were mixed by hand."""
    student = make_student(block)
    student.add_teacher_heads(torch.Generator().manual_seed(1))
    student.double()
    features, _ = make_batch(student, 6)
    labels, share = torch.tensor([0, 1, 2, 2, 1, 0]), 0.3
    objective = Objective(0.7, 1.0, "norm", "projected", 0.4, torch.tensor([-0.2, -1.5, -2.5], dtype=torch.float64))
    found = objective(student, features, labels, mixture=torch.tensor([share], dtype=torch.float64))
    by_hand = share * features + (1 - share) * features.flip(0)
    own, other = (objective(student, by_hand, y) for y in (labels, labels.flip(0)))
    for name in ("total", "cross_entropy", "heads", "cosine"):
        expected = share * getattr(own, name) + (1 - share) * getattr(other, name)
        torch.testing.assert_close(getattr(found, name), expected)
    plain = objective(student, features, labels)
    assert found.total.item() != pytest.approx(plain.total.item())


def test_mixtures_are_drawn_from_beta_and_repeat():
    config = sf.TrainConfig(mixup=0.4, batch_size=1)
    plan, again, next_epoch = (plan_epoch(config, epoch, 20000, [0], 1) for epoch in (3, 3, 4))
    np.testing.assert_array_equal(plan.mixtures, again.mixtures)
    assert (plan.mixtures != next_epoch.mixtures).any()
    assert plan.mixtures.mean() == pytest.approx(0.5, abs=0.01)
    assert plan.mixtures.var() == pytest.approx(0.25 / 1.8, abs=0.005)  # 1 / (4 (2 a + 1))


def test_feature_dropout_keeps_the_expected_share_and_repeats():
    config = sf.TrainConfig(feature_dropout=0.3, batch_size=1)
    plan, again, next_epoch = (plan_epoch(config, epoch, 2000, [0, 1], 40) for epoch in (3, 3, 4))
    assert plan.kept.shape == (MASKS, 40)
    assert plan.kept.mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_array_equal(plan.kept, again.kept)
    assert (plan.kept != next_epoch.kept).any()
    assert len(np.unique(plan.kept, axis=0)) == MASKS


def test_one_cycle_rises_and_falls():
    config = sf.TrainConfig(schedule="one_cycle", epochs=10, batch_size=8, lr=0.01)
    rates = np.concatenate([plan_epoch(config, epoch, 80, [0], 1).rates for epoch in range(10)])
    assert rates[0] == pytest.approx(0.04 * 0.01)
    assert rates.argmax() == 30
    assert rates.max() == pytest.approx(0.01)
    assert (np.diff(rates[:31]) > 0).all()
    assert (np.diff(rates[30:]) < 0).all()
    assert rates[65] == pytest.approx(0.01 * (1e-4 + (1 - 1e-4) / 2), rel=1e-5)  # half way down
    assert rates[-1] < 0.01 * 1e-2
    assert plan_epoch(sf.TrainConfig(schedule="constant"), 0, 80, [0], 1).rates is None


def test_the_optimizer_takes_the_planned_rates(archive):
    """AdamW moves every parameter by about its learning rate in its first step: with one-cycle, 4% of lr."""
    options = {**QUICK, "epochs": 1, "batch_size": 150, "weight_decay": 0.0, "seed": 3}
    generator = torch.Generator().manual_seed(3)
    start = sf.Student(sf.TrainConfig(**options).student(archive.teachers, archive.classes), generator)
    moves = {}
    for schedule in ("constant", "one_cycle"):
        student = sf.train(archive, **options, schedule=schedule).student
        moves[schedule] = (student.head[3].bias - start.head[3].bias).abs().max().item()
    assert moves["one_cycle"] == pytest.approx(0.04 * moves["constant"], rel=1e-2)


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_stopped_between_epochs_and_continued_gives_the_same_bits(tmp_path, archive, monkeypatch, block):
    from shazam_fast.training.loop import TrainingRun

    options = {**QUICK, **EVERYTHING, "block": block, "checkpoint_seconds": 0.0}
    whole = sf.train(archive, out=tmp_path / "whole", **options)
    calls = []
    advance = TrainingRun._train_epoch

    def stop_in_the_middle(run, interrupted, progress):
        calls.append(0)
        advance(run, (lambda: len(calls) == 3 and run._state.step == 4), progress)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "_train_epoch", stop_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            sf.train(archive, out=tmp_path / "run", **options)
    continued = sf.train(archive, out=tmp_path / "run", **options)
    assert_same_bits(tensors(whole.student), tensors(continued.student))
    assert without_times(whole.history) == without_times(continued.history)
    assert set(whole.history[0]["teacher_heads"]) == set(archive.teachers)
    assert whole.student.teacher_heads is not None


def test_the_last_epoch_is_kept_where_asked(archive):
    """Whatever the validation scores; patience does not stop it."""
    options = {**QUICK, "epochs": 12, "lr": 0.02, "patience": 1}
    last = sf.train(archive, **options, selection="last")
    scores = [record["val_score"] for record in last.history]
    assert len(scores) == 12
    assert int(np.argmax(scores)) != 11, "the test needs a best epoch that is not the last"
    assert last.metrics["val"].balanced_accuracy == last.history[-1]["val_balanced_accuracy"]


OPTIONS = ["balance", "teacher_heads", "mixup", "feature_dropout", "schedule", "selection", "shuffle"]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_part_of_the_job(tmp_path, archive, option):
    sf.train(archive, out=tmp_path / "run", **QUICK)
    changed = {"balance": 0.123, "teacher_heads": 0.123, "mixup": 0.123, "feature_dropout": 0.123}
    changed["shuffle"] = "blocks"
    changed["selection"] = "best" if sf.TrainConfig().selection == "last" else "last"
    changed["schedule"] = "constant" if sf.TrainConfig().schedule == "one_cycle" else "one_cycle"
    with pytest.raises(sf.MismatchError, match=f"written with (an)?other {option}"):
        sf.train(archive, out=tmp_path / "run", **QUICK, **{option: changed[option]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": -0.1}, "balance: a number at least 0 expected, found -0.1"),
        ({"balance": True}, "balance: a number at least 0 expected, found True"),
        ({"teacher_heads": -1}, "teacher_heads: a number at least 0 expected, found -1"),
        ({"mixup": -0.1}, "mixup: a number at least 0 expected, found -0.1"),
        ({"feature_dropout": 1.0}, "feature_dropout: a number at least 0 and less than 1 expected, found 1.0"),
        ({"selection": "first"}, "selection: one of best, last expected, found 'first'"),
        ({"schedule": "cosine"}, "schedule: one of constant, one_cycle expected, found 'cosine'"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(sf.ShazamError, match=message):
        sf.TrainConfig(**options)


@pytest.mark.parametrize(
    ("preset", "changes"), [("unitopatho", {}), ("huncrc", {"lam": 0.05}), ("authors_script", SCRIPT)]
)
def test_the_papers_presets_have_nothing_else(preset, changes):
    assert vars(sf.TrainConfig.from_preset(preset)) == {**PAPER, **changes}


@pytest.mark.parametrize("preset", ["unitopatho", "huncrc", "authors_script"])
def test_the_papers_presets_train_as_the_paper_says_to_the_last_bit(archive, preset):
    """Against a loop written out here: AdamW on cross-entropy and distillation, batches in a seeded order."""
    config = sf.TrainConfig.from_preset(preset, epochs=3, dim=16, depth=2, batch_size=16, device="cpu")
    result = sf.train(archive, config)
    rows = archive.split("train")
    x, y = torch.from_numpy(archive.gather(rows)), torch.from_numpy(archive.labels[rows])
    generator = torch.Generator().manual_seed(0)
    student = sf.Student(config.student(archive.teachers, archive.classes), generator)
    if preset == "authors_script":
        student.freeze_targets(generator)
    else:
        mean, scale = feature_statistics(archive, rows)
        student.feature_mean.copy_(mean)
        student.feature_scale.copy_(scale)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-3, fused=True)
    after = []
    for epoch in range(3):
        order = torch.from_numpy(np.random.default_rng([0, 0, epoch]).permutation(len(rows)))
        for batch in order.split(16):
            optimizer.zero_grad()
            student_loss(student, config, x[batch], y[batch]).backward()
            optimizer.step()
        after.append(tensors(student))
    best = max(result.history, key=lambda record: record["val_score"])["epoch"]
    assert_same_bits(after[best], tensors(result.student))


def student_loss(student, config, x, y):
    from shazam_fast.ops import dispatch as ops

    tokens = student.tokens(x)
    output = student.fuse(tokens)
    targets = student.fixed_targets(x) if config.targets == "frozen" else tokens
    distilled, _, _ = ops.distillation_loss(output.fused, targets, config.lam, config.delta, config.huber, None)
    return F.cross_entropy(output.logits, y) + distilled
