"""Teachers in files of their own, joined by slide and coordinates."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import shazam_fast as sf
from shazam_fast.archive.archive import FeatureArchive
from shazam_fast.archive.joining import join
from shazam_fast.formats.pieces import Piece, Source


def grid(rows, seed=None):
    coords = np.stack([np.arange(rows) % 7 * 256, np.arange(rows) // 7 * 256], axis=1)
    return coords if seed is None else np.random.default_rng(seed).permutation(coords)


class Files:
    """Raw float32 matrices, one file a teacher and slide."""

    def __init__(self, folder):
        self.folder, self.sources, self.features = folder, [], {}

    def add(self, teacher, slide, coords, rows=None, dim=4, stride=None, labels=None, dtype=np.float32):
        rows = len(coords) if rows is None else rows
        features = np.random.default_rng([len(teacher), len(slide), rows]).normal(size=(rows, dim)).astype(dtype)
        file = self.folder / f"{teacher}-{slide}.raw"
        wide = np.zeros((rows, stride or dim), dtype)
        wide[:, :dim] = features
        file.write_bytes(b"header" + wide.tobytes())
        runs = np.array([[6, rows, wide.strides[0]]] if rows else np.empty((0, 3)), dtype=np.int64)
        piece = Piece(dim, str(wide.dtype), runs, coords, labels)
        self.sources.append(Source(teacher, slide, str(file), lambda: piece))
        self.features[teacher, slide] = features
        return features

    def open(self, **options):
        return FeatureArchive(join(Path("job"), self.sources, **options))


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_the_same_order_costs_nothing(files):
    for teacher in ("uni", "virchow"):
        for slide, rows in (("b", 30), ("a", 12)):
            files.add(teacher, slide, grid(rows))
    archive = files.open()
    assert archive.slides == ("a", "b")
    assert archive.slide_index.tolist() == [0] * 12 + [1] * 30
    np.testing.assert_array_equal(archive.coords, np.concatenate([grid(12), grid(30)]))
    expected = [np.concatenate([files.features[t, s] for s in "ab"]) for t in ("uni", "virchow")]
    np.testing.assert_array_equal(archive.gather(np.arange(42)), np.concatenate(expected, axis=1))
    assert archive.labels.tolist() == [-1] * 42


@pytest.mark.parametrize("stride", [None, 9])
def test_shuffled_coordinates_are_joined(files, stride):
    left, right = grid(40, seed=1), grid(40, seed=2)
    uni = files.add("uni", "a", left)
    virchow = files.add("virchow", "a", right.astype(np.int32), dim=6, stride=stride)
    archive = files.open()
    place = {tuple(c): i for i, c in enumerate(right.tolist())}
    order = [place[tuple(c)] for c in left.tolist()]
    np.testing.assert_array_equal(archive.gather(np.arange(40)), np.concatenate([uni, virchow[order]], axis=1))
    np.testing.assert_array_equal(archive.coords, left)


def test_a_shifted_block_stays_a_few_runs(files):
    files.add("uni", "a", grid(700))
    files.add("virchow", "a", np.roll(grid(700), 35, axis=0))
    contents = join(Path("job"), files.sources)
    assert [len(block.table) for block in contents.blocks] == [1, 2]


def test_counts_that_differ_are_named(files):
    files.add("uni", "a", grid(14_193))
    files.add("virchow", "a", grid(10_126))
    counts = r"uni-a.raw \('uni'\) has 14193, .*virchow-a.raw \('virchow'\) has 10126; "
    message = counts + r"position \(.*\) in row 10126 of the first"
    with pytest.raises(sf.MismatchError, match=message):
        files.open()


def test_positions_that_differ_are_named(files):
    files.add("uni", "a", grid(20))
    moved = grid(20)
    moved[7] += 1
    files.add("virchow", "a", moved)
    with pytest.raises(sf.MismatchError, match=r"position \(0, 256\) in row 7 of the first is not in the other"):
        files.open()


def test_repeated_positions_have_no_order(files):
    coords = grid(20)
    coords[3] = coords[4]
    files.add("uni", "a", coords)
    files.add("virchow", "a", coords)
    assert files.open().n_rows == 20
    files.sources.pop()
    files.add("virchow", "a", coords[::-1])
    with pytest.raises(sf.MismatchError, match="positions repeat, and in another order from row 0 on"):
        files.open()


def test_without_coordinates_rows_are_joined_by_number(files, caplog):
    files.add("uni", "a", grid(20))
    files.add("slide2vec", "a", None, rows=20)
    archive = files.open()
    assert archive.n_rows == 20
    assert "their rows are matched by number" in caplog.text
    files.sources.pop()
    files.add("slide2vec", "a", None, rows=19)
    with pytest.raises(sf.MismatchError, match=r"has 20, .* has 19; at least one has no coordinates to match them by"):
        files.open()


def test_slides_that_only_one_teacher_has(files):
    files.add("uni", "a", grid(5))
    files.add("uni", "b", grid(5))
    files.add("virchow", "a", grid(5))
    with pytest.raises(
        sf.MismatchError, match=r"uni-b.raw has no counterpart of 'virchow': 'uni' has 2 slides, 'virchow' 1 "
    ):
        files.open()
    assert files.open(slides=["a"]).slides == ("a",)
    with pytest.raises(sf.MismatchError, match=r"uni-b.raw has no counterpart of 'virchow'"):
        files.open(slides=["a", "b"])


def test_empty_slides_are_slides_without_rows(files):
    for teacher in ("uni", "virchow"):
        files.add(teacher, "a", grid(5))
        files.add(teacher, "empty", None, rows=0, dim=0 if teacher == "uni" else 4)
    archive = files.open()
    assert archive.slides == ("a", "empty")
    assert archive.n_rows == 5
    for source in (files.sources[1], files.sources[3]):
        assert source.slide == "empty"
    with pytest.raises(sf.MismatchError, match="no patches: empty or left out: 1 slide"):
        files.open(slides=["empty"])


def test_one_teacher_of_two_widths_or_dtypes(files):
    files.add("uni", "a", grid(5))
    files.add("uni", "b", grid(5), dim=8)
    with pytest.raises(sf.MismatchError, match=r"uni-a.raw holds 4 columns, .*uni-b.raw 8; .*one encoder"):
        files.open()
    files.sources.pop()
    files.add("uni", "b", grid(5), dtype=np.float16)
    with pytest.raises(sf.MismatchError, match=r"uni-a.raw holds float32, .*uni-b.raw float16; shazam_fast.convert"):
        files.open()


def test_teachers_of_different_dtypes_are_read_as_float32(files):
    uni = files.add("uni", "a", grid(5), dtype=np.float16)
    virchow = files.add("virchow", "a", grid(5))
    archive = files.open()
    assert archive.dtype == "float32"
    np.testing.assert_array_equal(archive.gather([4]), np.concatenate([uni[4:], virchow[4:]], axis=1))
    assert archive.row_bytes == 4 * 2 + 4 * 4


def test_labels_follow_their_rows(files):
    left, right = grid(20, seed=1), grid(20, seed=2)
    labels = np.arange(20) % 3
    place = {tuple(c): i for i, c in enumerate(left.tolist())}
    shuffled = labels[[place[tuple(c)] for c in right.tolist()]]
    files.add("uni", "a", left, labels=labels)
    files.add("virchow", "a", right, labels=shuffled)
    archive = files.open()
    assert archive.labels.tolist() == labels.tolist()
    assert archive.classes == ("0", "1", "2")
    files.sources.pop()
    files.add("virchow", "a", right, labels=labels)
    with pytest.raises(sf.MismatchError, match=r"labels in .*uni-a.raw and .*virchow-a.raw differ"):
        files.open()


def test_a_file_written_anew_changes_the_fingerprint(files):
    files.add("uni", "a", grid(5))
    before = files.open().fingerprint
    assert files.open().fingerprint == before
    files.sources.clear()
    files.add("uni", "a", grid(5))
    assert files.open().fingerprint != before


def test_micrometre_coordinates_stay_fractions(files):
    coords = (grid(5) * 0.25 + 0.125).astype(np.float32)
    files.add("uni", "a", coords)
    np.testing.assert_array_equal(files.open().coords, coords)


def test_reading_is_left_to_the_source(files):
    def broken(path):
        raise sf.ArchiveError(f"{path}: truncated")

    source = Source("uni", "a", "x.h5", partial(broken, "x.h5"))
    with pytest.raises(sf.ArchiveError, match=r"x.h5: truncated"):
        join(Path("job"), [source])
