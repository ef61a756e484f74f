"""The README: its Python and shell blocks run in order, on data that is made here; and the other documents."""

import os
import re
from pathlib import Path

import pytest
from pages import ROOT, blocks, known_options, options_in, require_names, run_page, run_shell, write_cohort

import shazam_fast as sf

README = ROOT / "README.md"

pytest.importorskip("h5py", reason="the README's cohort lies in HDF5 files (extra: hdf5)")
pytest.importorskip("matplotlib", reason="the README draws maps (extra: heatmap)")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("readme")
    write_cohort(place)
    return place


@pytest.mark.usefixtures("small_maps")
def test_the_blocks_run_in_order(place, monkeypatch):
    monkeypatch.chdir(place)
    before = sf.list_teachers()
    names, ran = run_page(README, place)
    assert len(ran) >= 4
    assert names["result"].metrics["test"].balanced_accuracy > 0.8
    for folder in ("trident.maps", "maps"):
        assert len(list((place / folder).glob("*.png"))) == 12
    assert len(sf.list_teachers()) == len(before) + 1
    check_what_the_commands_wrote(place)


def check_what_the_commands_wrote(place):
    """Each of the files and directories that a command's --out names is there and opens."""
    ran = [text for _, text, reason in blocks(README) if reason is None]
    written = [Path(out) for text in ran for out in re.findall(r"--out (\S+)", text)]
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
    for language, text, reason in blocks(README):
        if language != "bash" or reason is None:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("shazam-fast "):
                command, *words = line.split()[1:]
                help_text = run_shell(f"shazam-fast {command} --help", Path(os.environ.get("TMPDIR", "/tmp"))).stdout
                for option in (word for word in words if word.startswith("--")):
                    assert f"{option} " in help_text, line


def test_python_that_is_not_run_is_python():
    for language, text, _ in blocks(README):
        if language == "python":
            compile(text, "README.md", "exec")


def test_names_in_the_text_exist():
    """Functions, options of commands, presets, extras and files, in sentences as in blocks."""
    assert len(require_names(README.read_text(encoding="utf-8"))) > 15


def test_options_in_the_text_exist():
    found = options_in(README.read_text(encoding="utf-8"))
    assert len(found) > 10
    assert found <= known_options() | {"--nproc-per-node", "--quick"}, found - known_options()


def test_extras_are_those_of_the_package():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = set(re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert table | {"demo", "test", "docs", "dev"} == set(extras)
    named = set(re.findall(r"extras? `(\w+)`", README.read_text(encoding="utf-8")))
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
