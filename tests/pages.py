"""Documents whose Python and shell blocks run: how they are found, and the data that they run on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- not run by the tests: (.+?) -->\n)?```(python|bash)\n(.*?)```", re.DOTALL)
REASONS = ("installs", "downloads weights")


def blocks(page):
    """(language, text, why it is not run) of every block of a page."""
    return [(m[3], m[4], m[2]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def write_job(job, slides, dims):
    """A TRIDENT job: two classes that the features tell apart, by slide."""
    import h5py

    rng = np.random.default_rng(0)
    for teacher, dim in dims.items():
        (job / f"features_{teacher}").mkdir(parents=True)
        for i, slide in enumerate(slides):
            with h5py.File(job / f"features_{teacher}" / f"{slide}.h5", "w") as file:
                file["features"] = rng.normal(size=(16, dim)).astype("f4") + i % 2
                grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 512
                file["coords"] = grid
                file["coords"].attrs.update(patch_size=512, patch_size_level0=512, level0_magnification=20)


def write_cohort(place):
    """Two TRIDENT jobs of 12 slides, their labels, and a table of slides with patients and sites."""
    slides = [f"case-{i:02d}" for i in range(12)]
    for folder in ("trident_out", "cohort"):
        write_job(place / folder / "20x_512px_0px_overlap", slides, {"uni": 24, "virchow2": 40})
    labels = [f"{slide},{'tumour' if i % 2 else 'normal'}" for i, slide in enumerate(slides)]
    (place / "labels.csv").write_text("slide_id,label\n" + "\n".join(labels) + "\n")
    rows = [f"{line},patient-{i:02d},site-{i // 2}" for i, line in enumerate(labels)]
    (place / "slides.csv").write_text("slide_id,label,patient_id,site\n" + "\n".join(rows) + "\n")


def run_shell(text, place):
    """Line by line with the program of this environment, as `sh -e` does."""
    program = place / "bin" / "shazam-fast"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable}\nfrom shazam_fast.cli.app import main\nmain()\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "COLUMNS": "100"}
    command = ["bash", "-e", "-c", text]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def run_page(page, place):
    """Run a page's blocks in order, in the current directory `place`.

    Returns the names that its Python blocks define, and the blocks that ran.
    """
    names, ran = {}, []
    for language, text, reason in blocks(page):
        if reason is not None:
            assert reason in REASONS
            continue
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
        else:
            run = run_shell(text, place)
            assert run.returncode == 0, f"{text}\n{run.stderr}"
            assert "Traceback" not in run.stderr
        ran.append(text)
    return names, ran


def options_in(text):
    """Options of commands that a document's sentences name."""
    return set(re.findall(r"`(--[a-z][a-z-]*)", text))


def known_options():
    """Every option of every command."""
    import typer

    from shazam_fast.cli.app import app

    def options(command):
        inner = getattr(command, "commands", {}).values()
        return {option for p in command.params for option in p.opts}.union(*map(options, inner))

    return options(typer.main.get_command(app))


def require_names(text):
    """Functions of the package, presets and files that a document names exist."""
    import shazam_fast as sf

    slides = set(re.findall(r"\bsf\.slides\.([A-Za-z_]+)", text))
    assert [name for name in slides if not hasattr(sf.slides, name)] == []
    names = set(re.findall(r"\bsf\.([A-Za-z_]+)", text))
    assert [name for name in names if not hasattr(sf, name)] == []
    assert all(sf.TrainConfig.from_preset(name) for name in re.findall(r'preset="(\w+)"', text))
    for file in re.findall(r"`((?:benchmarks|shazam_fast|kernels|tests|docs|\.ci)/[\w./-]+)`", text):
        assert (ROOT / file).exists(), file
    return names
