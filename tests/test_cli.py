"""The command line as a user types it."""

import os
import pty
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from synthetic import make_patches

import shazam_fast as sf

COMMANDS = ("demo", "inspect", "train", "evaluate", "score")
QUICK = ("--epochs", "3", "--batch-size", "16", "--dim", "16", "--depth", "2")


def shazam_fast(*arguments, **options):
    command = [sys.executable, "-c", "from shazam_fast.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_without_torch(command):
    script = (
        "import sys; from shazam_fast.cli import main; sys.argv = ['shazam-fast', *sys.argv[1:]]\n"
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

    scored = shazam_fast("score", tmp_path / "run", archive.path, "--out", tmp_path / "s.parquet", "--split", "val")
    assert scored.returncode == 0, scored.stderr
    assert "75 patches scored" in scored.stdout
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 75


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
        (("score", "no-student", "nothing.archive", "--out", "s.parquet"), "a student is a directory with"),
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
    command = [sys.executable, "-c", "from shazam_fast.cli import main; main()", *map(str, arguments)]
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
        "import time\nfrom shazam_fast.progress import Progress\n"
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
