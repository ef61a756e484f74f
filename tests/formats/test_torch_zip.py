"""What tools write with torch.save, opened in place."""

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pieces import read_rows, refuses

from shazam_fast.formats.tensors import StoredTensor
from shazam_fast.formats.torch_zip import load_records, read_levels, read_piece

FEATURES = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2])
COORDS = torch.stack([torch.arange(7) * 256, torch.arange(7) % 3 * 256], dim=1).int()


def bits(tensor):
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def load(file):
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("torch") / "slide.pt"


# What the tools write.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_tensor(file, dtype, protocol):
    """CLAM's pt_files and slide2vec's tile_embeddings."""
    torch.save(FEATURES.to(dtype), file, pickle_protocol=protocol)
    piece = read_piece(file)
    assert (piece.n_rows, piece.columns, f"torch.{piece.dtype}") == (7, 5, str(dtype))
    assert piece.coords is piece.labels is None
    assert piece.runs[0, 0] % 64 == 0
    np.testing.assert_array_equal(read_rows(file, piece), bits(torch.load(file, weights_only=False)))


def test_features_and_labels(file):
    """Shazam's first version."""
    torch.save((FEATURES, LABELS), file)
    piece = read_piece(file)
    np.testing.assert_array_equal(read_rows(file, piece), FEATURES)
    np.testing.assert_array_equal(piece.labels, LABELS)
    assert piece.labels.dtype == np.int64


def test_three_levels_and_labels(file):
    """Shazam's tile task."""
    low, mid, high = FEATURES[:, :2].contiguous(), FEATURES[:, :3].half(), FEATURES
    torch.save((low, mid, high, LABELS), file)
    pieces = read_levels(file)
    assert list(pieces) == ["low", "mid", "high"]
    for tensor, piece in zip(load(file), pieces.values(), strict=False):
        np.testing.assert_array_equal(read_rows(file, piece), tensor)
        np.testing.assert_array_equal(piece.labels, LABELS)


@pytest.mark.parametrize("targets", [(), (torch.rand(7, 20),)])
def test_three_levels_without_classes(file, targets):
    """Shazam's slides, and its expression task, whose targets are numbers."""
    torch.save((FEATURES, FEATURES.half(), FEATURES.bfloat16(), *targets), file)
    pieces = read_levels(file)
    assert [piece.dtype for piece in pieces.values()] == ["float16" if i == 1 else d for i, d in enumerate(DTYPES)]
    assert all(piece.labels is None for piece in pieces.values())


DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_dictionary(file, label_dtype):
    """GPFM's patch features."""
    torch.save({"feature": FEATURES, "label": LABELS.to(label_dtype), "paths": [f"{i}.png" for i in range(300)]}, file)
    piece = read_piece(file)
    np.testing.assert_array_equal(read_rows(file, piece), FEATURES)
    np.testing.assert_array_equal(piece.labels, LABELS)


def test_coords_and_other_names(file):
    for name in ("features", "feature", "feats", "embeddings"):
        extra = {"coords": COORDS, "labels": LABELS == 1, "spacing": 0.5, "level": -1, "big": 2**40, "tissue": None}
        torch.save(collections.OrderedDict({"mean": FEATURES[0], name: FEATURES} | extra), file)
        piece = read_piece(file)
        np.testing.assert_array_equal(read_rows(file, piece), FEATURES)
        np.testing.assert_array_equal(piece.coords, COORDS)
        np.testing.assert_array_equal(piece.labels, LABELS == 1)


def test_a_leading_axis_of_one_is_dropped(file):
    torch.save({"features": FEATURES[None], "coords": COORDS[None]}, file)
    piece = read_piece(file)
    np.testing.assert_array_equal(read_rows(file, piece), FEATURES)
    np.testing.assert_array_equal(piece.coords, COORDS)


def test_the_tree_of_records(file):
    torch.save([FEATURES, {"a": (1, "zwölf", [True, None, 2.5]), 3: FEATURES}, ()], file)
    first, inner, last = load_records(file)
    assert isinstance(first, StoredTensor)
    assert (first.dtype, first.shape, first.stride) == ("float32", (7, 5), (5, 1))
    assert inner == {"a": (1, "zwölf", [True, None, 2.5]), 3: first}
    assert last == ()


def test_views_of_a_larger_tensor(file):
    wide = torch.randn(20, 12)
    column = wide[:, :1].contiguous()
    for view in (wide[3:9], wide[:, 2:7], wide[::3, 4:6], wide[5:6], wide[:, 3:4], wide[2:2], wide.T[:, :1], column.T):
        torch.save(view, file)
        np.testing.assert_array_equal(read_rows(file, read_piece(file)), load(file))


def test_tensors_that_share_a_storage(file):
    both = torch.randn(7, 8)
    table = torch.stack([LABELS, *COORDS.T.long()], dim=1)
    torch.save({"features": both[:, 3:], "mean": both[:, :3], "labels": table[:, 0], "coords": table[:, 1:]}, file)
    piece = read_piece(file)
    np.testing.assert_array_equal(read_rows(file, piece), both[:, 3:])
    np.testing.assert_array_equal(piece.labels, LABELS)
    np.testing.assert_array_equal(piece.coords, COORDS)


def test_a_parameter(file):
    torch.save(torch.nn.Parameter(FEATURES), file)
    np.testing.assert_array_equal(read_rows(file, read_piece(file)), FEATURES)


@pytest.mark.parametrize("empty", [torch.empty(0, 5), torch.empty(0, 5, dtype=torch.float64), torch.tensor([])])
def test_empty_slides(file, empty):
    torch.save({"features": empty, "coords": torch.empty(0, 2, dtype=torch.int64)}, file)
    piece = read_piece(file)
    assert (piece.n_rows, piece.columns, piece.coords.shape) == (0, 5 * (empty.ndim - 1), (0, 2))


def test_one_label_for_a_slide_is_no_label_of_its_rows(file):
    for label in (torch.tensor(1), torch.tensor([1]), 1, "tumour"):
        torch.save({"features": FEATURES, "label": label}, file)
        assert read_piece(file).labels is None
    torch.save({"features": FEATURES[:1], "label": torch.tensor(2)}, file)
    assert read_piece(file).labels.tolist() == [2]


# Bad input, one test an error.


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (FEATURES.double(), "the tensor is float64; .*shazam_fast.convert"),
        (LABELS, "the tensor is int64"),
        (FEATURES[0], r"shape \[5\]; expected \[rows, columns\]"),
        (torch.zeros(2, 3, 4), r"shape \[2, 3, 4\]"),
        (torch.zeros(3, 0), "impossible shape"),
        (FEATURES.T, r"strides \[1, 5\].*transposed or expanded.*shazam_fast.convert"),
        (FEATURES[:1].expand(7, 5), r"strides \[0, 1\]"),
        (FEATURES[:, :1].expand(7, 5), r"strides \[5, 0\]"),
        (FEATURES.flatten().unfold(0, 5, 1), r"strides \[1, 1\]"),
        (FEATURES[:, ::2], r"strides \[5, 2\]"),
        ([FEATURES[0]] * 4, "found a list of 4"),
        ((FEATURES, FEATURES), "found a tuple of 2"),
        ((FEATURES, FEATURES, FEATURES), "found a tuple of 3"),
        ({"x": FEATURES, 3: 4}, "found a dictionary of 'x', 3"),
        ({"features": [1.0]}, "found a dictionary of 'features'"),
        ({}, "found a dictionary of nothing"),
        ("features", "found a str"),
        ((FEATURES, LABELS[:6]), r"labels of shape \[6\] for 7 rows"),
        ((FEATURES, COORDS), r"labels of shape \[7, 2\] for 7 rows"),
        ({"features": FEATURES, "coords": COORDS[:6]}, r"coords are int32 \[6, 2\]; expected numbers \[7"),
        ({(1, 2): FEATURES}, "key of type tuple; refused"),
    ],
)
def test_objects_that_are_no_features(file, records, message):
    torch.save(records, file)
    refuses(read_piece, file, message)


def test_levels_that_are_none(file):
    for records, found in [(FEATURES, "a StoredTensor"), ((FEATURES,) * 5, "a tuple of 5"), ((FEATURES, 1, 2), "of 3")]:
        torch.save(records, file)
        refuses(read_levels, file, f"expected a tuple .low, mid, high.*; found .*{found}")


def test_pickled_numpy_arrays(file):
    """TRIDENT's .pt; torch refuses it with weights_only as well."""
    for records in (FEATURES.numpy(), {"features": FEATURES, "label": np.int64(3)}):
        torch.save(records, file)
        refuses(read_piece, file, r"pickled NumPy array.*numpy.save.*shazam_fast.convert")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (Path("slide.svs"), r"pickled pathlib.*; refused"),
        (torch.nn.Linear(2, 2), r"pickled torch.nn.modules.linear.Linear; refused.*torch.save\(features, path\)"),
        (torch.nn.Linear(2, 2).state_dict(), "as a model's state_dict is; refused"),
        (FEATURES.to_sparse(), "pickled torch._utils._rebuild_sparse_tensor; refused"),
        (FEATURES.to(torch.float8_e4m3fn), "pickled torch._utils._rebuild_tensor_v3; refused"),
        (FEATURES.to(torch.complex64), "pickled torch.ComplexFloatStorage; refused"),
        (torch._neg_view(FEATURES), "not as torch.save describes it"),
        ({"features": FEATURES, "tags": {"a"}}, "refused|is none that torch.save writes"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_pickled_objects(file, records, message, protocol):
    torch.save(records, file, pickle_protocol=protocol)
    refuses(read_piece, file, message)


def test_other_formats(file):
    torch.save(FEATURES, file, _use_new_zipfile_serialization=False)
    refuses(read_piece, file, r"old format of torch.save.*torch.save\(torch.load\(path, weights_only=True\), path\)")
    file.write_bytes(pickle.dumps([1.0]))
    refuses(read_piece, file, "a plain pickle; refused")
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refuses(read_piece, file, r"it starts with b'\\x89HDF")
    file.write_bytes(b"")
    refuses(read_piece, file, "not written by torch.save")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(file))
    refuses(read_piece, file, "TorchScript archive; refused")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("features.npy", b"")
    refuses(read_piece, file, "0 entries called data.pkl.*not written by torch.save")


def test_a_missing_file(tmp_path):
    refuses(read_piece, tmp_path / "nothing.pt", "file not found")


def test_labels_of_a_file_that_shrinks(file, monkeypatch):
    torch.save((FEATURES, LABELS), file)
    from shazam_fast.formats import tensors as strided
    from shazam_fast.formats import torch_zip

    def cut(path):
        with path.open("r+b") as stream:
            stream.truncate(1000)
        return open_regular(path)

    open_regular = strided.open_regular
    features, labels = load_records(file)
    monkeypatch.setattr(torch_zip, "load_records", lambda path: (features, labels))
    monkeypatch.setattr(strided, "open_regular", cut)
    refuses(read_piece, file, "the file shrank")
