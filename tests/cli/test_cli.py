"""The command line as a user types it."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
from processes import Process
from program import SCRIPT, call, run_program
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.cli.training import HELP

COMMANDS = ("demo", "convert", "verify", "inspect", "train", "evaluate", "score", "heatmap", "teachers", "extract")
QUICK = ("--epochs", "3", "--batch-size", "16", "--dim", "16", "--depth", "2")


def found_in(pattern, run):
    """Search the printed text, with every run of blanks as one."""
    return re.search(pattern, " ".join(run.stdout.split()))


def test_help_answers_without_torch():
    """All commands in one new process, which shows as well that none of them imports it for the next."""
    script = (
        "import sys; from contextlib import suppress; from shazam_fast.cli.app import main\n"
        "for command in ('', *sys.argv[1:]):\n"
        "    for option in ('--help', '-h'):\n"
        "        sys.argv = ['shazam-fast', *filter(None, [command]), option]\n"
        "        with suppress(SystemExit): main()\n"
        "        print('after', command, [m for m in ('torch', 'numpy') if m in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True, check=True)
    assert run.stdout.count("Usage") == 2 * (1 + len(COMMANDS))
    assert re.findall("^after .*", run.stdout, re.MULTILINE) == [f"after {c} []" for c in ("", *COMMANDS) for _ in "12"]
    assert all(name in run.stdout.partition("after")[0] for name in COMMANDS)


def test_the_version():
    run = run_program("--version")
    assert run.stdout == f"shazam-fast {sf.__version__}\n"


def test_from_an_archive_to_scores(archive, tmp_path):
    inspected = run_program("inspect", archive.path)
    assert inspected.returncode == 0, inspected.stderr
    assert "300 patches, float16" in inspected.stdout
    assert "virchow" in inspected.stdout
    assert "carcinoma" in inspected.stdout

    trained = run_program("train", archive.path, "--out", tmp_path / "run", *QUICK)
    assert trained.returncode == 0, trained.stderr
    assert "accuracy" in trained.stdout
    assert len(sf.load(tmp_path / "run").training_record["history"]) == 3

    again = run_program("train", archive.path, "--out", tmp_path / "run", *QUICK)
    assert again.returncode == 0
    assert "already trained" in again.stderr
    assert again.stdout == trained.stdout

    evaluated = run_program("evaluate", tmp_path / "run", archive.path, "--split", "test")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"{sf.evaluate(tmp_path / 'run', archive).balanced_accuracy:.3f}" in evaluated.stdout

    arguments = ["score", tmp_path / "run", archive.path, "--out", tmp_path / "scores", "--split", "val"]
    for _ in range(2):  # the second finds that all is done
        scored = run_program(*arguments, "--fused", "--device", "cpu")
        assert scored.returncode == 0, scored.stderr
        assert "75 patches scored" in scored.stdout
    assert sf.open_scores(tmp_path / "scores").fused.shape == (75, 16)
    again = run_program(*arguments)
    assert again.returncode == 1
    assert "fused" in again.stderr

    onnx = pytest.importorskip("onnx", reason="export needs onnx (extra: onnx)")
    exported = call("export", tmp_path / "run", "--out", tmp_path / "new" / "s.onnx")
    assert exported.returncode == 0, exported.stderr
    onnx.checker.check_model(onnx.load(tmp_path / "new" / "s.onnx"))

    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: heatmap)")
    drawn = run_program("heatmap", tmp_path / "scores", "--out", tmp_path / "maps", "--patch-size", "256")
    assert drawn.returncode == 0, drawn.stderr
    assert "3 slides drawn" in drawn.stdout
    assert len(list((tmp_path / "maps").glob("*.png"))) == 3


def test_scoring_without_a_teacher(archive, patches, tmp_path):
    run = call("train", archive.path, "--out", tmp_path / "run", *QUICK)
    assert run.returncode == 0, run.stderr
    del patches["features"]["uni"]
    fewer = sf.write_archive(tmp_path / "fewer", **patches)
    refused = call("score", tmp_path / "run", fewer, "--out", tmp_path / "scores")
    assert refused.returncode == 1
    assert "only a student trained with teacher_dropout" in refused.stderr
    assert not (tmp_path / "scores").exists()
    forced = call("score", tmp_path / "run", fewer, "--out", tmp_path / "scores", "--allow-missing-teachers")
    assert forced.returncode == 0, forced.stderr
    assert "without uni" in forced.stdout


@pytest.fixture
def tables(tmp_path, patches):
    """Two teachers of two slides in one .npy each, and CSV files of labels and splits."""
    for teacher in ("uni", "virchow"):
        for slide, rows in (("slide-a", slice(0, 100)), ("slide-b", slice(100, 300))):
            (tmp_path / teacher).mkdir(exist_ok=True)
            np.save(tmp_path / teacher / f"{slide}.npy", patches["features"][teacher][rows])
    (tmp_path / "labels.csv").write_text("slide_id,label\nslide-a,tumour\nslide-b,normal\n")
    (tmp_path / "splits.csv").write_text("slide_id,split\nslide-a,train\nslide-b,test\n")
    return tmp_path


def test_converting_several_teachers(tables):
    teachers = [f"--teacher={name}={tables / name}" for name in ("virchow", "uni")]
    annotations = ["--labels", tables / "labels.csv", "--splits", tables / "splits.csv"]
    for _ in range(2):  # the second finds that all is done
        run = call("convert", *teachers, "--out", tables / "out", *annotations, "--dtype", "float32")
        assert run.returncode == 0, run.stderr
        assert "300 patches, 0.00 GB in" in run.stdout
        assert found_in(r"virchow 0.0e\+00 0.0e\+00", run)
    archive = sf.open(tables / "out")
    assert archive.teachers == {"virchow": 20, "uni": 12}
    assert archive.dtype == "float32"
    assert archive.labels.tolist() == [1] * 100 + [0] * 200
    assert archive.split("test").tolist() == list(range(100, 300))
    run = call("convert", tables / "uni", "--out", tables / "half")
    assert found_in(r"uni [1-9]\.\de-04 [1-9]\.\de-04", run), "half a unit in the last place of float16"
    run = call("convert", *teachers, "--out", tables / "out", *annotations)
    assert run.returncode == 1
    assert "dtype" in run.stderr


def test_verifying(archive):
    run = call("verify", archive.path)
    assert run.returncode == 0, run.stderr
    assert "300 patches, all finite; checksums match: 1 file" in run.stdout
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    run = run_program("verify", archive.path)
    assert run.returncode == 1
    assert f"error: {part}: checksum mismatch" in run.stderr


def test_inspecting_files_in_place(tables, patches):
    annotations = ["--labels", tables / "labels.csv", "--splits", tables / "splits.csv"]
    run = call("inspect", tables / "uni", *annotations)
    assert run.returncode == 0, run.stderr
    assert "opened in place from 2 files" in run.stdout
    assert "norms of all patches" in run.stdout
    norms = np.linalg.norm(patches["features"]["uni"].astype(float), axis=1)
    low, middle, high = (f"{value:.4g}" for value in (norms.min(), np.median(norms), norms.max()))
    assert found_in(rf"uni 12 {low} {middle} {high} 0 of 300", run)
    assert found_in("tumour 100 0 0 0", run)
    assert found_in("normal 0 0 200 0", run)


def test_inspecting_a_sample(tmp_path):
    features = np.full((20_000, 4), 0.5, dtype=np.float32)
    features[::2, 1] = np.nan
    np.save(tmp_path / "uni.npy", features)
    run = call("inspect", tmp_path / "uni.npy")
    assert "norms of a random sample of 10,000 patches" in run.stdout
    found = found_in(r"uni 4 1 1 1 ([\d,]+) of 10,000", run)
    assert 4_700 < int(found[1].replace(",", "")) < 5_300
    assert call("inspect", tmp_path / "uni.npy").stdout == run.stdout
    run = call("verify", tmp_path / "uni.npy")
    assert run.returncode == 1
    assert "row 0 of its rows): the feature is nan" in run.stderr


def test_names_are_no_markup(tmp_path):
    """Brackets in names of classes and paths are printed as they are."""
    place = tmp_path / "[bold]a[/x]"
    features = {"[red]uni": np.ones((4, 3))}
    sf.write_archive(place, features, labels=[0, 1, 0, 1], classes=["[b]", "[/i]"])
    run = call("inspect", place)
    assert run.returncode == 0, run.stderr
    for name in (str(place), "[red]uni", "[b]", "[/i]"):
        assert name in run.stdout


def test_a_preset_and_one_changed_option(archive, tmp_path):
    run = call("train", archive.path, "--out", tmp_path / "run", "--preset", "huncrc", "--epochs", "1")
    assert run.returncode == 0, run.stderr
    job = sf.load(tmp_path / "run").training_record["job"]
    assert (job["lam"], job["epochs"], job["batch_size"]) == (0.05, 1, 64)
    options = ("--preset", "huncrc", "--lam", "0.5", "--backend", "reference", "--precision", "ieee", *QUICK)
    run = call("train", archive.path, "--out", tmp_path / "b", *options)
    assert run.returncode == 0, run.stderr
    assert sf.load(tmp_path / "b").training_record["job"]["lam"] == 0.5


def test_every_training_option_is_there_and_explained():
    assert set(HELP) == {field.name for field in fields(sf.TrainConfig)}
    text = " ".join(run_program("train", "--help").stdout.split())
    for field in fields(sf.TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
        assert HELP[field.name][:40] in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nothing.archive"), "error: nothing.archive: no such file or directory"),
        (("train", "nothing.archive", "--out", "run"), "error: nothing.archive: no such file or directory"),
        (("evaluate", "no-student", "nothing.archive"), "error: nothing.archive: no such file or directory"),
        (("heatmap", "no-scores", "--out", "maps"), "no-scores: no scores there"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(tmp_path, arguments, message):
    run = run_program(*arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_and_the_same_command_again(tmp_path):
    archive = sf.write_archive(tmp_path / "a", **make_patches(rows=4000))
    options = ["--batch-size", "4", "--dim", "16", "--patience", "500", "--checkpoint-seconds", "0.2"]
    command = [SCRIPT, "train", archive, "--out", tmp_path / "run", *options]
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    process = Process(*command)
    for _ in range(1200):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 1, -signal.SIGINT), errors
    assert "the same call continues from there" in errors
    assert "Traceback" not in errors
    assert checkpoint.exists()
    written = checkpoint.stat().st_mtime_ns
    process = Process(*command)
    for _ in range(1200):
        if checkpoint.stat().st_mtime_ns != written or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "continued from epoch" in process.communicate(timeout=60)[1]


def test_progress_is_shown_on_a_terminal_after_two_seconds(tmp_path):
    script = (
        "import time\nfrom shazam_fast.runtime.progress import Progress\n"
        "with Progress('scoring', 40, 'patches') as progress:\n"
        "    for _ in range(40): progress.advance(1, 'note'); time.sleep({})"
    )
    for pause, shown in ((0.07, True), (0.0, False)):
        controller, terminal = pty.openpty()
        process = Process(script.format(pause), stderr=terminal)
        assert process.wait(timeout=30) == 0
        os.set_blocking(controller, False)
        os.close(terminal)
        try:
            text = os.read(controller, 100_000).decode()
        except (BlockingIOError, OSError):
            text = ""
        os.close(controller)
        assert ("scoring" in text and "patches/s" in text) is shown


def test_output_that_nobody_reads_to_its_end():
    command = f'{sys.executable} -c "{SCRIPT}" teachers | head -n 1'
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert run.stderr == ""
