"""HDF5 feature files as TRIDENT, CLAM, STAMP and AtlasPatch write them, opened in place and read bit for bit."""

import collections
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
from fuzzing import EXAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shazam_fast import ArchiveError, ShazamError
from shazam_fast._core import FeatureStore, StoreError
from shazam_fast.errors import NotInPlaceError
from shazam_fast.formats import hdf5_chunks
from shazam_fast.formats.hdf5 import read_piece
from shazam_fast.formats.pieces import Place
from shazam_fast.layouts.directories import find_features

h5py = pytest.importorskip("h5py")


def make_features(rows, columns=6, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(dtype)


def make_coords(rows, dtype=np.int64, columns=2):
    return (np.arange(rows * columns).reshape(rows, columns) * 256).astype(dtype)


def append(file, name, values, chunk_rows):
    """How TRIDENT, CLAM and AtlasPatch write: the first batch makes the dataset, later ones extend it."""
    if name not in file:
        row = values.shape[1:]
        return file.create_dataset(name, data=values, chunks=(chunk_rows, *row), maxshape=(None, *row))
    dataset = file[name]
    dataset.resize(len(dataset) + len(values), axis=0)
    dataset[-len(values) :] = values
    return dataset


def write_trident(path, features, coords, batch=4, **file_options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", **file_options) as file:
        for start in range(0, len(features), batch):
            stored = append(file, "features", features[start : start + batch], 1)
            placed = append(file, "coords", coords[start : start + batch], 1)
        stored.attrs.update({"name": path.stem, "savetodir": str(path.parent), "encoder": "uni_v1"})
        placed.attrs.update({"patch_size": 512, "patch_size_level0": 1024, "level0_magnification": 40})
        placed.attrs.update({"target_magnification": 20, "overlap": 0, "name": path.stem})
        placed.attrs.update({"level0_width": 90000, "level0_height": 70000})
    return path


def write_clam(path, features, coords):
    with h5py.File(path, "w") as file:
        for start in range(0, len(features), 50):
            append(file, "features", features[start : start + 50], 32)
            append(file, "coords", coords[start : start + 50].astype(np.int32), 32)
    return path


def write_stamp(path, features, coords, name="feats"):
    with h5py.File(path, "w") as file:
        file["coords"] = (coords / 3).astype(np.float32)
        file[name] = features.astype(np.float16)
        file.attrs.update({"extractor": "uni2", "tile_size_um": 256.0, "tile_size_px": 224, "unit": "um"})
        file.attrs.update({"code_hash": "0b5c", "stamp_version": "2.3.0", "feat_type": "tile"})
    return path


def write_atlaspatch(path, encoders, rows=70, batch=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = make_coords(rows, np.int32, 5)
        for seed, (encoder, columns) in enumerate(encoders.items()):
            for start in range(0, rows, batch):
                values = make_features(rows, columns, seed=seed)[start : start + batch]
                append(file.require_group("features"), encoder, values, batch)
    return path


def write_uni2(path, features, coords, chunks=None):
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features[None], chunks=chunks)
        file.create_dataset("coords", data=coords[None])
    return path


def write_one(path, features=None, coords=None, **options):
    """One dataset with the given options, and coords if any."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=make_features(10) if features is None else features, **options)
        if coords is not None:
            file["coords"] = coords
    return path


def rows_of(path, piece):
    """The rows of a piece as the archive reads them."""
    table = np.concatenate([np.zeros((len(piece.runs), 1), np.int64), piece.runs], axis=1)
    store = FeatureStore(piece.columns, piece.dtype, [str(path)], table)
    out = np.empty((piece.n_rows, piece.columns), piece.dtype)
    store.read(0, piece.n_rows, out)
    return out


def assert_reads_as_h5py(path, dataset="features", piece=None):
    piece = read_piece(path, dataset) if piece is None else piece
    with h5py.File(path) as file:
        expected = file[dataset][...]
        coords = file["coords"][...]
    expected = expected[0] if expected.ndim == 3 else expected
    coords = (coords[0] if coords.ndim == 3 else coords)[:, :2]
    assert piece.columns == expected.shape[1]
    found = rows_of(path, piece)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))
    assert piece.coords.dtype == coords.dtype
    np.testing.assert_array_equal(piece.coords, coords)
    return piece


# Each tool's files


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock_size", [0, 512, 4096])
def test_trident(tmp_path, libver, userblock_size):
    path = tmp_path / "slide.h5"
    write_trident(path, make_features(1000), make_coords(1000), 64, libver=libver, userblock_size=userblock_size)
    piece = assert_reads_as_h5py(path)
    assert piece.coords.dtype == np.int64
    assert len(piece.runs) < 100


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 170])
def test_clam_whose_last_chunk_is_padded(tmp_path, rows):
    piece = assert_reads_as_h5py(write_clam(tmp_path / "slide.h5", make_features(rows), make_coords(rows)))
    assert piece.n_rows == rows
    assert piece.coords.dtype == np.int32


@pytest.mark.parametrize("name", ["feats", "patch_embeddings"])
def test_stamp(tmp_path, name):
    path = write_stamp(tmp_path / "slide.h5", make_features(50), make_coords(50), name)
    piece = assert_reads_as_h5py(path, name, read_piece(path))
    assert (piece.dtype, piece.coords.dtype, len(piece.runs)) == ("float16", np.float32, 1)


def test_a_user_block_before_contiguous_features(tmp_path):
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w", userblock_size=2048) as file:
        file["features"], file["coords"] = make_features(9), make_coords(9)
    assert_reads_as_h5py(path)


def test_atlaspatch(tmp_path):
    encoders = {"virchow": 5, "uni": 3}
    for slide in ("b", "a"):
        write_atlaspatch(tmp_path / "patches" / f"{slide}.h5", encoders)
    for path in (tmp_path, tmp_path / "patches"):
        sources = find_features(path)
        assert [(s.teacher, s.slide) for s in sources] == [
            ("uni", "a"),
            ("uni", "b"),
            ("virchow", "a"),
            ("virchow", "b"),
        ]
    for source in sources:
        assert_reads_as_h5py(source.file, f"features/{source.teacher}", source.read())
    one = find_features(tmp_path / "patches" / "b.h5")
    assert [(s.teacher, s.slide) for s in one] == [("uni", ""), ("virchow", "")]


@pytest.mark.parametrize("chunks", [None, (1, 32, 6), (1, 1, 6)])
def test_uni2_with_a_leading_axis(tmp_path, chunks):
    path = write_uni2(tmp_path / "slide.h5", make_features(70), make_coords(70), chunks)
    assert assert_reads_as_h5py(path).n_rows == 70


@pytest.mark.parametrize(("shape", "columns"), [((0,), 0), ((0, 6), 6), ((1, 0, 6), 6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_empty_slides(tmp_path, shape, columns, dtype):
    path = write_one(tmp_path / "slide.h5", np.zeros(shape, dtype), np.zeros((0, 2), int))
    piece = read_piece(path)
    assert (piece.n_rows, piece.columns, piece.runs.shape, piece.coords.shape) == (0, columns, (0, 3), (0, 2))
    assert piece.dtype == ("float16" if dtype == np.float16 else "float32")


def test_features_without_coords(tmp_path):
    assert read_piece(write_one(tmp_path / "slide.h5")).coords is None


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (8, 2), "compression": "gzip"},
        {"chunks": (3, 1)},
        {"dtype": ">i4"},
        {"dtype": np.uint16, "chunks": (1, 2)},
    ],
)
def test_coords_stored_in_other_ways(tmp_path, options):
    path = write_one(tmp_path / "slide.h5")
    with h5py.File(path, "r+") as file:
        file.create_dataset("coords", data=make_coords(10), **options)
    coords = read_piece(path).coords
    assert coords.dtype.isnative
    np.testing.assert_array_equal(coords, make_coords(10))


# Runs


def test_chunks_out_of_order(tmp_path):
    path = tmp_path / "slide.h5"
    features = make_features(100)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("features", (100, 6), "<f4", chunks=(7, 6))
        for chunk in np.random.default_rng(0).permutation(15):
            dataset[chunk * 7 : chunk * 7 + 7] = features[chunk * 7 : chunk * 7 + 7]
        file["coords"] = make_coords(100)
    assert_reads_as_h5py(path)


def test_aligned_rows_are_runs_with_a_stride(tmp_path):
    aligned = {"alignment_threshold": 1, "alignment_interval": 64}
    path = write_trident(tmp_path / "slide.h5", make_features(1000), make_coords(1000), batch=1, **aligned)
    piece = assert_reads_as_h5py(path)
    assert len(piece.runs) < 100
    assert set(piece.runs[:, 2]) <= {64, 128}


def test_chunks_wider_than_the_rows(tmp_path):
    path = write_one(tmp_path / "slide.h5", None, make_coords(10), chunks=(4, 9), maxshape=(None, None))
    piece = assert_reads_as_h5py(path)
    assert set(piece.runs[:, 2]) == {9 * 4}


@pytest.mark.parametrize(
    ("offsets", "rows", "chunk_rows", "expected"),
    [
        ([100], 1, 1, [[100, 1, 10]]),
        ([100], 3, 4, [[100, 3, 10]]),
        ([100, 110, 120], 3, 1, [[100, 3, 10]]),
        ([100, 140, 180], 11, 4, [[100, 11, 10]]),
        ([100, 150, 200], 11, 4, [[100, 4, 10], [150, 4, 10], [200, 3, 10]]),
        ([100, 126, 152], 3, 1, [[100, 3, 26]]),
        ([100, 126], 2, 1, [[100, 1, 10], [126, 1, 10]]),
        ([300, 200, 100], 3, 1, [[300, 1, 10], [200, 1, 10], [100, 1, 10]]),
        ([100, 110, 120, 146, 172, 198], 6, 1, [[100, 3, 10], [146, 3, 26]]),
        ([100, 126, 152, 162, 172], 5, 1, [[100, 3, 26], [162, 2, 10]]),
        ([100, 110, 500, 510], 4, 1, [[100, 2, 10], [500, 2, 10]]),
    ],
)
def test_merging_chunks_into_runs(offsets, rows, chunk_rows, expected):
    runs = hdf5_chunks._merge(np.array(offsets), rows, chunk_rows, stride=10)
    assert runs.tolist() == expected


def test_merged_runs_hold_every_chunk_in_order():
    rng = np.random.default_rng(0)
    for _ in range(200):
        offsets = 1000 + np.cumsum(rng.choice([10, 10, 10, 16, 26, 90, -700], size=30))
        runs = hdf5_chunks._merge(offsets, 30, 1, stride=10)
        rows = [start + i * stride for start, count, stride in runs.tolist() for i in range(count)]
        assert rows == offsets.tolist()
        assert runs[:, 2].min() >= 10


def test_old_hdf5_lists_chunks_one_by_one(tmp_path):
    path = write_clam(tmp_path / "slide.h5", make_features(100), make_coords(100))
    with h5py.File(path) as file:
        full = file["features"].id
        old = SimpleNamespace(get_num_chunks=full.get_num_chunks, get_chunk_info=full.get_chunk_info)
        assert hdf5_chunks._list_chunks(old, 9) == hdf5_chunks._list_chunks(full, 9)
        assert len(hdf5_chunks._list_chunks(old, 2)) == len(hdf5_chunks._list_chunks(full, 2)) == 2


def test_a_chunk_table_in_any_order(tmp_path):
    path = write_clam(tmp_path / "slide.h5", make_features(100), make_coords(100))
    with h5py.File(path) as file:
        full = file["features"]
        backwards = SimpleNamespace(get_num_chunks=lambda: 4, get_chunk_info=lambda i: full.id.get_chunk_info(3 - i))
        dataset = SimpleNamespace(id=backwards, shape=full.shape, chunks=full.chunks)
        found, expected = (hdf5_chunks.locate_rows(path, one, full.dtype).tolist() for one in (dataset, full))
        assert found == expected


# Bad input, one test an error.


def test_several_encoders_and_none_named(tmp_path):
    path = write_atlaspatch(tmp_path / "a.h5", {"uni": 3, "virchow": 5})
    with pytest.raises(ArchiveError, match="'features' is a group, of 'uni', 'virchow'"):
        read_piece(path)


def test_a_file_without_features(tmp_path):
    path = tmp_path / "embeddings.h5"
    with h5py.File(path, "w") as file:
        for patch in range(30):
            file[str(patch)] = np.zeros(4, np.float32)
    with pytest.raises(ArchiveError, match=r"embeddings\.h5: no dataset 'features'; '/' has '0', '1', .*\.\.\."):
        read_piece(path)
    with pytest.raises(ArchiveError, match="no dataset '0/uni'; '/0' is a dataset"):
        read_piece(path, "0/uni")


def test_missing_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for name in ("none.h5", "pipe.h5", "."):
        with pytest.raises(ArchiveError, match="no such file, or not a regular one"):
            read_piece(tmp_path / name)


def test_a_file_that_is_being_written(tmp_path):
    path = write_trident(tmp_path / "slide.h5", make_features(3), make_coords(3))
    script = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(ArchiveError, match=r"slide\.h5: .*still being written: .*lock"):
            read_piece(path)
        writer.stdin.close()


def test_truncated_files(tmp_path):
    path = write_stamp(tmp_path / "slide.h5", make_features(100), make_coords(100))
    content = path.read_bytes()
    for length in (0, 7, 100, 1000, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ArchiveError, match=r"slide\.h5: HDF5 cannot read it"):
            read_piece(path)


def swap(path, old, new):
    """Replace 8-byte little-endian numbers that follow one another in the file."""
    content = path.read_bytes()
    old, new = (np.array(numbers, "<i8").tobytes() for numbers in (old, new))
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_contiguous_features_beyond_the_end(tmp_path):
    path = write_one(tmp_path / "slide.h5")
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
        os.truncate(path, offset + 239)
        with pytest.raises(ArchiveError, match=rf"truncated.*'/features' needs {offset + 240}.*{offset + 239} are"):
            hdf5_chunks.locate_rows(path, file["features"], file["features"].dtype)
    swap(path, [offset, 240], [1 << 40, 240])
    with pytest.raises(ArchiveError, match=r"slide\.h5: "):
        read_piece(path)


def chunk_offset(path, index):
    with h5py.File(path) as file:
        return file["features"].id.get_chunk_info(index).byte_offset


def test_a_chunk_at_an_impossible_offset(tmp_path):
    path = write_one(tmp_path / "slide.h5", chunks=(4, 6))
    swap(path, [chunk_offset(path, 1)], [-2])
    with pytest.raises(ArchiveError, match=r"slide\.h5: HDF5 cannot read it"):
        read_piece(path)


def test_a_chunk_beyond_the_end(tmp_path):
    path = write_one(tmp_path / "slide.h5", chunks=(4, 6))
    swap(path, [chunk_offset(path, 1)], [1 << 40])
    with pytest.raises(ArchiveError, match=r"slide\.h5: truncated or corrupt: '/features' needs 1099511627872 bytes"):
        read_piece(path)


@pytest.mark.parametrize(
    "changes",
    [{"offset": 8}, {"column": 6}, {"size": 88}, {"shape": 6}],
    ids=["overlap", "column", "size", "more chunks than rows"],
)
def test_a_chunk_table_that_lies(tmp_path, changes):
    path = write_one(tmp_path / "slide.h5", chunks=(4, 6))
    if "shape" in changes:
        swap(path, [10, 6, 10, 6], [changes["shape"], 6, 10, 6])
    else:  # an entry of the table: bytes, row, column, place within a value, offset
        offset = chunk_offset(path, 1)
        moved = chunk_offset(path, 0) + changes["offset"] if "offset" in changes else offset
        swap(path, [96, 4, 0, 0, offset], [changes.get("size", 96), 4, changes.get("column", 0), 0, moved])
    with pytest.raises(ArchiveError, match=r"slide\.h5: corrupt: chunks of '/features' overlap, or"):
        read_piece(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    ("written", "missing"), [((), 0), ((0, 1), 8), ((1, 2, 3, 4), 0), ((0, 1, 3, 4), 8), ((0, 1, 2, 3), 16)]
)
def test_chunks_that_were_never_written(tmp_path, libver, written, missing):
    path = tmp_path / "slide.h5"
    for maxshape in (None, (None, 6)):
        with h5py.File(path, "w", libver=libver) as file:
            dataset = file.create_dataset("features", (18, 6), "<f4", chunks=(4, 6), maxshape=maxshape)
            for chunk in written:
                dataset[chunk * 4 : chunk * 4 + 4] = 1
        with pytest.raises(ArchiveError, match=rf"slide\.h5: row {missing} of '/features' was never written"):
            read_piece(path)


def test_contiguous_features_that_were_never_written(tmp_path):
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (10, 6), "<f4")
    with pytest.raises(ArchiveError, match=r"row 0 of '/features' was never written"):
        read_piece(path)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_coords_that_were_never_written(tmp_path, compression):
    path = write_one(tmp_path / "slide.h5")
    with h5py.File(path, "r+") as file:
        coords = file.create_dataset("coords", (10, 2), int, chunks=(4, 2), compression=compression)
        coords[:4] = 1
    with pytest.raises(ArchiveError, match=r"row 4 of '/coords' was never|1 of 3 chunks of '/coords' written"):
        read_piece(path)


def test_a_file_that_shrinks_while_its_coords_are_read(tmp_path):
    path = tmp_path / "slide.h5"
    path.write_bytes(bytes(20))
    with pytest.raises(ArchiveError, match=r"slide\.h5: 4 bytes missing"):
        Place(np.array([[8, 2, 8]]), 2, "<i4").read(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "gzip"}, r"compressed or filtered \(deflate\)"),
        ({"chunks": (5, 6), "shuffle": True, "fletcher32": True}, r"compressed or filtered \(shuffle, fletcher32\)"),
        ({"chunks": (5, 3)}, r"cut into chunks of \(5, 3\), which split the 6 columns"),
        ({"dtype": np.float64}, "float64, neither float16 nor float32"),
        ({"dtype": ">f4"}, "big-endian float32, neither float16 nor float32"),
        ({"external": [("values.bin", 0, 240)]}, "lie in other files"),
    ],
)
def test_features_to_convert(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    path = write_one(tmp_path / "slide.h5", **options)
    with pytest.raises(NotInPlaceError, match=rf"slide\.h5: .*{message}; .*shazam_fast\.convert can read it"):
        read_piece(path)


def test_compact_features(tmp_path):
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3, 6)), layout)
    with pytest.raises(NotInPlaceError, match=r"stored inside the header \(compact\).*convert"):
        read_piece(path)


def test_bfloat16_that_h5py_calls_float32(tmp_path):
    path = tmp_path / "slide.h5"
    bfloat16 = h5py.h5t.IEEE_F32LE.copy()
    bfloat16.set_fields(15, 7, 8, 0, 7)
    bfloat16.set_size(2)
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((3, 6))
        h5py.h5d.create(file.id, b"features", bfloat16, space)
        file["features"][...] = make_features(3)
        assert file["features"].dtype == np.float32
    with pytest.raises(NotInPlaceError, match=r"stored in another form than float32.*convert"):
        read_piece(path)


def test_features_that_lie_in_other_files(tmp_path):
    other = write_one(tmp_path / "other.h5")
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w") as file:
        file["soft"] = h5py.SoftLink("/virtual")
        file["linked"] = h5py.ExternalLink(str(other), "features")
        layout = h5py.VirtualLayout((10, 6), "<f4")
        layout[:] = h5py.VirtualSource(str(other), "features", (10, 6))
        file.create_virtual_dataset("virtual", layout)
    with pytest.raises(NotInPlaceError, match=r"the values of 'virtual' lie in other files.*convert"):
        read_piece(path, "virtual")
    for name in ("soft", "linked"):
        with pytest.raises(NotInPlaceError, match=f"'{name}' is a link to elsewhere.*convert"):
            read_piece(path, name)


def test_chunks_behind_a_user_block_with_an_old_hdf5(tmp_path, monkeypatch):
    path = write_trident(tmp_path / "slide.h5", make_features(3), make_coords(3), userblock_size=512)
    monkeypatch.setattr(h5py.version, "hdf5_version_tuple", (1, 14, 3))
    with pytest.raises(ArchiveError, match="behind a user block"):
        read_piece(path)


@pytest.mark.parametrize("shape", [(), (6,), (2, 10, 6), (0, 10, 6), (10, 0), (1, 1, 10, 6)])
def test_shapes_that_are_not_one_row_a_patch(tmp_path, shape):
    path = write_one(tmp_path / "slide.h5", np.zeros(shape, np.float32))
    with pytest.raises(ArchiveError, match=r"'/features' has the shape \(.*\); one row per patch was expected"):
        read_piece(path)


def test_features_that_are_no_numbers(tmp_path):
    path = tmp_path / "slide.h5"
    for value, message in [
        (h5py.Empty("<f4"), "has the shape None"),
        (np.dtype("<f4"), "'features' is no dataset"),
        (np.array([["uni", "virchow"]], dtype=object), "features are float16 or float32"),
        (np.ones((2, 3), np.int8), "is int8; features are float16 or float32"),
    ]:
        with h5py.File(path, "w") as file:
            file["features"] = value
        with pytest.raises(ArchiveError, match=message):
            read_piece(path)


@pytest.mark.parametrize("rows", [0, 9, 11])
def test_coords_of_another_length(tmp_path, rows):
    path = write_one(tmp_path / "slide.h5", None, make_coords(rows))
    with pytest.raises(ArchiveError, match=rf"slide\.h5: 10 rows of features but {rows} of coords"):
        read_piece(path)


def test_coords_that_are_no_positions(tmp_path):
    for coords, message in [
        (make_coords(10, columns=1), "coords have 1 column;"),
        (np.array([["a", "b"]] * 10, dtype=object), "coords are object"),
        (np.zeros((10, 2), [("x", int)]), "coords are"),
    ]:
        with pytest.raises(ArchiveError, match=rf"slide\.h5: {message}"):
            read_piece(write_one(tmp_path / "slide.h5", None, coords))


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ShazamError, match=r"pip install 'shazam_fast\[hdf5\]'"):
        read_piece(tmp_path / "slide.h5")


# Damage


def write_specimens(folder):
    """(path, dataset) of a small file of every tool; TRIDENT's in both versions of the format's tables."""
    features, coords = make_features(40), make_coords(40)
    compressed = write_one(folder / "compressed.h5")
    with h5py.File(compressed, "r+") as file:
        file.create_dataset("coords", data=make_coords(10), chunks=(4, 2), compression="gzip")
    return [
        (write_trident(folder / "earliest.h5", features, coords, 16), "features"),
        (write_trident(folder / "latest.h5", features, coords, 16, libver="latest"), "features"),
        (write_clam(folder / "clam.h5", features, coords), "features"),
        (write_stamp(folder / "stamp.h5", features, coords), "feats"),
        (write_uni2(folder / "uni2.h5", features, coords, (1, 8, 6)), "features"),
        (write_atlaspatch(folder / "atlaspatch.h5", {"uni": 3}), "features/uni"),
        (compressed, "features"),
    ]


def structure_of(path, dataset):
    """Places of the bytes that are neither features nor zero: headers, names, chunk tables."""
    content = path.read_bytes()
    marked = np.frombuffer(content, np.uint8).copy()
    for offset, rows, stride in read_piece(path, dataset).runs:
        marked[offset : offset + rows * stride] = 0
    # HDF5 2.0 never returns from a list of free places in a group's names that runs in a circle: leave those alone
    heap = content.find(b"HEAP")
    while heap >= 0:
        free, names = np.frombuffer(content, "<i8", 2, heap + 16).tolist()
        for start, stop in ((heap + 8, heap + 32), (names + free, names + free + 16)):
            marked[max(0, start - 7) : stop] = 0  # an edit is up to 8 bytes long
        heap = content.find(b"HEAP", heap + 1)
    return np.flatnonzero(marked).tolist()


def damaged(content, places):
    """Strategy: the bytes of a file with a few numbers replaced, perhaps cut off or longer than it was."""
    numbers = st.sampled_from([0, 1, 2, 0x7F, 0xFF, 0xFFFF, 1 << 31, 1 << 40, 1 << 63, 2**64 - 1, len(content)])
    numbers |= st.integers(0, len(content))
    edit = st.tuples(st.sampled_from(places), numbers | st.integers(0, 255), st.sampled_from([1, 1, 2, 4, 8]))
    lengths = st.just(len(content)) | st.integers(0, len(content) + 4096)

    def apply(edits, length):
        changed = bytearray(content)
        for place, number, width in edits:
            changed[place : place + width] = (number % 256**width).to_bytes(width, "little")
        return bytes(changed[:length].ljust(length, b"\0"))

    return st.builds(apply, st.lists(edit, max_size=4), lengths)


def open_damaged_files(folder, examples):
    """Every damaged file raises ArchiveError, or gives a piece that raises StoreError or can be read."""
    specimens = write_specimens(folder)
    strategies = [damaged(path.read_bytes(), structure_of(path, dataset)) for path, dataset in specimens]
    path = folder / "damaged.h5"  # stays behind where the process dies
    outcomes = collections.Counter()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)
    @given(st.integers(0, len(specimens) - 1).flatmap(lambda i: st.tuples(st.just(specimens[i][1]), strategies[i])))
    def check(example):
        dataset, content = example
        path.write_bytes(content)
        signal.alarm(5)
        try:
            piece = read_piece(path, dataset)
            outcomes["opened"] += rows_of(path, piece).shape == (piece.n_rows, piece.columns)
        except (ArchiveError, StoreError):
            outcomes["refused"] += 1

    check()
    print(*outcomes.values())


def test_damaged_files_neither_crash_nor_hang(tmp_path):
    """In a process of its own: a crash in the HDF5 library, or an alarm, ends it with a signal."""
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from test_hdf5 import *\n"
        "open_damaged_files(Path(sys.argv[2]), EXAMPLES)"
    )
    run = processes.run(script, Path(__file__).parent, tmp_path)
    assert run.returncode == 0, f"{tmp_path / 'damaged.h5'}: ended with {run.returncode}: {run.stderr[-2000:]}"
    opened_and_refused = [int(count) for count in run.stdout.split()]
    assert sum(opened_and_refused) >= EXAMPLES
    assert min(opened_and_refused) > EXAMPLES // 20
