"""Directories with one file of features per slide."""

import numpy as np
import pytest
import torch
from pieces import read_rows, refuses
from safetensors.numpy import save_file

from shazam_fast.formats.discovery import READERS, find_directory


def features_of(number):
    return np.full((number + 1, 4), number, np.float16)


SAVE = {
    ".npy": np.save,
    ".safetensors": lambda path, features: save_file({"features": features}, path),
    ".pt": lambda path, features: torch.save(torch.from_numpy(features), path),
    ".pth": lambda path, features: torch.save(torch.from_numpy(features), path),
}


@pytest.mark.parametrize("suffix", SAVE)
def test_one_source_a_slide_in_order(tmp_path, suffix):
    assert suffix in READERS
    for number, place in enumerate(["b/TCGA-1.svs", "b/c/slide 3", "a/TCGA-2", "z"]):
        file = tmp_path / f"{place}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        SAVE[suffix](file, features_of(number))
    sources = find_directory(tmp_path, "uni", suffix)
    assert [source.slide for source in sources] == ["TCGA-1.svs", "TCGA-2", "slide 3", "z"]
    for source, number in zip(sources, (0, 2, 1, 3), strict=True):
        assert source.teacher == "uni"
        np.testing.assert_array_equal(read_rows(source.file, source.read()), features_of(number))


def test_what_is_no_slide_is_left_out(tmp_path):
    np.save(tmp_path / "slide.npy", features_of(1))
    for name in ("._slide.npy", "new.tmp.npy", "new.lock.npy", "new.unfinished.npy", "new.npy.tmp", "slide.meta.json"):
        (tmp_path / name).touch()
    for directory in (".cache", "folder.npy"):
        (tmp_path / directory).mkdir()
    (tmp_path / ".cache" / "hidden.npy").touch()
    (tmp_path / "folder.npy" / "circle").symlink_to(tmp_path)
    (source,) = find_directory(tmp_path, "uni", ".npy")
    assert source.slide == "slide"


def test_a_link_to_nothing_is_not_passed_over(tmp_path):
    (tmp_path / "slide.npy").symlink_to(tmp_path / "gone.npy")
    (source,) = find_directory(tmp_path, "uni", ".npy")
    refuses(lambda path: source.read(), tmp_path / "slide.npy", "No such file")


def test_two_files_of_one_slide(tmp_path):
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "slide.npy").touch()
    refuses(lambda path: find_directory(path, "uni", ".npy"), tmp_path, "'slide'.*(a/slide.npy.*b/|b/slide.npy.*a/)")


def test_no_slides(tmp_path):
    (tmp_path / "slide.pt").touch()
    refuses(lambda path: find_directory(path, "uni", ".npy"), tmp_path, "no file ends in '.npy'")
    refuses(lambda path: find_directory(path, "uni", ".npy"), tmp_path / "nothing", "cannot be listed: No such file")
    refuses(lambda path: find_directory(path, "uni", ".npy"), tmp_path / "slide.pt", "cannot be listed: Not a dir")
