"""Students that are trained together are those trained alone."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import make_patches
from trainings import QUICK

import shazam_fast as sf
from shazam_fast.errors import MismatchError, NonFiniteError, ShazamError
from shazam_fast.runtime.progress import Progress
from shazam_fast.sweeping import lanes
from shazam_fast.sweeping.run import GroupRun, Member
from shazam_fast.training.feed import feature_statistics
from shazam_fast.training.loop import new_student
from shazam_fast.training.plan import plan_epoch
from shazam_fast.training.train import checked_rows

PLAIN = {**QUICK, "preset": "unitopatho", "device": "cpu", "patience": 50}
# What float32 leaves between both, measured: 1e-7 for bare students, and 1.5e-3 for residual ones, whose key biases
# have no gradient but rounding, which AdamW scales to full steps.
TOLERANCE = {"bare": 1e-5, "residual": 1e-2}
EVERYTHING = {
    "teacher_dropout": 0.3, "feature_dropout": 0.3, "balance": 0.5, "teacher_heads": 0.3, "schedule": "one_cycle",
    "targets": "frozen", "mixup": 0.4,
}  # fmt: skip
VARIANTS = {
    "bare": {},
    "detached": {"targets": "detached", "huber": "elementwise"},
    "residual": {"block": "residual", "targets": "frozen", "huber": "elementwise", "standardize": False},
    "everything": EVERYTHING,
    "residual with everything": {"block": "residual", **EVERYTHING},
    "last epoch": {"selection": "last"},
    "recommended": {"preset": "recommended"},
    "one layer": {"depth": 1, "dim": 5},
}


def largest_difference(left, right):
    right = right.state_dict()
    return max((x - right[name]).abs().max().item() for name, x in left.state_dict().items())


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_students_are_those_that_train_gives(archive, options):
    options = {**PLAIN, **options}
    grid = [{"lam": 0.5}, {"lam": 0.0, "lr": 3e-3}, {"weight_decay": 0.1, "delta": 0.3}]
    result = sf.sweep(archive, grid, **options)
    for own, run in zip(grid, result.runs, strict=True):
        alone = sf.train(archive, **{**options, **own})
        assert largest_difference(alone.student, run.student) < TOLERANCE[run.config.block]
        assert [r["val_score"] for r in run.history] == pytest.approx([r["val_score"] for r in alone.history])
        assert [r["loss"] for r in run.history] == pytest.approx([r["loss"] for r in alone.history], rel=1e-5)
        assert run.metrics.balanced_accuracy == pytest.approx(alone.metrics["val"].balanced_accuracy)


def alone_in_float64(archive, config, rows, standard, order_seed):
    """The ordinary student, autograd and AdamW of PyTorch."""
    student = new_student(archive, config)
    student.feature_mean.copy_(standard[0])
    student.feature_scale.copy_(standard[1])
    student = student.double()
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    objective = config.objective(torch.from_numpy(np.bincount(archive.labels[rows["train"]])))
    for epoch in range(config.epochs):
        n = len(rows["train"])
        plan = plan_epoch(replace(config, seed=order_seed), epoch, n, range(len(archive.teachers)), archive.width)
        for step, start in enumerate(range(0, n, config.batch_size)):
            chosen = plan.order[start : start + config.batch_size]
            here = rows["train"][chosen]
            present = None if plan.present is None else torch.from_numpy(plan.present[chosen])
            scale = None
            if plan.kept is not None:
                kept = torch.from_numpy(plan.kept[step])
                scale = torch.where(kept, student.feature_scale * (1 - config.feature_dropout), torch.inf)
            mixture = None if plan.mixtures is None else torch.tensor([float(plan.mixtures[step])]).double()
            if plan.rates is not None:
                optimizer.param_groups[0]["lr"] = float(plan.rates[step])
            features = torch.from_numpy(archive.gather(here)).double()
            losses = objective(student, features, torch.from_numpy(archive.labels[here]), present, None, scale, mixture)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
    return student


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_other_seeds_see_the_common_order_in_float64(archive, options):
    config = sf.TrainConfig.from_preset(**{**PLAIN, "epochs": 1, **options})
    configs = [replace(config, seed=seed, lam=lam, lr=lr) for seed, lam, lr in ((1, 0.1, 1e-3), (5, 0.7, 3e-3))]
    rows = checked_rows(archive, config)
    standard = feature_statistics(archive, rows["train"])
    members = []
    for own in configs:
        student = new_student(archive, own)
        student.feature_mean.copy_(standard[0])
        student.feature_scale.copy_(standard[1])
        members.append(Member(own, student.double(), "a student"))
    with Progress("training", 1, "patches") as progress:
        GroupRun(archive, members, torch.device("cpu"), rows, standard, 3).train(progress)
    for own, member in zip(configs, members, strict=True):
        alone = alone_in_float64(archive, own, rows, standard, 3)
        worst = 1e-6 if own.schedule == "one_cycle" else 1e-9  # rates are float32
        ignored = ("blocks.qkv_bias",)  # keys' biases have no gradient but rounding
        for name, value in alone.state_dict().items():
            if name not in ignored:
                assert torch.allclose(member.student.state_dict()[name], value, atol=worst, rtol=0), name


@pytest.mark.parametrize("stacked", [1, 2, 64])
def test_stacks_change_nothing(archive, monkeypatch, stacked):
    grid = {"seed": [0, 1, 2, 3, 4]}
    wanted = sf.sweep(archive, grid, **PLAIN)
    monkeypatch.setattr(lanes, "STACKED", stacked)
    found = sf.sweep(archive, grid, **PLAIN)
    for left, right in zip(wanted.students, found.students, strict=True):
        assert largest_difference(left, right) < 1e-5


def test_two_threads_give_what_one_gives(archive):
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            results.append(sf.sweep(archive, {"seed": [0, 1, 2]}, **PLAIN))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    for left, right in zip(results[0].students, results[1].students, strict=True):
        assert largest_difference(left, right) < 1e-5


@pytest.mark.parametrize(("students", "threads"), [(1, 1), (1, 2), (4, 1), (4, 2), (2, 3)])
def test_no_more_threads_than_are_allowed(students, threads):
    before = torch.get_num_threads()
    with lanes.Lanes(torch.device("cpu"), students, threads) as found:
        seen = found.map(lambda _: (threading.get_ident(), torch.get_num_threads()), range(20))
    together = min(students, threads)
    assert len({thread for thread, _ in seen}) <= together
    assert {inner for _, inner in seen} == {threads if together == 1 else 1}
    assert torch.get_num_threads() == before


def test_the_threads_of_a_sweep_are_an_option(archive, monkeypatch):
    asked = []
    monkeypatch.setattr(lanes, "count_cores", lambda: asked.append("cores") or 1)
    sf.sweep(archive, [{}], **PLAIN, threads=2)
    assert not asked
    sf.sweep(archive, [{}], **PLAIN)
    assert asked == ["cores"]


def test_students_stop_one_by_one(archive):
    options = {**PLAIN, "epochs": 12}
    grid = [{"patience": 1, "seed": 0}, {"patience": 12, "seed": 0}, {"patience": 2, "seed": 0, "lr": 0.01}]
    result = sf.sweep(archive, grid, **options)
    for own, run in zip(grid, result.runs, strict=True):
        alone = sf.train(archive, **{**options, **own})
        assert len(run.history) == len(alone.history)
        assert largest_difference(alone.student, run.student) < 1e-4
    assert len({len(run.history) for run in result.runs}) > 1


def test_other_shapes_are_trained_group_after_group(archive):
    result = sf.sweep(archive, {"depth": [1, 2], "block": ["bare", "residual"]}, **PLAIN)
    assert [(r.student.config.depth, r.student.config.block) for r in result.runs] == [
        (1, "bare"), (1, "residual"), (2, "bare"), (2, "residual"),
    ]  # fmt: skip
    for run in result.runs:
        alone = sf.train(archive, **{**PLAIN, **run.options})
        assert largest_difference(alone.student, run.student) < TOLERANCE[run.config.block]


def test_one_teacher_and_one_student(tmp_path):
    archive = sf.write_archive(tmp_path / "one", **make_patches(rows=83, teachers={"uni": 9}, classes=("a", "b")))
    result = sf.sweep(archive, [{}], **PLAIN)
    alone = sf.train(archive, **PLAIN)
    assert largest_difference(alone.student, result.students[0]) < 1e-5


def test_best_and_tables(archive):
    result = sf.sweep(archive, {"lr": [1e-6, 1e-2]}, **PLAIN)
    assert result.best.options == {"lr": 1e-2}
    assert result.best.score == max(r["val_score"] for r in result.best.history)
    again = sf.evaluate(result.best.student, archive, "val", device="cpu")
    assert result.best.metrics.confusion.tolist() == again.confusion.tolist()
    assert result.best.metrics.auroc == pytest.approx(again.auroc)
    assert result.best.metrics.calibration_error == pytest.approx(again.calibration_error, abs=1e-5)
    table = result.to_pandas()
    assert table["lr"].tolist() == [1e-6, 1e-2]
    assert table["val_balanced_accuracy"][1] == result.best.metrics.balanced_accuracy
    assert [run["options"] for run in result.to_dict()["runs"]] == [{"lr": 1e-6}, {"lr": 1e-2}]
    assert result.best.student.training_record["order_seed"] == 0


def poison(archive, row):
    """Make a feature of teacher virchow NaN on disk."""
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    offset = 4096 + (row * archive.width + archive.columns_of("virchow").start + 3) * 2
    content[offset : offset + 2] = np.float16(np.nan).tobytes()
    part.write_bytes(content)


def test_the_test_split_is_not_read(archive):
    wanted = sf.sweep(archive, [{}], **PLAIN).students[0]
    poison(archive, int(archive.split("test")[5]))
    assert largest_difference(wanted, sf.sweep(sf.open(archive.path), [{}], **PLAIN).students[0]) == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_feature_that_is_not_finite_is_named(archive, split):
    row = int(archive.split(split)[7])
    poison(archive, row)
    with pytest.raises(NonFiniteError, match=rf"teacher 'virchow', row {row} .*: the feature is nan"):
        sf.sweep(archive.path, [{}, {"seed": 1}], **PLAIN)


def test_a_student_that_diverges_is_named(archive):
    with pytest.raises(NonFiniteError, match=r"student 1 .*lr=1e\+30"):
        sf.sweep(archive, {"lr": [1e-3, 1e30]}, **PLAIN)


@pytest.mark.parametrize(
    ("students", "options", "message"),
    [
        ([], {}, "at least one student"),
        ({}, {}, "at least one student"),
        ({"seed": []}, {}, "at least one student"),
        ({"seed": 5}, {}, "list of values of 'seed'"),
        ({"block": "bare"}, {}, "list of values of 'block'"),
        ({"sede": [1]}, {}, "'sede'"),
        ([{"seed": 1}, {"width": 1}], {}, "student 1: there is no option 'width'"),
        (3, {}, "found int"),
        (["seed"], {}, "found list"),
        ([{}], {"lamda": 1}, "lamda"),
        ([{"lr": -1.0}], {}, "lr"),
        ([{}], {"order_seed": -1}, "order_seed"),
        ([{}], {"backend": "reference"}, "backend='reference'"),
        ([{}], {"precision": "tf32"}, "precision='tf32'"),
        ([{"block": "levels"}], {}, "block='levels': a sweep offers 'bare' and 'residual' alone"),
    ],
)
def test_wrong_inputs_are_refused(archive, students, options, message):
    with pytest.raises(ShazamError, match=message):
        sf.sweep(archive, students, **options)


def test_an_archive_without_labels_is_refused(tmp_path):
    patches = make_patches()
    archive = sf.write_archive(tmp_path / "bare", patches["features"], splits=patches["splits"])
    with pytest.raises(MismatchError, match="no labels"):
        sf.sweep(archive, [{}], **PLAIN)
