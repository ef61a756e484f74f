"""Scoring on a GPU as one stream of tiles, with CUDA's streams and events imitated: what they leave open is done at the
worst moment, so a wait that is missing gives wrong numbers."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.scoring import inference
from shazam_fast.scoring.engine import Scorer, to_scoring_form
from shazam_fast.scoring.gpu import streaming

CPU = torch.device("cpu")


class FakeCuda:
    """Two streams of functions that are called in order; an event is done when its stream came past it.

    Args:
        eager: the stream whose functions are called as soon as its waits allow, "copies" or "compute"; those of the
            other are called when they must. With None, work is computed at once and only what it waits for is done.
    """

    def __init__(self, eager):
        self.streams = {name: FakeStream(eager == name, False) for name in ("copies", "compute")}
        self.streams["compute"].at_once = eager is None
        self.current = self.streams["compute"]

    def install(self, monkeypatch):
        fake = self

        class Event:
            def __init__(self):
                self.stream = None

            def record(self, stream):
                marker = [False]
                self.stream, self.marker = stream, marker
                stream.add(lambda: marker.__setitem__(0, True))

            def query(self):
                return self.stream is None or self.marker[0]

            def synchronize(self):
                if self.stream is not None:
                    self.stream.run_to(self.marker)

        @contextmanager
        def on(stream):
            before, fake.current = fake.current, stream
            yield
            fake.current = before

        copy = torch.Tensor.copy_

        def copy_(target, source, non_blocking=False):
            if non_blocking:
                fake.current.add(lambda: copy(target, source))
                return target
            return copy(target, source)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.streams["copies"])
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.streams["compute"])
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(streaming, "page_locked", lambda shape, dtype: torch.full(tuple(shape), -1.0).to(dtype))


class FakeStream:
    def __init__(self, eager, at_once):
        self.todo, self.eager, self.at_once = [], eager, at_once

    def add(self, function):
        self.todo.append((function, None))
        self.progress()

    def wait_event(self, event):
        if event.stream is not None:
            self.wait_for(event.stream, event.marker)

    def wait_stream(self, other):
        marker = [False]
        other.add(lambda: marker.__setitem__(0, True))
        self.wait_for(other, marker)

    def wait_for(self, other, marker):
        if self.at_once:
            other.run_to(marker)
        else:
            self.todo.append((lambda: other.run_to(marker), marker))
            self.progress()

    def run_to(self, marker):
        while not marker[0]:
            self.step()

    def step(self):
        """The next function, after what it waits for."""
        function, _ = self.todo.pop(0)
        function()

    def progress(self):
        while self.eager and self.todo and (self.todo[0][1] is None or self.todo[0][1][0]):
            self.step()


@pytest.fixture
def archive(tmp_path):
    return sf.open(sf.write_archive(tmp_path / "a.archive", **make_patches()))


@pytest.mark.parametrize("eager", ["copies", "compute"])
def test_no_buffer_is_filled_before_it_was_copied_or_computed(archive, eager, monkeypatch):
    fake = FakeCuda(eager)
    fake.install(monkeypatch)
    parts, found = [np.arange(0, 70), np.arange(100, 103), np.arange(150, 200)], []
    tiles = streaming.stream_to_gpu(archive, streaming.cut_tiles(parts, 20), 20, CPU)
    for tile, features in tiles:
        kept = torch.empty(features.shape, dtype=features.dtype)
        fake.streams["compute"].add(lambda kept=kept, features=features: kept.__setitem__(slice(None), features))
        found.append((tile.rows[tile.start : tile.stop], kept))
    while fake.streams["compute"].todo:
        fake.streams["compute"].step()
    monkeypatch.undo()
    assert [len(rows) for rows, _ in found] == [20, 20, 20, 10, 3, 20, 20, 10]
    for rows, features in found:
        np.testing.assert_array_equal(features, archive.gather(rows))


def make_scorer(archive, monkeypatch):
    """A scorer whose device is a GPU as far as it knows, and what happens: rows read, parts handed out."""
    config = sf.StudentConfig(archive.teachers, archive.classes, dim=16, depth=2)
    student = sf.Student(config, torch.Generator().manual_seed(0)).eval()
    events, gather = [], type(archive).gather
    scorer = Scorer(student, archive, CPU, fused=True, allow_missing_teachers=False, influence=True)
    scorer._model = to_scoring_form(student, CPU)
    with Scorer(student, archive, CPU, fused=True, allow_missing_teachers=False, influence=True) as plain:
        expected = plain.score(np.arange(300))

    def noted(self, rows, **options):
        events.append(f"read {rows[0]}")
        return gather(self, rows, **options)

    monkeypatch.setattr(type(archive), "gather", noted)
    monkeypatch.setattr(streaming, "TILE_BYTES", 20 * archive.row_bytes)
    FakeCuda(None).install(monkeypatch)
    return scorer, expected, events


PARTS = [np.arange(0, 50), np.arange(100, 140), np.arange(150, 200)]


def test_the_next_part_is_read_before_a_part_is_waited_for(archive, monkeypatch):
    scorer, expected, events = make_scorer(archive, monkeypatch)
    for rows, scores in zip(PARTS, scorer.score_parts(PARTS, 50), strict=True):
        events.append(f"part of {rows[0]}")
        for name in ("probabilities", "shares", "fused", "influence"):
            np.testing.assert_allclose(getattr(scores, name), getattr(expected, name)[rows], atol=2e-5, rtol=1e-5)
    reads = [f"read {row}" for row in (0, 20, 40, 100, 120)]
    assert events[:6] == [*reads, "part of 0"]  # not before it must be: until then its way to the host hides
    assert events.index("read 150") < events.index("part of 100")
    assert events[-1] == "part of 150"


def test_a_fault_comes_with_its_part(archive, monkeypatch):
    """Parts before it are handed out."""
    scorer, _, _ = make_scorer(archive, monkeypatch)
    form = inference.ArchiveForm.__call__

    def spoilt(self, features):
        output = form(self, features)
        if torch.equal(features[0].float(), torch.from_numpy(archive.gather(PARTS[2][:1]))[0].float()):
            output.logits[0] = float("nan")
        return output

    monkeypatch.setattr(inference.ArchiveForm, "__call__", spoilt)
    scores = scorer.score_parts(PARTS, 50)
    assert [len(next(scores).probabilities) for _ in range(2)] == [50, 40]
    with pytest.raises(sf.NonFiniteError, match="row 150 gives non-finite logits"):
        next(scores)
