"""Feature matrices in safetensors files, opened in place."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pieces import FUZZ, damaged, read_rows, refuses, survives
from safetensors.torch import load_file, save, save_file

from shazam_fast.formats.safetensors import read_piece, read_tensors

FEATURES = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2])
COORDS = torch.stack([torch.arange(7) * 256, torch.arange(7) % 3 * 256, torch.full((7,), 256)], dim=1)


def bits(tensor):
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors") / "slide.safetensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_are_those_of_safetensors(file, dtype):
    save_file({"features": FEATURES.to(dtype), "labels": LABELS, "coords": COORDS}, file)
    piece = read_piece(file)
    assert (piece.n_rows, piece.columns, f"torch.{piece.dtype}") == (7, 5, str(dtype))
    np.testing.assert_array_equal(read_rows(file, piece), bits(load_file(file)["features"]))
    np.testing.assert_array_equal(piece.labels, LABELS)
    np.testing.assert_array_equal(piece.coords, COORDS[:, :2])
    assert piece.labels.dtype == piece.coords.dtype == np.int64


def test_which_tensor_is_taken(file):
    mean, other = FEATURES[:, :2].contiguous(), FEATURES[:, :3].contiguous()
    for tensors, columns in [
        ({"feats": mean, "features": other, "x": FEATURES}, 3),
        ({"feats": mean, "x": FEATURES}, 2),
        (
            {
                "x": FEATURES,
                "coords": mean,
                "labels": LABELS,
                "mean": FEATURES[0].clone(),
                "pair": torch.zeros(2, 3, 4),
            },
            5,
        ),
    ]:
        save_file(tensors, file)
        assert read_piece(file).columns == columns
    assert read_piece(file, "coords").columns == 2


def test_a_leading_axis_of_one_is_dropped(file):
    save_file({"features": FEATURES[None], "coords": COORDS[None]}, file)
    piece = read_piece(file)
    np.testing.assert_array_equal(read_rows(file, piece), FEATURES)
    np.testing.assert_array_equal(piece.coords, COORDS[:, :2])


def test_every_matrix_of_a_file(file):
    save_file({"uni": FEATURES, "virchow": FEATURES[:, :3].half(), "label": LABELS.to(torch.uint8)}, file)
    pieces = read_tensors(file)
    assert {name: piece.columns for name, piece in pieces.items()} == {"uni": 5, "virchow": 3}
    for name, piece in pieces.items():
        np.testing.assert_array_equal(read_rows(file, piece), load_file(file)[name])
        np.testing.assert_array_equal(piece.labels, LABELS)


@pytest.mark.parametrize("empty", [torch.empty(0, 5), torch.empty(0, 5, dtype=torch.float64), torch.empty(0)])
def test_empty_slides(file, empty):
    save_file({"features": empty, "coords": torch.empty(0, 2, dtype=torch.int64)}, file)
    piece = read_piece(file)
    assert (piece.n_rows, piece.columns, piece.coords.shape) == (0, 5 * (empty.ndim - 1), (0, 2))


def test_what_is_no_class_of_a_row_is_no_label(file):
    for labels in (torch.rand(7), torch.rand(7, 3), torch.tensor(1), torch.tensor([1])):
        save_file({"features": FEATURES, "labels": labels}, file)
        assert read_piece(file).labels is None
    save_file({"features": FEATURES[:1], "label": torch.tensor(2)}, file)
    assert read_piece(file).labels.tolist() == [2]


# Bad input, one test an error.


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"uni": FEATURES, "virchow": FEATURES.clone()}, r"2 others.*'uni' float32 \[7, 5\], 'virchow'.*choose one"),
        ({str(i): FEATURES[i].clone() for i in range(7)}, "0 others could be features"),
        ({}, "it holds nothing"),
        ({"features": FEATURES.double()}, "'features' is float64; .*shazam_fast.convert"),
        ({"features": FEATURES[0]}, r"'features' has shape \[5\]; expected"),
        ({"features": torch.zeros(3, 0)}, "impossible shape"),
        ({"features": FEATURES, "labels": LABELS[:6]}, r"labels of shape \[6\] for 7 rows"),
        ({"features": FEATURES, "coords": COORDS[:6]}, r"coords are int64 \[6, 3\]; expected numbers \[7"),
        ({"features": FEATURES, "coords": COORDS[:, :1].clone()}, r"coords are int64 \[7, 1\]"),
        ({"features": FEATURES, "coords": COORDS.bool()}, "coords are bool"),
        ({"features": FEATURES, "coords": COORDS.bfloat16()}, "coords are bfloat16"),
    ],
)
def test_tensors_that_do_not_fit(file, tensors, message):
    save_file(tensors, file)
    refuses(read_piece, file, message)


def test_a_name_that_is_not_there(file):
    save_file({"uni": FEATURES}, file)
    refuses(lambda path: read_piece(path, "virchow"), file, r"no tensor 'virchow'; it holds 'uni' float32 \[7, 5\]")


def test_damaged_files(file):
    content = save({"features": FEATURES, "labels": LABELS})
    for damage, message in [
        (content[:-1], "truncated file"),
        (content + b"x", "overlong file"),
        (content[:20], "truncated or not a safetensors file"),
        (content.replace(b"[7,5]", b"[8,5]"), "needs 160 bytes"),
        (content.replace(b'"F32"', b'"F31"'), "unknown dtype"),
        (content.replace(b'"shape"', b'"shade"'), "corrupt header entry"),
    ]:
        file.write_bytes(damage)
        refuses(read_piece, file, message)


def test_a_width_that_no_file_could_have(file):
    header = json.dumps({"features": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    refuses(read_piece, file, "corrupt header entry of tensor")


CONTENT = save({"features": FEATURES, "labels": LABELS, "coords": COORDS})


@FUZZ
@given(damaged([CONTENT], [range(8 + int.from_bytes(CONTENT[:8], "little"))]))
def test_any_damage_is_survived(file, content):
    survives(file, content, read_piece)
    survives(file, content, read_tensors)


NUMBERS = st.one_of(st.integers(0, 48), st.sampled_from([-1, 2**31, 2**63, 2**64, 10**30, 1.5, None, "1", True]))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F16", "BF16", "F32", "I64", "F64", "F8"]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
    }
)


@FUZZ
@given(st.dictionaries(st.sampled_from(["features", "feats", "labels", "coords"]), ENTRIES), st.binary(max_size=96))
def test_any_entry_is_survived(file, entries, values):
    header = json.dumps(entries).encode()
    survives(file, len(header).to_bytes(8, "little") + header + values, read_piece)
