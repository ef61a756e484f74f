"""Epochs that take patches in blocks: their order, how far it is from a uniform one, and what is read for it."""

import ctypes
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from interruption import stopped_after
from trainings import QUICK, assert_same_bits, tensors

import shazam_fast as sf
from shazam_fast.runtime import memory
from shazam_fast.training import plan as planning
from shazam_fast.training.feed import TrainingFeed
from shazam_fast.training.plan import block_order, plan_epoch


@pytest.fixture
def small_blocks(monkeypatch, archive):
    """Blocks of three patches, windows of about four blocks."""
    monkeypatch.setattr(planning, "BLOCK_BYTES", 3 * 4 * archive.width)
    monkeypatch.setattr(planning, "WINDOW_BLOCKS", 4)


SIZES = [(1, 1, 1), (1, 64, 64), (1000, 7, 56), (1000, 1, 50), (999, 2000, 64)]


@pytest.mark.parametrize(("n", "block", "window"), SIZES)
def test_every_row_comes_once(n, block, window):
    order = block_order(np.random.default_rng(3), n, block, window)
    assert order.dtype == np.int64
    assert np.sort(order).tolist() == list(range(n))


def test_windows_hold_whole_blocks_of_neighbours():
    order = block_order(np.random.default_rng(3), 6400, 64, 640)
    for start in range(0, 6400, 640):
        part = np.sort(order[start : start + 640])
        assert (np.diff(part) == 1).sum() >= 640 - 12  # ten blocks, of which the first and last may be cut
        assert (np.diff(order[start : start + 640]) == 1).sum() < 20  # but not taken in order


def test_an_epoch_is_drawn_again_alike_and_the_next_one_is_not():
    config = sf.TrainConfig(shuffle="blocks", batch_size=48)
    plan, again, other = (plan_epoch(config, epoch, 5000, 2, 1 << 14) for epoch in (3, 3, 4))
    np.testing.assert_array_equal(plan.order, again.order)
    assert (plan.order != other.order).any()
    assert plan.window == 128 * 64 // 48 * 48
    assert plan_epoch(sf.TrainConfig(), 3, 5000, 2, 1 << 14).window is None
    assert plan_epoch(config, 0, 10, 2, 1 << 25).window == 96  # wide features: two batches, of 128 blocks of one patch


def share_variance(labels, draw, batch=64, epochs=40):
    """Variance of the share of label 1 in a batch, over the epochs that `draw` orders."""
    shares = [labels[draw(np.random.default_rng(epoch))].reshape(-1, batch).mean(axis=1) for epoch in range(epochs)]
    return np.concatenate(shares).var()


@pytest.mark.parametrize(("alike", "low", "high"), [(4096, 1.25, 1.5), (1, 0.95, 1.05)])
def test_the_departure_from_a_uniform_order_is_as_stated(alike, low, high):
    n = 1 << 16
    labels = np.repeat(np.arange(n // alike) % 2 if alike > 1 else np.random.default_rng(1).integers(0, 2, n), alike)
    uniform = share_variance(labels, lambda random: random.permutation(n))
    blocks = share_variance(labels, lambda random: block_order(random, n, 64, 128 * 64))
    assert low < blocks / uniform < high


@pytest.mark.parametrize("step", [0, 1, 2, 5, 12])
def test_batches_are_those_of_the_order_from_any_step_on(archive, step):
    rows = archive.split("train")
    size, window = 8, 32
    feed = TrainingFeed(archive, rows, torch.device("cpu"), size)
    order = block_order(np.random.default_rng(5), len(rows), 3, window)
    feed.begin(order, step, window)
    for start in range(step * size, len(rows), size):
        expected = rows[order[start : start + size]]
        feed.fetch()
        features, positions, labels, places = feed.take(len(expected))
        assert positions is None
        np.testing.assert_array_equal(features.numpy(), archive.gather(expected))
        np.testing.assert_array_equal(labels.numpy(), archive.labels[expected])
        np.testing.assert_array_equal(places.numpy(), order[start : start + size])


@pytest.mark.parametrize("dtypes", [("float32",), ("bfloat16",), ("bfloat16", "bfloat16"), ("float16", "bfloat16")])
def test_windows_of_every_dtype(tmp_path, dtypes):
    paths = {}
    for number, dtype in enumerate(dtypes):
        paths[f"t{number}"] = tmp_path / f"{number}.pt"
        features = torch.randn(50, 5 + number, generator=torch.Generator().manual_seed(number))
        torch.save(features.to(getattr(torch, dtype)), paths[f"t{number}"])
    archive = sf.open(paths)
    rows = np.arange(3, 50)
    feed = TrainingFeed(archive, rows, torch.device("cpu"), 8)
    order = np.random.default_rng(5).permutation(len(rows))
    feed.begin(order, 0, 16)
    for start in range(0, len(rows), 8):
        expected = rows[order[start : start + 8]]
        feed.fetch()
        np.testing.assert_array_equal(feed.take(len(expected))[0].numpy(), archive.gather(expected))


def test_a_resumed_training_gives_the_same_bits(tmp_path, archive, monkeypatch, small_blocks):
    options = {**QUICK, "shuffle": "blocks"}
    whole = tensors(sf.train(archive, **options).student)
    full = tensors(sf.train(archive, **QUICK).student)
    assert any(not torch.equal(whole[name], full[name]) for name in whole)
    steps = -(-len(archive.split("train")) // QUICK["batch_size"])
    for stop in (1, steps - 1, steps + 1):
        out = tmp_path / f"stopped-{stop}"
        with stopped_after(stop, monkeypatch):
            sf.train(archive, out=out, **options)
        assert_same_bits(tensors(sf.train(archive, out=out, **options).student), whole)


def test_a_sweep_takes_the_same_batches(archive, small_blocks):
    options = {**QUICK, "shuffle": "blocks"}
    alone, (run,) = sf.train(archive, **options), sf.sweep(archive, [{"lr": 1e-3}], **options).runs
    assert [r["loss"] for r in run.history] == pytest.approx([r["loss"] for r in alone.history], rel=1e-4)


@pytest.fixture
def open_cold(tmp_path, monkeypatch):
    """Opens 3 MB of features, in the folder that is asked for, that the page cache lacks; nine windows, of two runs."""
    monkeypatch.setattr(planning, "BLOCK_BYTES", 330 * 4 * 511)
    monkeypatch.setattr(planning, "WINDOW_BLOCKS", 1)

    def open_in(folder=tmp_path):
        path = folder / "large.archive"
        generator = np.random.default_rng(0)
        features = {"uni": generator.normal(size=(3000, 300)), "conch": generator.normal(size=(3000, 211))}
        archive = sf.open(path if path.exists() else sf.write_archive(path, [features]))
        for file in archive.files:
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return archive

    return open_in


def batches(archive, step=0):
    """The features of an epoch in blocks from a step on."""
    rows = np.arange(1, archive.n_rows)
    plan = plan_epoch(sf.TrainConfig(shuffle="blocks", batch_size=8), 0, len(rows), range(2), archive.width)
    feed = TrainingFeed(archive, rows, torch.device("cpu"), 8)
    feed.begin(plan.order, step, plan.window)
    for start in range(step * 8, len(rows), 8):
        feed.fetch()
        yield feed.take(min(8, len(rows) - start))[0].numpy().copy()


def cached_pages(archive):
    """How many pages of an archive the page cache holds, asked without touching them."""
    count = 0
    for file in archive.files:
        with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            present = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
            first = ctypes.c_char.from_buffer(mapped)
            place, told = (ctypes.c_void_p(at) for at in (ctypes.addressof(first), present.ctypes.data))
            assert ctypes.CDLL(None).mincore(place, ctypes.c_size_t(len(mapped)), told) == 0
            count += int((present & 1).sum())
            del first
    return count


@pytest.mark.parametrize("step", [0, 41, 200])
def test_what_exceeds_the_memory_is_read_past_the_page_cache(open_cold, monkeypatch, step):
    expected = np.concatenate(list(batches(open_cold(), step)))
    archive = open_cold()
    monkeypatch.setattr(memory, "READ_OFTEN", 0)
    np.testing.assert_array_equal(np.concatenate(list(batches(archive, step))), expected)
    np.testing.assert_array_equal(np.concatenate(list(batches(archive, step))), expected)


def test_the_page_cache_stays_as_it_is(open_cold, monkeypatch):
    if cached_pages(open_cold()):
        pytest.skip("the file system of the temporary files does not leave the page cache")
    for share, fewest, most in ((0, 0, 150), (1, 700, 10**6)):
        monkeypatch.setattr(memory, "READ_OFTEN", share)
        archive = open_cold()
        assert len(list(batches(archive))) == 375
        assert fewest <= cached_pages(archive) < most


def test_where_the_page_cache_cannot_be_passed_by(open_cold, monkeypatch):
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm cannot be written to")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        monkeypatch.setattr(memory, "READ_OFTEN", 0)
        found = np.concatenate(list(batches(open_cold(folder))))
    finally:
        shutil.rmtree(folder)
    np.testing.assert_array_equal(found, np.concatenate(list(batches(open_cold()))))


@pytest.mark.parametrize("share", [0, 1])
def test_a_file_that_shrinks_or_is_written_during_an_epoch(open_cold, monkeypatch, share):
    monkeypatch.setattr(memory, "READ_OFTEN", share)
    for spoil, kind in ((lambda path: os.truncate(path, 1 << 20), "shrunk"), (os.utime, "changed")):
        archive = open_cold()
        epoch = batches(archive)
        next(epoch)
        for file in archive.files:
            spoil(file)
        with pytest.raises(sf.ArchiveError) as error:
            list(epoch)
        assert error.value.kind == kind
        shutil.rmtree(archive.path)


def test_a_resumed_training_past_the_page_cache_gives_the_same_bits(tmp_path, archive, monkeypatch, small_blocks):
    options = {**QUICK, "shuffle": "blocks"}
    whole = tensors(sf.train(archive, **options).student)
    monkeypatch.setattr(memory, "READ_OFTEN", 0)
    with stopped_after(3, monkeypatch):
        sf.train(archive, out=tmp_path / "out", **options)
    assert_same_bits(tensors(sf.train(archive, out=tmp_path / "out", **options).student), whole)


def test_an_unknown_shuffle():
    with pytest.raises(sf.ShazamError, match="shuffle: one of full, blocks expected, found 'rows'"):
        sf.TrainConfig(shuffle="rows")
