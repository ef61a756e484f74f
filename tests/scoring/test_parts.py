"""Scores on disk: whatever happens while they are written, the same call finishes them, byte for byte."""

import errno
import importlib
import os
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from synthetic import TEACHERS, make_patches

import shazam_fast as sf
from shazam_fast.runtime.jobs.locks import DirectoryLock
from shazam_fast.scoring import engine as scorer
from shazam_fast.scoring import parts as score_parts
from shazam_fast.scoring.manifest import read_manifest

scoring = importlib.import_module("shazam_fast.scoring.score")  # the package has a function of that name


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of one tile of 16 rows: 300 patches make 19 of them."""
    monkeypatch.setattr(scorer, "TILE_ROWS", 16)
    monkeypatch.setattr(score_parts, "TILE_ROWS", 16)
    monkeypatch.setattr(score_parts, "PART_BYTES", 1)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def manifest_of(folder):
    return read_manifest(Path(folder))


def score_until(limit, monkeypatch, *arguments, error=KeyboardInterrupt, **options):
    """Score, but fail when part number `limit` is to be written."""
    write = score_parts.ScoreParts.write

    def fail_at(self, number, *content):
        if number == limit:
            raise error
        return write(self, number, *content)

    with monkeypatch.context() as patched:
        patched.setattr(score_parts.ScoreParts, "write", fail_at)
        sf.score(*arguments, **options)


def test_parts_hold_all_rows_once(trained, tmp_path):
    student, archive = trained
    scores = sf.score(student, archive, tmp_path / "out", fused=True)
    manifest = manifest_of(tmp_path / "out")
    assert [part.rows for part in manifest.parts] == [16] * 18 + [12]
    assert (manifest.rows, manifest.missing_teachers, manifest.forced) == (300, [], False)
    np.testing.assert_array_equal(scores.rows, np.arange(300))
    kept = sf.score(student, archive, fused=True)
    for name in ("rows", "coords", "prediction", "probabilities", "shares", "fused"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(kept, name))
    with torch.no_grad():
        fused = student(torch.from_numpy(archive.gather(np.arange(300)))).fused
    np.testing.assert_allclose(scores.fused, fused, atol=1e-3 * float(fused.abs().max()))


def test_a_split_in_parts_some_of_which_are_empty(trained, tmp_path):
    student, archive = trained
    scores = sf.score(student, archive, tmp_path / "out", split="val")
    np.testing.assert_array_equal(scores.rows, archive.split("val"))
    manifest = manifest_of(tmp_path / "out")
    assert 0 < len(manifest.parts) < 10
    assert contents(tmp_path / "out").keys() == {"_scores.parquet", *(part.file for part in manifest.parts)}


def test_bytes_do_not_depend_on_threads(trained, tmp_path, monkeypatch):
    """Neither on those that compute nor on those that write."""
    student, archive = trained
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        monkeypatch.setitem(scoring.WRITERS, "cpu", threads)
        sf.score(student, archive, tmp_path / str(threads))
    assert torch.get_num_threads() == 3, "scoring leaves PyTorch's threads as they were"
    torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize("writers", [1, 3])
def test_ctrl_c_and_the_same_call_again(trained, tmp_path, monkeypatch, writers):
    student, archive = trained
    monkeypatch.setitem(scoring.WRITERS, "cpu", writers)
    sf.score(student, archive, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "out")
    with pytest.raises(sf.ArchiveError, match="the scoring was interrupted; run the same command again"):
        sf.open_scores(tmp_path / "out")
    first = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    (tmp_path / "out" / "part-00011.parquet").write_bytes(b"somebody else's")
    with pytest.raises(sf.ShazamError, match=r"holds other files \(part-00011.parquet\)"):
        sf.score(student, archive, tmp_path / "out")
    (tmp_path / "out" / "part-00011.parquet").unlink()
    sf.score(student, archive, tmp_path / "out")
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == first, "finished parts are kept"
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_the_rounding_error_of_parts_from_before_an_interruption(trained, tmp_path, monkeypatch):
    student, archive = trained
    write = score_parts.rounding_error
    monkeypatch.setattr(score_parts, "rounding_error", lambda job, scores: write(job, scores) + 0.5)
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "out", dtype="float16")
    monkeypatch.setattr(score_parts, "rounding_error", write)
    assert sf.score(student, archive, tmp_path / "out", dtype="float16").rounding_error > 0.5


def test_a_full_disk_leaves_finished_parts(trained, tmp_path, monkeypatch):
    student, archive = trained
    sf.score(student, archive, tmp_path / "undisturbed")
    write, written = os.write, []

    def full(descriptor, content):
        written.append(1)
        if len(written) == 12:  # two writes per part, and the claim
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(sf.ShazamError, match=r"could not be written: .*No space left"):
            sf.score(student, archive, tmp_path / "out")
    finished = contents(tmp_path / "out")
    assert sorted(finished) == [
        "_job.json", *(f"part-{i:05d}.{suffix}" for i in range(5) for suffix in ("json", "parquet"))
    ]  # fmt: skip
    sf.score(student, archive, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_file_size_limit_is_met_by_the_system_itself(trained, tmp_path):
    student, archive = trained
    student.save(tmp_path / "student")
    script = (
        "import resource, signal, sys, shazam_fast as sf\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sf.score(*sys.argv[1:])"
    )
    run = processes.run(script, tmp_path / "student", archive.path, tmp_path / "out")
    assert "ShazamError" in run.stderr
    assert "could not be written: [Errno 27] File too large" in run.stderr
    assert len(sf.score(student, archive, tmp_path / "other")) == 300


def test_other_jobs_are_refused(trained, tmp_path, monkeypatch):
    student, archive = trained
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "stopped")
    sf.score(student, archive, tmp_path / "finished")
    other = sf.Student(student.config, torch.Generator().manual_seed(1))
    for place in (tmp_path / "stopped", tmp_path / "finished"):
        before = contents(place)
        with pytest.raises(sf.MismatchError, match="with another student; choose another --out, or delete it"):
            sf.score(other, archive, place)
        with pytest.raises(sf.MismatchError, match=r"another split \(all, now 'val'\), .*fused \(False, now True\)"):
            sf.score(student, archive, place, split="val", fused=True)
        assert contents(place) == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mum.txt").write_text("dear")
    with pytest.raises(sf.ShazamError, match=r"holds other files \(mum.txt\); choose another"):
        sf.score(student, archive, tmp_path / "letters")
    with pytest.raises(sf.ShazamError, match="a directory expected, there is a file"):
        sf.score(student, archive, tmp_path / "letters" / "mum.txt")


def test_an_archive_that_changed_is_refused(trained, tmp_path, monkeypatch):
    student, _ = trained
    archive = sf.write_archive(tmp_path / "a", **make_patches())
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "out")
    part = archive / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    with pytest.raises(sf.MismatchError, match="was written with other features"):
        sf.score(student, archive, tmp_path / "out")


def test_a_damaged_part_or_record_is_written_again_and_said(trained, tmp_path, monkeypatch, caplog):
    student, archive = trained
    out = tmp_path / "out"
    sf.score(student, archive, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, out)
    content = bytearray((out / "part-00003.parquet").read_bytes())
    content[len(content) // 3] ^= 1
    (out / "part-00003.parquet").write_bytes(content)
    (out / "part-00004.json").write_bytes(b"{]")
    other = (out / "part-00005.json").read_bytes().replace(b'"job": "', b'"job": "0', 1)
    (out / "part-00005.json").write_bytes(other)
    (out / "part-00006.parquet").unlink()
    sf.score(student, archive, out)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert "part-00003.parquet: checksum mismatch; the part is written again" in caplog.text
    assert "part-00004.json: corrupt document" in caplog.text
    assert "part-00005.json: checksum mismatch" in caplog.text


def test_a_damaged_claim_is_named(trained, tmp_path, monkeypatch):
    student, archive = trained
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "out")
    (tmp_path / "out" / "_job.json").write_bytes(b"{]")
    with pytest.raises(sf.ArchiveError, match=r"_job.json: corrupt"):
        sf.score(student, archive, tmp_path / "out")


def test_a_damaged_part_is_not_read(trained, tmp_path):
    student, archive = trained
    sf.score(student, archive, tmp_path / "out")
    part = tmp_path / "out" / "part-00003.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    with pytest.raises(sf.ArchiveError, match=r"part-00003.parquet: checksum mismatch") as caught:
        _ = sf.open_scores(tmp_path / "out").probabilities
    assert caught.value.kind == "checksum"


def test_splits_decide_only_what_is_scored_of_a_split(trained, tmp_path):
    student, archive = trained
    other = sf.open(archive.path, splits=np.where(archive.splits == 2, "train", "test"))
    sf.score(student, archive, tmp_path / "all")
    sf.score(student, other, tmp_path / "all")
    sf.score(student, archive, tmp_path / "test", split="test")
    with pytest.raises(sf.MismatchError, match="was written with other splits; choose another --out"):
        sf.score(student, other, tmp_path / "test", split="test")


def test_any_reader_of_parquet_takes_the_directory(trained, tmp_path):
    student, _ = trained
    features = make_patches()["features"]
    archive = sf.write_archive(tmp_path / "a", features)  # no slides, no positions
    scores = sf.score(student, archive, tmp_path / "out", fused=True)
    polars = pytest.importorskip("polars")
    table = polars.read_parquet(tmp_path / "out")
    assert (table.height, table["x"].null_count(), table["slide"].null_count()) == (300, 300, 300)
    assert sorted(table["row"].to_list()) == list(range(300))
    np.testing.assert_array_equal(scores.coords, np.full((300, 2), -1))
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "out").num_rows == 300


def test_two_processes_at_once_are_refused(trained, tmp_path):
    student, archive = trained
    with (
        DirectoryLock(tmp_path / "out"),
        pytest.raises(sf.ShazamError, match=rf"process {os.getpid()} on .* is writing there; wait"),
    ):
        sf.score(student, archive, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "an empty directory goes with the lock that made it"


def test_missing_teachers_are_in_the_manifest(trained, tmp_path, archive):
    student, _ = trained
    features = make_patches()["features"]
    del features["phikon-v2"]
    fewer = sf.write_archive(tmp_path / "a", features)
    scores = sf.score(student, fewer, tmp_path / "out")
    assert scores.missing_teachers == ("phikon-v2",)
    manifest = manifest_of(tmp_path / "out")
    assert (manifest.missing_teachers, manifest.forced) == (["phikon-v2"], False)
    strict = sf.train(archive, epochs=1, batch_size=16, dim=8, depth=1).student
    with pytest.raises(sf.MismatchError, match="allow_missing_teachers=True"):
        sf.score(strict, fewer, tmp_path / "strict")
    forced = sf.score(strict, fewer, tmp_path / "strict", allow_missing_teachers=True)
    assert (forced.shares[:, 1] == 0).all()
    assert manifest_of(tmp_path / "strict").forced
    none = sf.write_archive(tmp_path / "none", {"conch": features["virchow"]})
    with pytest.raises(sf.MismatchError, match=rf"missing \[{', '.join(map(repr, TEACHERS))}\]"):
        sf.score(strict, none, allow_missing_teachers=True)
