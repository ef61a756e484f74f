"""The directory walker: which files it finds, what it passes over and says so."""

import os

import numpy as np
import pytest
import torch
from pieces import read_rows, refuses
from safetensors.numpy import save_file

import shazam_fast as sf
from shazam_fast.layouts.directories import READERS, find_features
from shazam_fast.layouts.discovery import kind_of, walk


def features_of(number):
    return np.full((number + 1, 4), number, np.float16)


SAVE = {
    ".npy": np.save,
    ".NPY": lambda path, features: np.save(path.open("wb"), features),
    ".safetensors": lambda path, features: save_file({"features": features}, path),
    ".pt": lambda path, features: torch.save(torch.from_numpy(features), path),
    ".pth": lambda path, features: torch.save(torch.from_numpy(features), path),
}


@pytest.mark.parametrize("suffix", SAVE)
def test_one_source_per_slide_in_order(tmp_path, suffix):
    assert kind_of(f"x{suffix}") in READERS
    for number, place in enumerate(["b/TCGA-1.svs", "b/c/slide 3", "a/TCGA-2", "z"]):
        file = tmp_path / "uni" / f"{place}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        SAVE[suffix](file, features_of(number))
    sources = find_features(tmp_path / "uni")
    assert [source.slide for source in sources] == ["TCGA-1", "TCGA-2", "slide 3", "z"]
    for source, number in zip(sources, (0, 2, 1, 3), strict=True):
        assert source.teacher == "uni"
        np.testing.assert_array_equal(read_rows(source.file, source.read()), features_of(number))


def test_what_is_no_slide_is_passed_over_and_said_once(tmp_path, caplog):
    np.save(tmp_path / "slide.npy", features_of(1))
    for name in ("._slide.npy", "new.tmp.npy", "new.unfinished.npy", "new.npy.tmp", "slide.meta.json", "notes.csv"):
        (tmp_path / name).touch()
    for directory in (".cache", "folder.npy"):
        (tmp_path / directory).mkdir()
    (tmp_path / ".cache" / "hidden.npy").touch()
    (tmp_path / "folder.npy" / "circle").symlink_to(tmp_path)
    (source,) = find_features(tmp_path)
    assert source.slide == "slide"
    (record,) = caplog.records
    assert "passed over 1 hidden, 3 temporary or half-written (first: " in record.getMessage()


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "elsewhere" / "a.npy", features_of(1))
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "job" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "job")
    assert [file.name for file in walk(tmp_path / "job").files] == ["a.npy"]


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    file = tmp_path / "slide.npy"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else tmp_path / "gone.npy")
    (source,) = find_features(tmp_path)
    refuses(
        lambda path: source.read(), file, "file not found" if kind == "link to nothing" else "found a directory, pipe"
    )


def test_a_slide_that_is_being_written_is_refused_or_left_out(tmp_path):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", features_of(3))
    (tmp_path / "b.npy.lock").touch()
    (tmp_path / "c.npy.lock").touch()
    with pytest.raises(sf.ArchiveError, match=r"b\.npy: the slide is still being written"):
        sf.open(tmp_path)
    archive = sf.open(tmp_path, on_error="skip")
    assert archive.slides == ("a",)
    assert list(archive.left_out) == ["b", "c"]


def test_two_files_of_one_slide(tmp_path):
    (tmp_path / "a.npy").touch()
    (tmp_path / "a.NPY").touch()
    with pytest.raises(sf.MismatchError, match=r"a\.NPY and .*a\.npy are two files of the slide 'a'"):
        find_features(tmp_path)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(sf.ArchiveError, match="locked: cannot be listed: Permission denied"):
        find_features(tmp_path)
