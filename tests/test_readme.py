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
    slides = [f"case-{i:02d}" for i in range(12)]
    for folder in ("trident_out", "cohort"):
        write_job(place / folder / "20x_512px_0px_overlap", slides, {"uni": 24, "virchow2": 40})
    labels = [f"{slide},{'tumour' if i % 2 else 'normal'}" for i, slide in enumerate(slides)]
    (place / "labels.csv").write_text("slide_id,label\n" + "\n".join(labels) + "\n")
    rows = [f"{line},patient-{i:02d},site-{i // 2}" for i, line in enumerate(labels)]
    (place / "slides.csv").write_text("slide_id,label,patient_id,site\n" + "\n".join(rows) + "\n")
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


@pytest.mark.usefixtures("small_maps")
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
        assert len(list((place / folder).glob("*.png"))) == 12
    assert len(sf.list_teachers()) == len(before) + 1
    check_what_the_commands_wrote(place)


def check_what_the_commands_wrote(place):
    """Each of the files and directories that a command's --out names is there and opens."""
    written = [Path(out) for _, text, reason in blocks() if reason is None for out in re.findall(r"--out (\S+)", text)]
    assert len(written) >= 5
    for path in written:
        assert (place / path).exists(), path
    job = sf.open(place / "job.archive")
    assert {name: len(job.split(name)) for name in ("train", "val", "test")} == {"train": 128, "val": 32, "test": 32}
    assert sf.evaluate(place / "runs" / "job", job).balanced_accuracy > 0.8
    assert len(sf.open_scores(place / "cohort.scores")) == 192
    assert (place / "report.html").read_text(encoding="utf-8").startswith("<!")


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


def read_readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_that_is_not_run_is_python():
    for language, text, _ in blocks():
        if language == "python":
            compile(text, "README.md", "exec")


def test_names_in_the_text_exist():
    """Functions, options of commands, presets, extras and files, in sentences as in blocks."""
    text = read_readme()
    names = set(re.findall(r"\bsf\.([A-Za-z_]+)", text))
    assert len(names) > 15
    assert [name for name in names if not hasattr(sf, name)] == []
    slides = set(re.findall(r"\bsf\.slides\.([A-Za-z_]+)", text))
    assert [name for name in slides if not hasattr(sf.slides, name)] == []
    presets = re.findall(r'preset="(\w+)"', text)
    assert presets
    assert [sf.TrainConfig.from_preset(name) for name in presets]
    for file in re.findall(r"`((?:benchmarks|shazam_fast|kernels|tests|docs|\.ci)/[\w./-]+)`", text):
        assert (ROOT / file).exists(), file


def test_options_in_the_text_exist():
    import typer

    from shazam_fast.cli.app import app

    def options(command):
        inner = getattr(command, "commands", {}).values()
        return {option for p in command.params for option in p.opts}.union(*map(options, inner))

    known = options(typer.main.get_command(app))
    found = set(re.findall(r"`(--[a-z][a-z-]*)", read_readme()))
    assert len(found) > 10
    assert found <= known | {"--nproc-per-node", "--quick"}, found - known


def test_extras_are_those_of_the_package():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = set(re.findall(r"^\| `(\w+)` \|", read_readme(), re.MULTILINE))
    assert table | {"demo", "test", "dev"} == set(extras)
    named = set(re.findall(r"extras? `(\w+)`", read_readme()))
    assert named <= set(extras)


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
