"""NumPy's .npy files, opened in place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pieces import FUZZ, damaged, read_rows, refuses, survives

from shazam_fast.formats.npy import read_piece

FEATURES = np.random.default_rng(0).normal(size=(7, 5))
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 5), }"


def save(path, array, version=None):
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version)
    return path


def with_header(header, values=b"", version=1):
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + values


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("npy") / "slide.npy"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_rows_are_those_of_numpy(file, dtype, version):
    save(file, FEATURES.astype(dtype), version)
    piece = read_piece(file)
    assert (piece.n_rows, piece.columns, piece.dtype) == (7, 5, np.dtype(dtype).name)
    assert piece.coords is piece.labels is None
    np.testing.assert_array_equal(read_rows(file, piece), np.load(file))


def test_a_leading_axis_of_one_is_dropped(file):
    save(file, FEATURES[None].astype(np.float32))
    np.testing.assert_array_equal(read_rows(file, read_piece(file)), np.load(file)[0])


def test_one_column_and_one_row(file):
    for features in (FEATURES[:, :1], FEATURES[:1]):
        save(file, features.astype(np.float16))
        np.testing.assert_array_equal(read_rows(file, read_piece(file)), np.load(file))


@pytest.mark.parametrize(("array", "columns"), [(np.array([]), 0), (np.empty((0, 5), np.float16), 5)])
def test_empty_slides(file, array, columns):
    piece = read_piece(save(file, array))
    assert (piece.n_rows, piece.columns) == (0, columns)


def test_a_header_that_another_program_wrote(file):
    values = FEATURES.astype(np.float32)
    file.write_bytes(with_header('{"shape":(7,5),"fortran_order":False,"descr":"<f4"}', values.tobytes()))
    np.testing.assert_array_equal(np.load(file), values)
    np.testing.assert_array_equal(read_rows(file, read_piece(file)), values)


def test_one_column_is_in_both_orders(file):
    values = FEATURES[:, :1].astype(np.float32)
    file.write_bytes(with_header(HEADER.replace("False", "True").replace("5", "1"), values.tobytes()))
    np.testing.assert_array_equal(np.load(file), values)
    np.testing.assert_array_equal(read_rows(file, read_piece(file)), values)


# Bad input, one test an error.


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.asfortranarray(FEATURES.astype(np.float32)), "Fortran order.*shazam_fast.convert"),
        (FEATURES, "float64; features are float16.*shazam_fast.convert"),
        (FEATURES.astype(">f4"), "dtype '>f4', expected little-endian.*shazam_fast.convert"),
        (FEATURES.astype(np.int64), "the array is int64; features are float16"),
        (np.zeros(3, [("x", "<f4")]), r"dtype \[\('x', '<f4'\)\], expected"),
        (np.array([[None]]), "pickled Python objects; refused"),
        (np.float32(1), r"shape \[\]; expected \[rows, columns\]"),
        (np.zeros(4, np.float32), r"shape \[4\]; expected"),
        (np.zeros((2, 3, 4), np.float32), r"shape \[2, 3, 4\]; expected"),
        (np.zeros((3, 0), np.float32), "impossible shape"),
    ],
)
def test_arrays_that_are_no_features(file, array, message):
    refuses(read_piece, save(file, array), message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER[:-5], "corrupt .npy header"),
        (HEADER.replace("7", "-7"), "corrupt .npy header"),
        (HEADER.replace("7", "7.0"), "corrupt .npy header"),
        (HEADER.replace("7", "True"), "corrupt .npy header"),
        (HEADER.replace("7", str(2**63)), "corrupt .npy header"),
        (HEADER.replace("7", "1" * 5000), "corrupt .npy header"),
        (HEADER.replace("7, 5", "1, " * 65), "corrupt .npy header"),
        (HEADER.replace("(7, 5)", "__import__('os').getcwd()"), "corrupt .npy header"),
        (HEADER.replace("False", "0"), "corrupt .npy header"),
        (HEADER.replace("7", str(2**62)), f"truncated file: {2**62 * 20 + 10 + len(HEADER) + 18} bytes expected"),
        ("(" * 5000, "corrupt .npy header"),
        ("-" * 5000 + "1", "corrupt .npy header"),
        (" " * 10_001, "header of 10001 bytes"),
    ],
)
def test_headers_that_lie(file, header, message):
    file.write_bytes(with_header(header, bytes(7 * 5 * 4)))
    refuses(read_piece, file, message)


def test_truncated_and_overlong_files(file):
    content = save(file, FEATURES.astype(np.float32)).read_bytes()
    for damage, message in [
        (content[:-1], "truncated file: 268 bytes expected, 267 found"),
        (content + b"x", "overlong file: 268 bytes expected, 269 found"),
        (content[:100], "truncated: the header claims 118 bytes but the file has 100"),
        (content[:9], "truncated"),
        (b"", "not a .npy file"),
        (b"PK\3\4" + content[4:], "not a .npy file"),
        (content[:6] + b"\4" + content[7:], r"format version \[4, 0\]"),
        (content[:6] + b"\1\1" + content[8:], r"format version \[1, 1\]"),
    ]:
        file.write_bytes(damage)
        refuses(read_piece, file, message)


def test_a_missing_file(tmp_path):
    refuses(read_piece, tmp_path / "nothing.npy", "file not found")
    refuses(read_piece, tmp_path, "a regular file expected, found a directory")


VALUES = FEATURES.astype(np.float32).tobytes()


@FUZZ
@given(damaged([with_header(HEADER.ljust(115) + "\n", VALUES, version) for version in (1, 2, 3)], [range(126)] * 3))
def test_any_damage_is_survived(file, content):
    survives(file, content, read_piece)


SIZES = st.one_of(st.integers(0, 8), st.sampled_from([-1, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]))


@FUZZ
@given(st.sampled_from(["<f4", "<f2", ">f2", "<f8", "|O"]), st.booleans(), st.lists(SIZES, max_size=4), st.binary())
def test_any_shape_is_survived(file, descr, fortran, shape, values):
    header = repr({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)})
    survives(file, with_header(header, values), read_piece)
