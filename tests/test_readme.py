"""The README: its Python and shell blocks run in order, on data that is made here; and the other documents."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shazam_fast as sf

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- not run by the tests: (.+?) -->\n)?```(python|bash)\n(.*?)```", re.DOTALL)

h5py = pytest.importorskip("h5py", reason="the README's cohort lies in HDF5 files (extra: hdf5)")
pytest.importorskip("matplotlib", reason="the README draws maps (extra: heatmap)")


def blocks():
    """(language, text, why it is not run) of every block."""
    return [(m[3], m[4], m[2]) for m in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]


def write_job(job, slides, dims):
    """A TRIDENT job: two classes that the features tell apart, by slide."""
    rng = np.random.default_rng(0)
    for teacher, dim in dims.items():
        (job / f"features_{teacher}").mkdir(parents=True)
        for i, slide in enumerate(slides):
            with h5py.File(job / f"features_{teacher}" / f"{slide}.h5", "w") as file:
                file["features"] = rng.normal(size=(16, dim)).astype("f4") + i % 2
                grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 512
                file["coords"] = grid
                file["coords"].attrs.update(patch_size=512, patch_size_level0=512, level0_magnification=20)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("readme")
    slides = [f"case-{i:02d}" for i in range(20)]
    for folder in ("trident_out", "cohort"):
        write_job(place / folder / "20x_512px_0px_overlap", slides, {"uni": 24, "virchow2": 40})
    labels = [f"{slide},{'tumour' if i % 2 else 'normal'}" for i, slide in enumerate(slides)]
    (place / "labels.csv").write_text("slide_id,label\n" + "\n".join(labels) + "\n")
    return place


def run_shell(text, place):
    """Line by line with the program of this environment, as `sh -e` does."""
    program = place / "bin" / "shazam-fast"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable}\nfrom shazam_fast.cli.app import main\nmain()\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "COLUMNS": "100"}
    command = ["bash", "-e", "-c", text]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_the_blocks_run_in_order(place, monkeypatch):
    monkeypatch.chdir(place)
    names, ran = {}, []
    before = sf.list_teachers()
    for language, text, reason in blocks():
        if reason is not None:
            assert reason in ("installs", "downloads weights")
        elif language == "python":
            exec(compile(text, "README.md", "exec"), names)
            ran.append(text)
        else:
            run = run_shell(text, place)
            assert run.returncode == 0, run.stderr
            assert "Traceback" not in run.stderr
            ran.append(text)
    assert len(ran) >= 4
    assert names["result"].metrics["test"].balanced_accuracy > 0.8
    for folder in ("trident.maps", "maps"):
        assert len(list((place / folder).glob("*.png"))) == 20
    assert len(sf.list_teachers()) == len(before) + 1


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A teacher that the README registers is forgotten afterwards."""
    from shazam_fast.teachers import registry

    monkeypatch.setattr(registry, "_registry", dict(registry._registry))


def test_blocks_that_are_not_run_are_spelt_right():
    """Their commands and options exist."""
    for language, text, reason in blocks():
        if language != "bash" or reason is None:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("shazam-fast "):
                command, *words = line.split()[1:]
                help_text = run_shell(f"shazam-fast {command} --help", Path(os.environ.get("TMPDIR", "/tmp"))).stdout
                for option in (word for word in words if word.startswith("--")):
                    assert f"{option} " in help_text, line


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CITATION.cff"])
def test_documents_say_the_version(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "CITATION.cff":
        assert f"version: {sf.__version__}" in text
        assert "2503.00736" in text
        assert "2510.27237" in text
    elif name == "CHANGELOG.md":
        assert f"## {sf.__version__}" in text
    else:
        for file in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / file).exists(), file
