"""Scores on disk: whatever happens while they are written, the same call finishes them, byte for byte."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import TEACHERS, make_patches

import shazam_fast as sf
from shazam_fast.scoring import engine as scorer
from shazam_fast.scoring import parts as score_parts

KILLS = int(os.environ.get("SHAZAM_KILLS", "4"))  # more of them for a longer look


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of one tile of 16 rows: 300 patches make 19 of them."""
    monkeypatch.setattr(scorer, "TILE_ROWS", 16)
    monkeypatch.setattr(score_parts, "TILE_ROWS", 16)
    monkeypatch.setattr(score_parts, "PART_BYTES", 1)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def score_until(limit, monkeypatch, *arguments, error=KeyboardInterrupt):
    """Score, but fail when part number `limit` is to be written."""
    write_part = score_parts.write_part

    def fail_at(folder, part, *content):
        if part == limit:
            raise error
        return write_part(folder, part, *content)

    with monkeypatch.context() as patched:
        patched.setattr("shazam_fast.scoring.score.write_part", fail_at)
        sf.score(*arguments)


def test_parts_hold_all_rows_once(trained, tmp_path):
    student, archive = trained
    scores = sf.score(student, archive, tmp_path / "out", fused=True)
    manifest = json.loads((tmp_path / "out" / "_scores.json").read_bytes())
    assert [part["rows"] for part in manifest["parts"]] == [16] * 18 + [12]
    assert (manifest["rows"], manifest["missing_teachers"], manifest["forced"]) == (300, [], False)
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
    manifest = json.loads((tmp_path / "out" / "_scores.json").read_bytes())
    assert 0 < len(manifest["parts"]) < 10
    assert contents(tmp_path / "out").keys() == {"_scores.json", *(part["file"] for part in manifest["parts"])}


def test_bytes_do_not_depend_on_threads(trained, tmp_path):
    student, archive = trained
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        sf.score(student, archive, tmp_path / str(threads))
    assert torch.get_num_threads() == 3, "scoring leaves PyTorch's threads as they were"
    torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_ctrl_c_and_the_same_call_again(trained, tmp_path, monkeypatch):
    student, archive = trained
    sf.score(student, archive, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "out")
    with pytest.raises(sf.ArchiveError, match="the scoring was interrupted; the same call of score finishes it"):
        sf.open_scores(tmp_path / "out")
    first = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    (tmp_path / "out" / "part-00011.parquet").write_bytes(b"not in the journal")
    with (tmp_path / "out" / "_unfinished.jsonl").open("ab") as journal:
        journal.write(b'{"part": 7, "fi')  # a kill between two bytes
    sf.score(student, archive, tmp_path / "out")
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == first, "finished parts are kept"
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_full_disk_leaves_finished_parts(trained, tmp_path, monkeypatch):
    student, archive = trained
    sf.score(student, archive, tmp_path / "undisturbed")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(sf.ShazamError, match=r"No space left on device\. The parts that are finished stay"):
        score_until(5, monkeypatch, student, archive, tmp_path / "out", error=full)
    finished = contents(tmp_path / "out")
    assert len([name for name in finished if name.startswith("part-")]) == 5
    assert finished.items() - contents(tmp_path / "undisturbed").items() == {
        ("_unfinished.jsonl", finished["_unfinished.jsonl"])
    }
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
    command = [sys.executable, "-c", script, tmp_path / "student", archive.path, tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ShazamError" in run.stderr
    assert "the scores could not be written: [Errno 27] File too large" in run.stderr
    assert len(sf.score(student, archive, tmp_path / "other")) == 300


def test_other_jobs_are_refused(trained, tmp_path, monkeypatch):
    student, archive = trained
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "stopped")
    sf.score(student, archive, tmp_path / "finished")
    other = sf.Student(student.config, torch.Generator().manual_seed(1))
    for place in (tmp_path / "stopped", tmp_path / "finished"):
        before = contents(place)
        with pytest.raises(sf.MismatchError, match="holds the work of another call: the student differ"):
            sf.score(other, archive, place)
        with pytest.raises(sf.MismatchError, match="split, fused differ"):
            sf.score(student, archive, place, split="val", fused=True)
        assert contents(place) == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mum.txt").write_text("dear")
    with pytest.raises(sf.ShazamError, match=r"holds other files \(mum.txt\); choose another"):
        sf.score(student, archive, tmp_path / "letters")
    with pytest.raises(sf.ShazamError, match="cannot create the directory"):
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
    with pytest.raises(sf.MismatchError, match="the archive's files differ"):
        sf.score(student, archive, tmp_path / "out")


def test_a_lost_part_or_journal_is_named(trained, tmp_path, monkeypatch):
    student, archive = trained
    with pytest.raises(KeyboardInterrupt):
        score_until(7, monkeypatch, student, archive, tmp_path / "out")
    part = tmp_path / "out" / "part-00003.parquet"
    part.write_bytes(b"short")
    with pytest.raises(sf.ArchiveError, match=r"part-00003.parquet: a finished part is missing or has changed"):
        sf.score(student, archive, tmp_path / "out")
    (tmp_path / "out" / "_unfinished.jsonl").write_bytes(b"{]\n")
    with pytest.raises(sf.ArchiveError, match=r"_unfinished.jsonl: corrupt"):
        sf.score(student, archive, tmp_path / "out")


def test_two_processes_at_once_are_refused(trained, tmp_path):
    student, archive = trained
    job = score_parts.ScoreJob({}, {}, 1, 1, None, False)
    with (
        score_parts.PartStore(tmp_path / "out", job),
        pytest.raises(sf.ShazamError, match="another process is writing there"),
    ):
        sf.score(student, archive, tmp_path / "out")


def test_missing_teachers_are_in_the_manifest(trained, tmp_path, archive):
    student, _ = trained
    features = make_patches()["features"]
    del features["phikon-v2"]
    fewer = sf.write_archive(tmp_path / "a", features)
    scores = sf.score(student, fewer, tmp_path / "out")
    assert scores.missing_teachers == ("phikon-v2",)
    manifest = json.loads((tmp_path / "out" / "_scores.json").read_bytes())
    assert (manifest["missing_teachers"], manifest["forced"]) == (["phikon-v2"], False)
    strict = sf.train(archive, epochs=1, batch_size=16, dim=8, depth=1).student
    with pytest.raises(sf.MismatchError, match="allow_missing_teachers=True"):
        sf.score(strict, fewer, tmp_path / "strict")
    forced = sf.score(strict, fewer, tmp_path / "strict", allow_missing_teachers=True)
    assert (forced.shares[:, 1] == 0).all()
    assert json.loads((tmp_path / "strict" / "_scores.json").read_bytes())["forced"] is True
    none = sf.write_archive(tmp_path / "none", {"conch": features["virchow"]})
    with pytest.raises(sf.MismatchError, match=rf"missing \[{', '.join(map(repr, TEACHERS))}\]"):
        sf.score(strict, none, allow_missing_teachers=True)


KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import shazam_fast as sf
from shazam_fast.scoring import parts as score_parts, score as scoring
score_parts.PART_BYTES = 1 << 13
student, archive, folder, kills = sf.load(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])

def begin(out):
    if (child := os.fork()) == 0:
        sf.score(student, archive, out)
        os._exit(0)
    return child

def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}

started = time.monotonic()
assert os.waitpid(begin(folder / "undisturbed"), 0)[1] == 0
longest = time.monotonic() - started
expected, out, done, finished = contents(folder / "undisturbed"), folder / "out", 0, 0
random.seed(int(sys.argv[5]))
while True:
    child = begin(out)
    if done < kills:
        time.sleep(random.uniform(0, 0.6 * longest))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, status
    done += os.WIFSIGNALED(status)
    if (out / "_scores.json").exists() and not os.WIFSIGNALED(status):
        assert contents(out) == expected, sorted(contents(out))
        finished += 1
        if done >= kills:
            break
        shutil.rmtree(out)
print(f"{done} kills, {finished} times identical, {len(expected)} files, {longest:.2f} s undisturbed")
"""


def test_killed_at_random_moments(trained, tmp_path):
    student, _ = trained
    student.save(tmp_path / "student")
    archive = sf.write_archive(tmp_path / "a", **make_patches(rows=20_000))
    command = [sys.executable, "-c", KILLER, tmp_path / "student", archive, tmp_path, str(KILLS), str(KILLS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{KILLS} kills")
    print(run.stdout)
