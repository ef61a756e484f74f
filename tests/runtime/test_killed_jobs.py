"""A scoring, a conversion, an extraction, killed at their system calls: the next run alone finishes them.

SHAZAM_FUZZ says at how many of the calls, drawn at random; in .ci/run it is at each of them.
"""

import numpy as np
import processes
import pytest
from fuzzing import EXAMPLES
from pictures import HELPERS, write_patches
from synthetic import make_patches

import shazam_fast as sf

SCRIPT = """
import os, random, shutil, signal, sys
from contextlib import suppress
from pathlib import Path
import numpy, pyarrow.parquet, torch  # before children are forked
torch.set_num_threads(1)
import shazam_fast as sf

CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "ftruncate", "pwrite")

def run(job, out, last=0):
    "In a child: do the job, but be killed at call number `last` that may change a file. Returns code and calls."
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(reading) as stream:
            return code, int(stream.read() or 0)
    calls, real = 0, {name: getattr(os, name) for name in CALLS}
    def dying(name):
        def wrapped(first, *rest, **options):
            nonlocal calls
            calls += 1
            if calls == last:
                if name == "write":
                    real["write"](first, rest[0][: len(rest[0]) // 2])
                if name == "open":
                    with suppress(OSError):
                        real["open"](first, *rest, **options)  # the file is there, and empty
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](first, *rest, **options)
        return wrapped
    for name in CALLS:
        setattr(os, name, dying(name))
    try:
        job(out)
    except BaseException as error:
        print(f"killed at {last}: {error!r}", file=sys.stderr, flush=True)
        os._exit(3)
    real["write"](writing, str(calls).encode())
    os._exit(0)

def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}

def kill_everywhere(job, folder):
    code, calls = run(job, folder / "undisturbed")
    assert code == 0 and calls > 20, (code, calls)
    expected = contents(folder / "undisturbed")
    kept, moments = 0, random.Random(0).sample(range(1, calls + 1), min(calls, int(sys.argv[3])))
    for last in moments:
        out = folder / "out"
        code, _ = run(job, out, last)
        assert code == -signal.SIGKILL, (last, code)
        parts = [path for suffix in ("safetensors", "parquet") for path in out.glob(f"part-*.{suffix}")]
        before = {path: path.stat().st_mtime_ns for path in parts}
        code, _ = run(job, out)
        assert code == 0, f"killed at call {last} of {calls}: the same command ends with {code}"
        assert contents(out) == expected, (last, sorted(contents(out)), sorted(expected))
        kept += sum(path.stat().st_mtime_ns == time for path, time in before.items())
        shutil.rmtree(out)
    print(len(moments), kept, *sorted(expected))

folder = Path(sys.argv[1])
"""

SCORE = """
from shazam_fast.scoring import engine, parts, score
engine.TILE_ROWS = parts.TILE_ROWS = score.TILE_ROWS = 16
parts.PART_BYTES = 1
student, archive = sf.load(folder / "student"), sf.open(folder / "archive")
kill_everywhere(lambda out: sf.score(student, archive, out), folder)
"""

CONVERT = """
from shazam_fast.archive import conversion
conversion.PART_BYTES, conversion.CHUNK_BYTES = 2 * 39 * 20, 2 * 39 * 7
kill_everywhere(lambda out: sf.convert(folder / "archive", out), folder)
"""

EXTRACT = """
sys.path.insert(0, sys.argv[2])
from pictures import small_teachers
import timm
from shazam_fast.extraction import plan
plan.PART_ROWS = 4
teachers = small_teachers()[:1]
built = sf.load_teacher(teachers[0], "random")
plan.load_teacher = lambda *arguments: built  # once for all children
def job(out):
    sf.extract(folder / "images", teachers, out, weights={t.name: "random" for t in teachers}, device="cpu", workers=1,
               batch_size=4, unreadable="exclude")
kill_everywhere(job, folder)
"""


def kill_everywhere(script, folder):
    run = processes.run(SCRIPT + script, folder, HELPERS, EXAMPLES // 5, check=True)
    times, kept, *names = run.stdout.split()
    assert int(kept) > int(times) // 3, "finished parts are kept"
    return names


@pytest.fixture
def folder(tmp_path):
    patches = make_patches(rows=40)
    sf.write_archive(tmp_path / "archive", **patches)
    teachers = {name: block.shape[1] for name, block in patches["features"].items()}
    sf.Student(sf.StudentConfig(teachers, tuple(patches["classes"]), dim=8, depth=1)).eval().save(tmp_path / "student")
    return tmp_path


def test_scoring(folder):
    names = kill_everywhere(SCORE, folder)
    assert names == ["_scores.parquet", *(f"part-{i:05d}.parquet" for i in range(3))]
    np.testing.assert_array_equal(sf.open_scores(folder / "undisturbed").rows, np.arange(40))


def test_conversion(folder):
    names = kill_everywhere(CONVERT, folder)
    assert names == ["archive.json", *(f"part-{i:05d}.safetensors" for i in range(2))]
    sf.open(folder / "undisturbed").verify()


def test_extraction(tmp_path):
    write_patches(tmp_path / "images", 10)
    (tmp_path / "images" / "005.png").write_bytes(b"no image")
    names = kill_everywhere(EXTRACT, tmp_path)
    assert names == ["archive.json", "images.parquet", *(f"part-{i:05d}.safetensors" for i in range(3))]
    assert sf.open(tmp_path / "undisturbed").n_rows == 9
