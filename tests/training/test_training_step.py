"""Steps of training: what a capture leaves behind, and on a GPU that graphs, streams and plain steps agree."""

import numpy as np
import pytest
import torch
from steps import BATCH, DEVICE, EVERYTHING, Loop

import shazam_fast as sf
from shazam_fast.training import feed as feeds

needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs an NVIDIA GPU")


def assert_same_bits(left, right):
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture(params=["bare-dropout", "bare-everything", "residual-dropout", "residual-everything"])
def two_loops(request, archive):
    """The same epoch twice."""
    block, what = request.param.split("-")
    options = EVERYTHING if what == "everything" else {"teacher_dropout": 0.3}
    return [Loop(archive, block=block, **options) for _ in range(2)]


def test_warming_up_leaves_no_trace(two_loops):
    fresh, warmed = two_loops
    fresh.begin()
    warmed.begin()
    warmed.step._warm_up(BATCH)
    assert_same_bits(warmed.run(warmed.plainly), fresh.run(fresh.plainly))
    assert (fresh.losses != 0).all()


def test_every_patch_is_seen_once_with_its_label(archive):
    feed = feeds.TrainingFeed(archive, archive.split("train"), DEVICE, BATCH)
    rows = archive.split("train")
    order = np.random.default_rng(0).permutation(len(rows))
    feed.begin(order, 1)  # an epoch that goes on after its first step
    seen = []
    for start in range(BATCH, len(rows), BATCH):
        size = min(BATCH, len(rows) - start)
        feed.fetch()
        features, chosen, labels, positions = feed.take(size)
        features = (features if chosen is None else features[chosen]).float().cpu()
        here = rows[positions.cpu().numpy()]
        np.testing.assert_array_equal(features.numpy(), archive.gather(here))
        np.testing.assert_array_equal(labels.cpu().numpy(), archive.labels[here])
        seen += positions.tolist()
    assert seen == order[BATCH:].tolist()


@needs_gpu
def test_a_graph_takes_the_steps_that_plain_calls_take(two_loops):
    plain, graphed = two_loops
    plain.begin()
    graphed.begin()
    assert_same_bits(graphed.run(graphed.step.run), plain.run(plain.plainly))


@needs_gpu
def test_a_step_that_cannot_be_captured_is_taken_all_the_same(archive, monkeypatch, caplog):
    plain, refused = Loop(archive), Loop(archive)

    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    plain.begin()
    refused.begin()
    assert_same_bits(refused.run(refused.step.run), plain.run(plain.plainly))
    assert caplog.text.count("no CUDA graph could be made of a step") == len(
        {BATCH, len(refused.n_rows) % BATCH or BATCH}
    )


def test_room_on_a_gpu_is_reckoned_in_the_dtype_of_the_table(tmp_path, monkeypatch, caplog):
    """float16 features beside float32 ones are float32 there."""
    features = {"a": np.zeros((10, 6), np.float16), "b": np.zeros((10, 1), np.float32)}
    for name, values in features.items():
        sf.write_archive(
            tmp_path / name, {name: values}, labels=np.arange(10) % 2, slides=["s"] * 10, dtype=str(values.dtype)
        )
    mixed = sf.open({name: tmp_path / name for name in features})
    assert (mixed.dtype, mixed.row_bytes) == ("float32", 16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 7 * 4 / feeds.RESIDENT_SHARE - 1, 0))
    assert feeds.resident_features(mixed, np.arange(10), torch.device("cuda")) is None
    assert "they are streamed" in caplog.text


def test_statistics_of_a_resident_table_are_those_of_the_archive(archive, monkeypatch):
    rows = archive.split("train")
    table = torch.from_numpy(archive.gather(rows)).half()
    table[:, 3] = 7.0
    monkeypatch.setattr(feeds, "SUMMED_ROWS", 13)
    mean, scale = feeds.feature_statistics(archive, rows, table.to(DEVICE))
    exact = table.double()
    torch.testing.assert_close(mean.cpu(), exact.mean(0).float())
    wanted = exact.std(0, correction=0).float()
    assert (wanted[3], scale[3]) == (0.0, 1.0)
    wanted[3] = 1.0
    torch.testing.assert_close(scale.cpu(), wanted)


@needs_gpu
def test_streamed_and_resident_features_train_alike(archive, monkeypatch, caplog):
    resident = Loop(archive)
    monkeypatch.setattr(feeds, "RESIDENT_SHARE", 0.0)
    streamed = Loop(archive)
    assert "they are streamed" in caplog.text
    for loop in (resident, streamed):
        loop.begin()
    for left, right in zip(resident.run(resident.step.run), streamed.run(streamed.step.run), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
