"""The command line as a user types it."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from synthetic import make_patches

import shazam_fast as sf

COMMANDS = ("demo", "convert", "verify", "inspect", "train", "evaluate", "score", "heatmap", "teachers", "extract")
QUICK = ("--epochs", "3", "--batch-size", "16", "--dim", "16", "--depth", "2")


def shazam_fast(*arguments, **options):
    command = [sys.executable, "-c", "from shazam_fast.cli.app import main; main()", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_without_torch(command):
    script = (
        "import sys; from shazam_fast.cli.app import main; sys.argv = ['shazam-fast', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *filter(None, [command]), "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage" in run.stdout
    assert run.stdout.endswith("False False\n")
    if not command:
        assert all(name in run.stdout for name in COMMANDS)


def test_from_an_archive_to_scores(archive, tmp_path):
    inspected = shazam_fast("inspect", archive.path)
    assert inspected.returncode == 0, inspected.stderr
    assert "300 patches, float16" in inspected.stdout
    assert "virchow" in inspected.stdout
    assert "carcinoma" in inspected.stdout

    trained = shazam_fast("train", archive.path, "--out", tmp_path / "run", *QUICK)
    assert trained.returncode == 0, trained.stderr
    assert "balanced accuracy" in trained.stdout
    assert trained.stderr == "", "quiet where stderr is no terminal"
    assert len(sf.load(tmp_path / "run").training_record["history"]) == 3

    again = shazam_fast("train", archive.path, "--out", tmp_path / "run", *QUICK)
    assert again.returncode == 0
    assert "already trained" in again.stderr
    assert again.stdout == trained.stdout

    evaluated = shazam_fast("evaluate", tmp_path / "run", archive.path, "--split", "test")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"{sf.evaluate(tmp_path / 'run', archive).balanced_accuracy:.3f}" in evaluated.stdout

    arguments = ["score", tmp_path / "run", archive.path, "--out", tmp_path / "scores", "--split", "val"]
    for _ in range(2):  # the second finds that all is done
        scored = shazam_fast(*arguments, "--fused", "--device", "cpu")
        assert scored.returncode == 0, scored.stderr
        assert "75 patches scored" in scored.stdout
    assert sf.open_scores(tmp_path / "scores").fused.shape == (75, 16)
    again = shazam_fast(*arguments)
    assert again.returncode == 1
    assert "holds the work of another call: fused, rows of a part differ" in again.stderr

    drawn = shazam_fast("heatmap", tmp_path / "scores", tmp_path / "maps", "--patch-size", "256")
    assert drawn.returncode == 0, drawn.stderr
    assert "3 slides drawn" in drawn.stdout
    assert len(list((tmp_path / "maps").glob("*.png"))) == 3


def test_scoring_without_a_teacher(archive, patches, tmp_path):
    run = shazam_fast("train", archive.path, "--out", tmp_path / "run", *QUICK)
    assert run.returncode == 0, run.stderr
    del patches["features"]["uni"]
    fewer = sf.write_archive(tmp_path / "fewer", **patches)
    refused = shazam_fast("score", tmp_path / "run", fewer, "--out", tmp_path / "scores")
    assert refused.returncode == 1
    assert "only a student trained with teacher_dropout" in refused.stderr
    assert not (tmp_path / "scores").exists()
    forced = shazam_fast("score", tmp_path / "run", fewer, "--out", tmp_path / "scores", "--allow-missing-teachers")
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


def test_converting_several_teachers(tables, patches):
    teachers = [f"--teacher={name}={tables / name}" for name in ("virchow", "uni")]
    annotations = ["--labels", tables / "labels.csv", "--splits", tables / "splits.csv"]
    for _ in range(2):  # the second finds that all is done
        run = shazam_fast("convert", *teachers, tables / "out", *annotations, "--dtype", "float32")
        assert run.returncode == 0, run.stderr
        assert "300 patches, 0.00 GB in" in run.stdout
        assert re.search(r"virchow +│ 0.0e\+00 │ 0.0e\+00", run.stdout)
    archive = sf.open(tables / "out")
    assert archive.teachers == {"virchow": 20, "uni": 12}
    assert archive.dtype == "float32"
    assert archive.labels.tolist() == [1] * 100 + [0] * 200
    assert archive.split("test").tolist() == list(range(100, 300))
    run = shazam_fast("convert", tables / "uni", tables / "half")
    assert re.search(r"uni +│ [1-9]\.\de-04 │ [1-9]\.\de-04", run.stdout), "half a unit in the last place of float16"
    run = shazam_fast("convert", *teachers, tables / "out", *annotations)
    assert run.returncode == 1
    assert "holds the work of another call: dtype differ" in run.stderr


@pytest.mark.parametrize(
    "arguments", [("in",), ("in", "more", "out"), ("in", "out", "--teacher", "uni=x"), ("out", "--teacher", "uni")]
)
def test_converting_from_nothing_in_particular(tmp_path, arguments):
    run = shazam_fast("convert", *arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert "NAME=PATH" in run.stderr
    assert not list(tmp_path.iterdir())


def test_verifying(archive):
    run = shazam_fast("verify", archive.path)
    assert run.returncode == 0, run.stderr
    assert "300 patches, all finite; 1 files match their checksums" in " ".join(run.stdout.split())
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    run = shazam_fast("verify", archive.path)
    assert run.returncode == 1
    assert f"error: {part}: checksum mismatch" in run.stderr


def test_inspecting_files_in_place(tables, patches):
    annotations = ["--labels", tables / "labels.csv", "--splits", tables / "splits.csv"]
    run = shazam_fast("inspect", tables / "uni", *annotations)
    assert run.returncode == 0, run.stderr
    assert "opened in place from 2 files" in " ".join(run.stdout.split())
    assert "norms of all patches" in run.stdout
    norms = np.linalg.norm(patches["features"]["uni"].astype(float), axis=1)
    low, middle, high = (f"{value:.4g}" for value in (norms.min(), np.median(norms), norms.max()))
    assert re.search(rf"uni +│ 12 +│ {low} +│ {middle} +│ {high} +│ 0 of 300 ", run.stdout)
    assert re.search(r"tumour │ 100 +│ 0 +│ 0 +│ 0 ", run.stdout)
    assert re.search(r"normal │ 0 +│ 0 +│ 200 +│ 0 ", run.stdout)


def test_inspecting_a_sample(tmp_path):
    features = np.full((20_000, 4), 0.5, dtype=np.float32)
    features[::2, 1] = np.nan
    np.save(tmp_path / "uni.npy", features)
    run = shazam_fast("inspect", tmp_path / "uni.npy")
    assert "norms of a sample of 10,000 patches" in run.stdout
    found = re.search(r"uni +│ 4 +│ 1 +│ 1 +│ 1 +│ ([\d,]+) of 10,000 ", run.stdout)
    assert 4_700 < int(found[1].replace(",", "")) < 5_300
    assert shazam_fast("inspect", tmp_path / "uni.npy").stdout == run.stdout
    run = shazam_fast("verify", tmp_path / "uni.npy")
    assert run.returncode == 1
    assert "teacher 'uni', row 0: the feature is nan" in run.stderr


def test_a_preset_and_one_changed_option(archive, tmp_path):
    run = shazam_fast("train", archive.path, "--out", tmp_path / "run", "--preset", "huncrc", "--epochs", "1")
    assert run.returncode == 0, run.stderr
    job = sf.load(tmp_path / "run").training_record["job"]
    assert (job["lam"], job["epochs"], job["batch_size"]) == (0.05, 1, 64)
    run = shazam_fast("train", archive.path, "--out", tmp_path / "b", "--preset", "huncrc", "--lam", "0.5", *QUICK)
    assert sf.load(tmp_path / "b").training_record["job"]["lam"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nothing.archive"), "error: nothing.archive: no such file or directory"),
        (("train", "nothing.archive", "--out", "run"), "error: nothing.archive: no such file or directory"),
        (("train", "x", "--out", "run", "--preset", "camelyon"), "error: no preset is called 'camelyon'"),
        (("evaluate", "no-student", "nothing.archive"), "a student is a directory with student.json"),
        (("score", "no-student", "nothing.archive", "--out", "scores"), "a student is a directory with"),
        (("heatmap", "no-scores", "maps"), "no-scores: no scores there: _scores.json not found"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(tmp_path, arguments, message):
    run = shazam_fast(*arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_typing_error_is_usage(archive):
    run = shazam_fast("train", archive.path, "--epohcs", "3")
    assert run.returncode == 2
    assert "No such option" in run.stderr


def test_ctrl_c_and_the_same_command_again(tmp_path):
    archive = sf.write_archive(tmp_path / "a", **make_patches(rows=4000))
    arguments = ["train", archive, "--out", tmp_path / "run", "--batch-size", "4", "--dim", "16", "--patience", "500"]
    command = [sys.executable, "-c", "from shazam_fast.cli.app import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(6.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode not in (0, 1, -signal.SIGINT), errors
    assert "the same call continues from there" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(6.0)
    process.send_signal(signal.SIGINT)
    assert "continued from epoch" in process.communicate(timeout=30)[1]


def test_progress_is_shown_on_a_terminal_after_two_seconds(tmp_path):
    script = (
        "import time\nfrom shazam_fast.runtime.progress import Progress\n"
        "with Progress('scoring', 40, 'patches') as progress:\n"
        "    for _ in range(40): progress.advance(1, 'note'); time.sleep({})"
    )
    for pause, shown in ((0.07, True), (0.0, False)):
        controller, terminal = pty.openpty()
        process = subprocess.Popen([sys.executable, "-c", script.format(pause)], stderr=terminal)
        assert process.wait(timeout=30) == 0
        os.set_blocking(controller, False)
        os.close(terminal)
        try:
            text = os.read(controller, 100_000).decode()
        except (BlockingIOError, OSError):
            text = ""
        os.close(controller)
        assert ("scoring" in text and "patches/s" in text) is shown


def test_the_table_of_teachers():
    printed = shazam_fast("teachers").stdout
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert all(name in lines for name in (spec.name for spec in sf.list_teachers()))
    assert "2,560" in lines["virchow2"]
    assert "1,280" in lines["virchow2-cls"]
    assert "224 of 256" in lines["gigapath"]
    assert "*" in lines["uni"]
    assert "*" not in lines["gigapath"]
