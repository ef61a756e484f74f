"""Slide-level teachers: read from other tools' files, alone and side by side, and distilled from."""

import math

import numpy as np
import pytest
import torch
from cohorts import make_cohort
from torch.nn import functional as F

import shazam_fast as sf
from shazam_fast.archive.archive import FeatureArchive
from shazam_fast.errors import ArchiveError, MismatchError, NonFiniteError, ShazamError
from shazam_fast.slides.bags import make_bags
from shazam_fast.slides.losses import hazard_loss
from shazam_fast.slides.options import FitOptions
from shazam_fast.slides.slide_teachers.distillation import Distiller, divergence
from shazam_fast.slides.slide_teachers.reading import add_slide_teachers

h5py = pytest.importorskip("h5py")

QUICK = {"folds": 3, "epochs": 3, "dim": 16, "device": "cpu"}


@pytest.fixture
def archive(tmp_path):
    features = {"uni": np.random.default_rng(0).normal(size=(9, 4))}
    slides = ["s1", "s1", "s2", "s2", "s2", "s3", "s4", "s4", "s4"]
    return sf.open(sf.write_archive(tmp_path / "a", features, slides=slides, groups=["p", "p", *"qqqq", *"rrr"]))


def write(folder, name, vectors, inner="features"):
    for slide, vector in vectors.items():
        path = folder / f"{slide}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "a") as file:
            file[inner.format(name=name)] = np.asarray(vector, dtype=np.float32)


def read(archive, source, by="slide"):
    patients = {"s1": "p", "s2": "q", "s3": "q", "s4": "r"}
    return add_slide_teachers(make_bags(archive, by, patients), source)


def test_a_trident_job(archive, tmp_path, caplog):
    job = tmp_path / "job" / "20x_256px_0px_overlap"
    write(job / "slide_features_titan", "titan", {"s1": [1, 2], "s2": [3, 4], "s4": [7, 8], "unknown": [0, 0]})
    write(job / "slide_features_prism", "prism", {f"s{i}": [[i, -i, 0]] for i in (1, 2, 3, 4)})
    write(job / "features_uni", "uni", {"s1": np.ones((3, 4))})
    bags = read(archive, tmp_path / "job")
    assert bags.slide_teachers == {"prism": 3, "titan": 2}
    assert "'titan' has no feature of 1 of 4 slides: 's3'" in caplog.text
    assert np.array_equal(bags.slide_features[0], [1, -1, 0, 1, 2])
    assert np.array_equal(bags.slide_features[2], [3, -3, 0, np.nan, np.nan], equal_nan=True)
    alone = read(archive, {"titan": job / "slide_features_titan"})
    assert np.array_equal(alone.slide_features, bags.slide_features[:, 3:], equal_nan=True)
    assert read(archive, job / "slide_features_titan").slide_teachers == {"titan": 2}


def test_atlaspatch(archive, tmp_path):
    for name, dim in (("titan", 2), ("prism", 3)):
        vectors = {f"s{i}": np.full(dim, i) for i in (1, 2, 3, 4)}
        write(tmp_path / "job" / "patches", name, vectors, inner="slide_features/{name}")
    write(tmp_path / "job" / "patches", "uni", {"s1": np.ones((2, 4))}, inner="features/{name}")
    assert read(archive, tmp_path / "job").slide_features[:, 0].tolist() == [1, 2, 3, 4]
    assert read(archive, tmp_path / "job").slide_teachers == {"prism": 3, "titan": 2}
    assert read(archive, {"titan": tmp_path / "job"}).slide_teachers == {"titan": 2}


def test_of_a_patient_the_mean_of_his_slides(archive):
    bags = read(archive, {"titan": {"s1.svs": [1.0], "s2": [2.0], "s3": [4.0]}}, by="patient")
    assert bags.names == ("p", "q", "r")
    assert np.array_equal(bags.slide_features[:, 0], [1, 3, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        ({"t1": [1.0]}, MismatchError, "'titan' has none of the slides of .*, but 't1'"),
        ({"s1": [1.0], "s2": [1.0, 2.0]}, MismatchError, r"1 columns in .*s1.*, 2 in .*s2"),
        ({"s1": [1.0, math.nan]}, NonFiniteError, r"s1.*NaN or infinite"),
        ({"s1": np.ones((2, 3))}, ArchiveError, r"s1.*one vector of numbers.*\(2, 3\)"),
        ({"s1": []}, ArchiveError, r"s1.*one vector"),
        ({"s1": 1.0}, ArchiveError, r"s1.*one vector"),
    ],
)
def test_features_that_are_wrong(archive, tmp_path, vectors, error, message):
    write(tmp_path / "slide_features_titan", "titan", vectors)
    for source in (tmp_path, {"titan": vectors}):
        with pytest.raises(error, match=message):
            read(archive, source)


def test_sources_that_are_wrong(archive, tmp_path):
    with pytest.raises(ArchiveError, match="no such directory"):
        read(archive, tmp_path / "nothing")
    with pytest.raises(ArchiveError, match=r"no slide-level features found; slide_features_<teacher>"):
        read(archive, tmp_path)
    with pytest.raises(ArchiveError, match=r"no slide-level features of 'prism' found"):
        read(archive, {"prism": tmp_path})
    with pytest.raises(ShazamError, match=r"a directory, or {teacher: directory}, expected, found list"):
        read(archive, ["titan"])
    (tmp_path / "slide_features_titan").mkdir()
    (tmp_path / "slide_features_titan" / "s1.h5").write_bytes(b"no")
    with pytest.raises(ArchiveError, match=r"s1.h5: HDF5 cannot read it"):
        read(archive, tmp_path)


def kl(a, b):
    return sum(p * math.log(p / q) for p, q in zip(a, b, strict=True))


def softmax(row):
    exponentials = [math.exp(value) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def events(row):
    """Probability of the event in each interval, and of none."""
    found, survival = [], 1.0
    for value in row:
        hazard = 1 / (1 + math.exp(-value))
        found.append(survival * hazard)
        survival *= 1 - hazard
    return [*found, survival]


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
@pytest.mark.parametrize("task", ["classification", "survival_nll", "survival_cox"])
def test_divergence_is_what_the_formula_gives(task, direction):
    torch.manual_seed(0)
    one, two = torch.randn(2, 5, 1 if task == "survival_cox" else 4, dtype=torch.float64)
    tau = 3.0
    lines = [(one / tau).tolist(), (two / tau).tolist()]
    if task == "survival_cox":
        lines = [[[row[0] for row in rows]] for rows in lines]  # one distribution, over slides
    read_out = events if task == "survival_nll" else softmax
    first, second = lines if direction == "student_teacher" else lines[::-1]
    wanted = tau**2 * sum(kl(read_out(a), read_out(b)) for a, b in zip(first, second, strict=True))
    assert divergence(task, one, two, tau, direction).item() == pytest.approx(wanted, rel=1e-12)
    pairs = [x.clone().requires_grad_() for x in (one, two)]
    assert torch.autograd.gradcheck(lambda a, b: divergence(task, a, b, tau, direction), pairs)


@pytest.mark.parametrize("supervised", [True, False])
def test_the_distillers_loss_is_what_the_formula_gives(supervised):
    """Two teachers, of which one lacks slides; plain float64."""
    torch.manual_seed(0)
    options = FitOptions(distillation=0.3, supervise_teachers=supervised)
    mean, scale = torch.randn(5).double(), torch.rand(5).double() + 0.5
    distiller = Distiller({"titan": 2, "prism": 3}, 4, "classification", options, (mean, scale)).double()
    head = torch.nn.Linear(4, 3).double()
    z, labels = torch.randn(6, 4).double(), torch.tensor([0, 2, 1, 1, 0, 2])
    features = torch.randn(6, 5).double()
    lacking = [1, 4]
    features[lacking, 2:] = math.nan

    def task_loss(outputs, chosen):
        return F.cross_entropy(outputs, labels[chosen], reduction="sum")

    found = distiller(head(z), features, head, task_loss, torch.arange(6))
    wanted = 0.0
    for s in range(6):
        h = head(z[s])
        wanted += 0.7 * -math.log(softmax(h.tolist())[labels[s]])
        for i, own in enumerate((slice(0, 2), slice(2, 5))):
            if i == 1 and s in lacking:
                continue
            h_i = head(distiller.projectors[i]((features[s, own] - mean[own]) / scale[own]))
            wanted += 0.3 / 2 * 9 * kl(softmax((h / 3).tolist()), softmax((h_i / 3).tolist()))
            if supervised:
                wanted += 0.7 / 2 * -math.log(softmax(h_i.tolist())[labels[s]])
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    found.backward()
    assert all(torch.isfinite(p.grad).all() for p in [*distiller.parameters(), *head.parameters()])


def test_without_a_supervised_term_projectors_learn_from_agreement_alone():
    options = FitOptions(distillation=0.5, supervise_teachers=False)
    distiller = Distiller({"titan": 2}, 4, "survival_nll", options, (torch.zeros(2), torch.ones(2)))
    head = torch.nn.Linear(4, 4)
    features = torch.randn(3, 2)
    same = head(distiller.projectors[0](features)).detach()
    zero = distiller(same, features, head, lambda o, c: hazard_loss(o, c, c > 0) * 0, torch.arange(3))
    assert zero.item() == pytest.approx(0, abs=1e-6)


def make_slide_features(archive, labels, missing=(), strength=3.0, seed=0):
    """Of one teacher that sees the label, and of one that sees nothing."""
    rng = np.random.default_rng(seed)
    found = {"titan": {}, "prism": {}}
    for name in archive.slides:
        shift = strength * (labels[name] == "b")
        found["titan"][name] = rng.normal(size=6) + shift
        found["prism"][name] = rng.normal(size=9)
    for name in missing:
        del found["titan"][name]
    return found


def test_linear_models_of_slide_level_teachers(tmp_path, monkeypatch):
    """Alone and side by side; the one that sees nothing is at chance. No patch is read."""
    archive, labels, _ = make_cohort(tmp_path / "a", slides=60, sizes=(3, 9))
    monkeypatch.setattr(FeatureArchive, "gather", None)
    monkeypatch.setattr(FeatureArchive, "stream", None)
    found = make_slide_features(archive, labels, missing=["s003", "s010"])
    options = {"folds": 3, "epochs": 40, "device": "cpu", "model": "slide_linear", "lr": 0.02, "dropout": 0.0}
    sources = {"titan": {"titan": found["titan"]}, "prism": {"prism": found["prism"]}, "both": found}
    auroc = {
        name: sf.slides.train(archive, labels, slide_teachers=source, **options).metrics.values["auroc"].value
        for name, source in sources.items()
    }
    assert auroc["titan"] > 0.9
    assert auroc["both"] > 0.9
    assert 0.2 < auroc["prism"] < 0.8
    with pytest.raises(MismatchError, match="'slide_linear' reads slide-level teachers: give slide_teachers="):
        sf.slides.train(archive, labels, **options)


def test_a_linear_model_on_disk(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=24, sizes=(3, 9))
    found = make_slide_features(archive, labels, missing=["s003"])
    options = QUICK | {"model": "slide_linear", "slide_teachers": found}
    result = sf.slides.train(archive, labels, out=tmp_path / "run", **options)
    again = sf.slides.train(archive, labels, out=tmp_path / "run", **options)
    assert again.metrics == result.metrics
    others = {"titan": found["titan"], "prism": {name: vector + 1 for name, vector in found["prism"].items()}}
    with pytest.raises(MismatchError, match="other slide-level teachers"):
        sf.slides.train(archive, labels, out=tmp_path / "run", **(options | {"slide_teachers": others}))
    student = sf.slides.load(tmp_path / "run")
    assert student.config.slide_teachers == {"titan": 6, "prism": 9}
    scores = sf.slides.score(student, archive, tmp_path / "scores", slide_teachers=found, device="cpu")
    assert len(scores) == 24
    with pytest.raises(MismatchError, match="other slide-level teachers"):
        sf.slides.score(student, archive, tmp_path / "scores", slide_teachers=others, device="cpu")
    known = {"slide_teachers": found, "allow_trained_slides": True, "device": "cpu"}
    assert sf.slides.evaluate(student, archive, labels, **known).n_slides == 24
    for wrong in (None, {"titan": found["titan"]}, dict(reversed(found.items()))):
        with pytest.raises(MismatchError, match=r"the student's {'titan': 6, 'prism': 9} expected, in this order"):
            sf.slides.score(student, archive, slide_teachers=wrong, device="cpu")


def test_what_a_linear_model_says_of_a_slide(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=24, sizes=(3, 9))
    found = make_slide_features(archive, labels, missing=["s003"])
    model = sf.slides.train(archive, labels, model="slide_linear", slide_teachers=found, **QUICK).student.models[0]
    x = torch.tensor(np.concatenate([found["titan"]["s000"], found["prism"]["s000"]]), dtype=torch.float64)
    p = {name: tensor.double() for name, tensor in model.state_dict().items()}
    wanted = p["head.weight"] @ ((x - p["feature_mean"]) / p["feature_scale"]) + p["head.bias"]
    none = torch.zeros(2, dtype=torch.long)
    outputs = model(torch.empty(2, 0), none, 1, slide_features=x.float()[None]).outputs[0]
    torch.testing.assert_close(outputs.double(), wanted, rtol=1e-5, atol=1e-5)
    nothing = model(torch.empty(2, 0), none, 1, slide_features=torch.full((1, 15), torch.nan)).outputs[0]
    torch.testing.assert_close(nothing, model.head.bias)


def test_distillation_changes_training_and_teachers_are_not_needed_to_score(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=60, sizes=(20, 40), telling=0.1, strength=5.0)
    found = make_slide_features(archive, labels, missing=["s003", "s010"])
    options = {"folds": 3, "epochs": 15, "dim": 16, "device": "cpu", "model": "gated_abmil"}
    alone = sf.slides.train(archive, labels, **options)
    taught = sf.slides.train(archive, labels, slide_teachers=found, **options)
    assert not np.array_equal(taught.predictions.values, alone.predictions.values)
    unused = sf.slides.train(archive, labels, slide_teachers=found, distillation=0.0, **options)
    assert np.allclose(unused.predictions.values, alone.predictions.values)
    taught.student.save(tmp_path / "student")
    scores = sf.slides.score(tmp_path / "student", archive, device="cpu")
    assert scores.values.shape == (60, 2)
    assert taught.student.config.slide_teachers == {}


@pytest.mark.parametrize("loss", ["nll", "cox"])
def test_distillation_of_survival(tmp_path, loss):
    import pandas as pd
    from cohorts import make_survival

    archive, labels, _ = make_cohort(tmp_path / "a", slides=30, sizes=(3, 9))
    targets = sf.slides.Survival(pd.DataFrame(make_survival(labels)), "months", "dead", observed=1)
    found = make_slide_features(archive, labels, missing=["s003"])
    result = sf.slides.train(archive, targets, loss=loss, slide_teachers=found, model="mean", **QUICK)
    assert all(math.isfinite(record["loss"]) for fold in result.history for record in fold)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distillation": 1.5}, "distillation"),
        ({"temperature": -1.0}, "temperature"),
        ({"kl": "both"}, "kl: one of student_teacher, teacher_student"),
        ({"supervise_teachers": "yes"}, "supervise_teachers"),
    ],
)
def test_options_that_are_wrong(options, message):
    with pytest.raises(ShazamError, match=message):
        FitOptions(**options)
