"""The documentation's pages: their blocks run, what they name exists, and every public name has its place."""

import re

import pytest
from pages import ROOT, known_options, options_in, require_names, run_page, write_cohort

import shazam_fast as sf

PAGES = ROOT / "docs" / "pages"
FILES = sorted(PAGES.rglob("*.md"))
INCLUDED = re.compile(r'^--8<-- "(.+?)(?::([\w-]+))?"$', re.MULTILINE)
JOB = "20x_512px_0px_overlap"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a TRIDENT job, an archive, a student and scores, as the pages take them for granted."""
    pytest.importorskip("h5py", reason="the pages' cohort lies in HDF5 files (extra: hdf5)")
    pytest.importorskip("matplotlib", reason="the pages draw maps (extra: heatmap)")
    place = tmp_path_factory.mktemp("pages")
    write_cohort(place)
    split = sf.GroupedSplit(val=0.15, test=0.15, seed=1)
    sf.convert(place / "trident_out" / JOB, place / "job.archive", labels=place / "labels.csv", splits=split)
    result = sf.train(place / "job.archive", out=place / "runs" / "job", epochs=2, teacher_dropout=0.2, device="cpu")
    sf.score(result.student, place / "cohort" / JOB, out=place / "cohort.scores")
    return place


def test_blocks_run(place, monkeypatch):
    monkeypatch.chdir(place)
    ran = {str(page.relative_to(PAGES)): len(run_page(page, place)[1]) for page in FILES}
    assert sum(ran.values()) > 10, ran


def test_names_and_options_in_the_text_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in FILES)
    require_names(text)
    assert options_in(text) <= known_options() | {"--quick", "--build-arg", "--gpus"}


def test_what_pages_include_is_there():
    for page in FILES:
        for file, section in INCLUDED.findall(page.read_text(encoding="utf-8")):
            text = (ROOT / file).read_text(encoding="utf-8")
            assert not section or f"--8<-- [start:{section}]" in text, (page, section)


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (PAGES / "reference" / "api").glob("*.md"))
    found = sorted(re.findall(r"^::: shazam_fast\.(.+)$", text, re.MULTILINE))
    assert found == sorted([*(set(sf.__all__) - {"slides"}), *(f"slides.{name}" for name in sf.slides.__all__)])


def test_the_slurm_example_is_spelt_right():
    text = (ROOT / "docs" / "slurm.sbatch").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("shazam-fast ")]
    assert len(lines) == 3
    assert set(re.findall(r" (--[a-z-]+)", " ".join(lines))) <= known_options()
