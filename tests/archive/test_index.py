"""Directories opened from their index are as if every file had been read."""

import logging
import os
import pickle
import shutil
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tools

import shazam_fast as sf
from shazam_fast import _core
from shazam_fast.formats.index import folder, scan, trees
from shazam_fast.formats.pieces import FileState, Piece, Source

h5py = pytest.importorskip("h5py", reason="the index is of HDF5 files")

HOUR = 3_600_000_000_000


class Clock:
    """The time as the index sees it; an hour from now at first, so that files that tests write are old."""

    ahead = HOUR

    def time_ns(self):
        return time.time_ns() + self.ahead


@pytest.fixture
def clock(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setenv("SHAZAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trees, "FEWEST", 1)
    monkeypatch.setattr(trees, "time", clock)
    return clock


@pytest.fixture
def read(monkeypatch):
    """The names of files that are read instead of taken from an index, since the list was cleared."""
    names = []

    def scan_and_note(sources):
        names.extend(source.file.name for source in sources)
        return scan.scan(sources)

    monkeypatch.setattr(trees, "scan", scan_and_note)
    return names


def describe(archive):
    """All that can be told of an archive."""
    contents = archive._contents
    known = {field.name: getattr(contents, field.name) for field in fields(contents)}
    columns = {name: (column().dtype, repr(column().tolist())) for name, column in known.pop("columns").items()}
    blocks = [(b.columns, b.dtype, b.files, b.table.dtype, b.table.tolist()) for b in known.pop("blocks")]
    features = archive.gather(np.arange(len(archive))).tobytes()
    return repr(known), columns, blocks, features, archive.fingerprint, archive.coords.dtype, archive.coords.tobytes()


def opened(path, **options):
    """What opening gives, or the error that it raises."""
    try:
        return describe(sf.open(path, **options))
    except sf.ShazamError as error:
        return type(error), str(error), getattr(error, "kind", None)


def stays_equal(path, **options):
    """Opening with and without index, the second time from the index, gives the same; returns what it gives."""
    expected = opened(path, index=False, **options)
    assert opened(path, **options) == expected
    assert opened(path, **options) == expected
    return expected


def two_encoders(root):
    """TRIDENT with two encoders, one of which has the patches of slide b in another order."""
    job = tools.trident(root)
    tools.trident(root, "conch_v15", dim=6)
    with h5py.File(job / "20x_256px_0px_overlap" / "features_conch_v15" / "b.h5", "r+") as file:
        for name in ("features", "coords"):
            file[name][...] = file[name][()][::-1]
    return job


def odd_files(root):
    """Positions that are compressed, big-endian, fractions and numbers that are none; a slide without a patch."""
    kinds = {"a": ("i4", {"compression": "gzip"}), "b": (">i4", {}), "c": ("f4", {}), "d": ("f8", {}), "e": ("u2", {})}
    for slide, (dtype, options) in kinds.items():
        rows = 0 if slide == "e" else 5
        with h5py.File(root / f"{slide}.h5", "w") as file:
            file["features"] = np.full((rows, 4), ord(slide), "f4")
            xy = np.arange(2 * rows).reshape(rows, 2).astype(dtype)
            if slide == "d":
                xy[0] = 0.5, np.nan
            file.create_dataset("coords", data=xy, **options)
    return root


def without_coords(root):
    with h5py.File(root / "a.h5", "w") as file:
        file["features"] = np.ones((5, 4), "f2")
    return root


@pytest.mark.parametrize(
    "make",
    [two_encoders, tools.clam, tools.stamp, tools.atlaspatch, odd_files, without_coords],
    ids=lambda f: f.__name__,
)
def test_what_is_opened_from_the_index_equals_what_is_read(tmp_path, clock, read, make):
    (tmp_path / "job").mkdir()
    path = make(tmp_path / "job")
    assert not isinstance(stays_equal(path)[0], type)
    read.clear()
    archive = sf.open(path)
    assert read == []
    restored = pickle.loads(pickle.dumps(archive))
    assert describe(restored) == describe(archive)


def test_several_directories_and_a_relative_path(tmp_path, clock, read, monkeypatch):
    tools.trident(tmp_path / "one")
    tools.stamp(tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    paths = {"uni": "one", "uni2": tmp_path / "two" / "uni2-49b04e14"}
    assert stays_equal(paths) == opened(paths, index=False)
    tools.trident(tmp_path / "three", dim=4)
    paths = {"uni": "one", "virchow": Path("three")}
    stays_equal(paths)
    read.clear()
    assert sf.open(paths).teachers == {"uni": 8, "virchow": 4}
    assert sf.open({"uni": tmp_path / "one"}).teachers == {"uni": 8}
    assert read == []


def test_only_files_that_are_new_or_changed_are_read(tmp_path, clock, read):
    job = tools.trident(tmp_path / "job")
    slides = job / "20x_256px_0px_overlap" / "features_uni_v1"
    sf.open(job)
    read.clear()
    shutil.copyfile(slides / "a.h5", slides / "new.h5")
    with h5py.File(slides / "b.h5", "r+") as file:
        file["coords"].attrs.modify("patch_size_level0", 1024)
    archive = sf.open(job)
    assert read == ["b.h5", "new.h5"]
    assert archive.geometry["b"].patch_size == 1024
    (slides / "c.h5").unlink()
    read.clear()
    assert sf.open(job).slides == ("a", "b", "d", "new")
    assert read == []
    stays_equal(job)
    shutil.copyfile(slides / "a.h5", slides / "c.h5")
    sf.open(job)
    assert read == ["c.h5"]


def test_names_that_are_no_text_below_a_relative_path(tmp_path, clock, read, monkeypatch):
    job = os.fsdecode(b"job\xff")
    tools.trident(tmp_path / job)
    monkeypatch.chdir(tmp_path)
    sf.open(job)
    read.clear()
    known, afresh = sf.open(job), sf.open(job, index=False)
    assert read == []
    assert known.slides == afresh.slides == ("a", "b", "c", "d")
    np.testing.assert_array_equal(known.gather(range(len(known))), afresh.gather(range(len(known))))


def test_only_the_sources_of_a_changed_file_are_read_where_some_share_a_file(tmp_path, clock, read):
    names = ["one", "two", "three", "beside"]
    for size, name in enumerate(names, 16):
        (tmp_path / name).write_bytes(bytes(size))
    one, two, three, beside = (str(tmp_path / name) for name in names)

    def source(path, asks, *more):
        return Source("uni", asks, path, lambda: Piece(4, "float16", np.array([[0, 2, 8]])), asks=asks, beside=more)

    sources = [source(one, "a"), source(one, "b"), source(two, "a", beside), source(one, "c"), source(three, "a"),
               source(two, "b")]  # fmt: skip

    def read_again():
        read.clear()
        trees.Trees({tmp_path: sources}).read(sources, "opening")
        return read

    assert read_again() == ["one", "one", "two", "one", "three", "two"]
    assert read_again() == []
    for changed, expected in [("beside", ["two"]), ("two", ["two", "two"]), ("one", ["one"] * 3), ("three", ["three"])]:
        (tmp_path / changed).write_bytes(bytes(40))
        assert read_again() == expected
        assert read_again() == []


def test_slides_that_are_chosen_are_read_and_others_stay_known(tmp_path, clock, read):
    job = tools.trident(tmp_path / "job")
    sf.open(job, slides=["b"])
    assert read == ["b.h5"]
    stays_equal(job, slides=["c", "a"])
    read.clear()
    sf.open(job)
    assert read == ["d.h5"]


@pytest.mark.parametrize("beside", ["patches/b.h5", "pt_files/b.pt"])
def test_a_file_beside_the_features_is_looked_at_too(tmp_path, clock, read, beside):
    job = tools.clam(tmp_path / "job")
    stays_equal(job)
    read.clear()
    changed = job / beside
    if changed.suffix == ".h5":
        with h5py.File(changed, "r+") as file:
            file["coords"].attrs["patch_size"] = 1024
    else:
        shutil.copyfile(job / "pt_files" / "d.pt", changed)
    found = opened(job)
    assert read == ["b.h5"]
    assert found == opened(job, index=False)
    assert "1024" in found[0] if changed.suffix == ".h5" else "extract the slide again" in found[1]
    changed.unlink()
    assert opened(job) == opened(job, index=False)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_of_equal_size_and_time_that_was_replaced_is_read(tmp_path, clock, read, in_place):
    """The inode differs, or, where the file was written in place and its time set back, the time of the inode."""
    job = tools.trident(tmp_path / "job")
    slides = job / "20x_256px_0px_overlap" / "features_uni_v1"
    sf.open(job)
    read.clear()
    old = os.stat(slides / "b.h5")
    copy = slides / "b.h5" if in_place else tmp_path / "copy.h5"
    if not in_place:
        shutil.copyfile(slides / "b.h5", copy)
    with h5py.File(copy, "r+") as file:
        file["coords"].attrs.modify("patch_size_level0", 1024)
    os.utime(copy, ns=(old.st_atime_ns, old.st_mtime_ns))
    os.replace(copy, slides / "b.h5")
    assert os.stat(slides / "b.h5").st_size == old.st_size
    assert sf.open(job).geometry["b"].patch_size == 1024
    assert read == ["b.h5"]


def test_a_file_that_changed_just_before_is_not_remembered(tmp_path, clock, read, monkeypatch):
    """On a file system whose times have seconds it may change again and keep its time."""
    job = tools.trident(tmp_path / "job")
    file_b = job / "20x_256px_0px_overlap" / "features_uni_v1" / "b.h5"
    tick = int(time.time()) * 1_000_000_000
    monkeypatch.setattr(
        FileState, "of", lambda path: FileState(os.stat(path).st_size, tick, tick, os.stat(path).st_ino)
    )
    monkeypatch.setattr(_core, "file_states", lambda files: np.array([FileState.of(file) for file in files]))
    clock.ahead = 0
    stays_equal(job)
    with h5py.File(file_b, "r+") as file:
        file["coords"].attrs.modify("patch_size_level0", 1024)
    read.clear()
    assert sf.open(job).geometry["b"].patch_size == 1024
    assert len(read) == 4
    clock.ahead = HOUR
    sf.open(job)
    read.clear()
    sf.open(job)
    assert read == []


def test_an_index_of_the_future_is_not_used(tmp_path, clock, read):
    """The clock was set back, so that files may have been written anew at the times that they had."""
    job = tools.trident(tmp_path / "job")
    sf.open(job)
    read.clear()
    clock.ahead = HOUR // 2
    stays_equal(job)
    assert len(read) == 4


def test_errors_are_those_of_reading(tmp_path, clock, read):
    job = two_encoders(tmp_path / "job")
    slides = job / "20x_256px_0px_overlap" / "features_uni_v1"
    sf.open(job)
    content = (slides / "c.h5").read_bytes()
    (slides / "c.h5").write_bytes(content[:700])
    assert "c.h5" in stays_equal(job)[1]
    skipped = stays_equal(job, on_error="skip")
    assert "left_out={'c': '" in skipped[0].replace("'left_out': ", "left_out=")
    (slides / "c.h5").write_bytes(content)
    with h5py.File(slides / "b.h5", "r+") as file:
        file["coords"][3] = 7, 7
    assert "position [" in stays_equal(job)[1] or "position (" in stays_equal(job)[1]
    (slides / "b.h5.lock").touch()
    assert "still being written" in stays_equal(job)[1]


def test_positions_of_a_file_that_changed_after_it_was_opened(tmp_path, clock):
    job = tools.trident(tmp_path / "job")
    file_b = job / "20x_256px_0px_overlap" / "features_uni_v1" / "b.h5"
    archive = sf.open(job)
    with h5py.File(file_b, "r+") as file:
        file["coords"][0] = 1, 1
    with pytest.raises(sf.ArchiveError, match=r"b\.h5: was written or replaced after it was opened") as caught:
        _ = archive.coords
    assert caught.value.kind == "changed"
    archive = sf.open(job)
    file_b.unlink()
    with pytest.raises(sf.ArchiveError, match=r"b\.h5: positions cannot be read: No such file"):
        _ = archive.coords


@pytest.mark.parametrize("option", [{"index": False}, {}])
def test_the_index_can_be_switched_off(tmp_path, clock, read, monkeypatch, option):
    job = tools.trident(tmp_path / "job")
    if not option:
        monkeypatch.setenv("SHAZAM_CACHE", "off")
    sf.open(job, **option)
    assert read == []
    assert not (tmp_path / "cache").exists()


def test_few_files_need_no_index(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(trees, "FEWEST", 5)
    sf.open(tools.trident(tmp_path / "job"))
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path, clock, caplog, monkeypatch):
    job = tools.trident(tmp_path / "job")
    monkeypatch.setenv("SHAZAM_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "shazam_fast"):
        stays_equal(job)
    assert len(caplog.messages) == 1
    assert str(tmp_path / "file" / "cache") in caplog.text
    assert "Not a directory" in caplog.text


def test_a_folder_of_other_users_is_not_used(tmp_path, clock, read, caplog, monkeypatch):
    job = tools.trident(tmp_path / "job")
    sf.open(job)
    place = tmp_path / "cache" / "index"
    assert place.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in place.iterdir()] == [0o600]
    place.chmod(0o750)
    read.clear()
    with caplog.at_level(logging.WARNING, "shazam_fast"):
        stays_equal(job)
    assert len(read) == 8
    assert "open to other users (mode 750, 700 expected)" in caplog.text
    place.chmod(0o700)
    next(place.iterdir()).chmod(0o622)
    read.clear()
    sf.open(job)  # which replaces the file
    sf.open(job)
    assert len(read) == 4
    folder._said.clear()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with caplog.at_level(logging.WARNING, "shazam_fast"):
        sf.open(job)
    assert "owned by another user" in caplog.text


def test_a_link_in_place_of_the_index_is_not_followed(tmp_path, clock, read):
    job = tools.trident(tmp_path / "job")
    sf.open(job)
    (file,) = (tmp_path / "cache" / "index").iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    read.clear()
    sf.open(job)
    assert len(read) == 4
    assert not file.is_symlink()


# Several processes
def test_files_are_read_in_processes_side_by_side(tmp_path, clock, monkeypatch):
    job = two_encoders(tmp_path / "job")
    expected = opened(job, index=False)
    monkeypatch.setattr(scan, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(scan, "BATCH", 3)
    monkeypatch.setattr(scan.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(scan, "learn", None)  # of this process
    assert opened(job) == expected
    assert opened(job) == expected


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "import os; os.write(1, b'garbage' * 9)"])
def test_processes_that_end_early(tmp_path, clock, caplog, monkeypatch, program):
    job = two_encoders(tmp_path / "job")
    monkeypatch.setattr(scan, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(scan, "PROGRAM", program)
    monkeypatch.setattr(scan.os, "sched_getaffinity", lambda _: {0, 1})
    with caplog.at_level(logging.WARNING, "shazam_fast"):
        stays_equal(job)
    assert "ended early" in caplog.text


def test_what_was_read_before_an_interruption_is_kept(tmp_path, clock, read, monkeypatch):
    job = tools.trident(tmp_path / "job")
    learn = scan.learn

    def learn_or_stop(source):
        if source.slide == "c":
            raise KeyboardInterrupt
        return learn(source)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "learn", learn_or_stop)
        with pytest.raises(KeyboardInterrupt):
            sf.open(job)
    read.clear()
    stays_equal(job)
    assert read == ["c.h5", "d.h5"]


def test_two_that_write_one_index(tmp_path, clock):
    """Each reader sees a whole index, of one writer or the other."""
    job = tools.trident(tmp_path / "job")
    expected = opened(job, index=False)
    place = tmp_path / "cache" / "index"
    results = []

    def open_often():
        for _ in range(15):
            for file in place.glob("*.index"):
                file.unlink(missing_ok=True)
            results.append(opened(job))

    threads = [threading.Thread(target=open_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 45
    assert all(result == expected for result in results)
    assert not list(place.glob("*.unfinished"))


def test_files_that_a_killed_writer_left_are_removed(tmp_path, clock):
    job = tools.trident(tmp_path / "job")
    sf.open(job)
    place = tmp_path / "cache" / "index"
    old, young = place / "x.unfinished", place / "y.unfinished"
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    (job / "20x_256px_0px_overlap" / "features_uni_v1" / "c.h5").unlink()
    sf.open(job)
    assert not old.exists()
    assert young.exists()
