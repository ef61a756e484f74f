"""What a directory holds, told by its files and by what they name."""

import json

import pytest

import shazam_fast as sf
from shazam_fast.comparison.finetuning.files import FORMAT as FINETUNED
from shazam_fast.comparison.table import FORMAT as COMPARISON
from shazam_fast.formats.native import FORMAT as ARCHIVE
from shazam_fast.runtime.jobs.foreign import NAMES, PRODUCTS, find_product
from shazam_fast.slides.selecting.selection import FORMAT as SELECTION
from shazam_fast.slides.students import FORMAT as SLIDE_STUDENT
from shazam_fast.student.saving.files import FORMAT as STUDENT


@pytest.mark.parametrize(("name", "product"), NAMES.items())
def test_a_product_is_known_by_its_file(tmp_path, name, product):
    (tmp_path / name).touch()
    assert find_product(tmp_path) == product
    assert product in PRODUCTS


@pytest.mark.parametrize("written", [ARCHIVE, STUDENT, FINETUNED, COMPARISON, SLIDE_STUDENT, SELECTION])
def test_a_document_names_its_product(tmp_path, written):
    (tmp_path / "student.json").write_text(json.dumps({"format": written, "version": 1}))
    assert find_product(tmp_path) == written.removeprefix("shazam_fast ")


def test_a_finished_directory_whose_claim_was_left(tmp_path):
    (tmp_path / "_job.json").write_text(json.dumps({"format": "shazam_fast job"}))
    assert find_product(tmp_path) == "job"
    (tmp_path / "archive.json").write_text(json.dumps({"format": ARCHIVE}))
    assert find_product(tmp_path) == "archive"
    assert find_product(tmp_path / "archive.json") is None


@pytest.mark.parametrize("open_it", [sf.load, sf.open_comparison, sf.slides.load])
def test_another_product_is_named_where_one_is_opened(tmp_path, open_it):
    (tmp_path / "_scores.parquet").touch()
    with pytest.raises(sf.ArchiveError, match=r"holds scores, but .* expected here; a command that takes it: heatmap"):
        open_it(tmp_path)


def test_training_does_not_mix_with_another_product(tmp_path):
    (tmp_path / "_scores.parquet").touch()
    with pytest.raises(sf.MismatchError, match="holds scores already"):
        sf.train(tmp_path / "features", out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["_scores.parquet"]


def test_an_empty_path_is_no_directory():
    with pytest.raises(sf.ShazamError, match="found an empty text"):
        sf.open("")
