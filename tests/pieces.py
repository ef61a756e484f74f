"""Reading the pieces that layouts find, and damaging the files that they find them in."""

from contextlib import suppress

import numpy as np
import pytest
from fuzzing import EXAMPLES
from hypothesis import settings
from hypothesis import strategies as st

import shazam_fast as sf
from shazam_fast._core import FeatureStore, StoreError

STORED = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}
FUZZ = settings(max_examples=EXAMPLES, deadline=None, database=None)


def read_rows(path, piece):
    """The piece's values [rows, columns] as the archive would read them, bit for bit; bfloat16 as uint16."""
    table = np.insert(piece.runs, 0, 0, axis=1)
    store = FeatureStore(piece.columns, piece.dtype, [str(path)], table)
    out = np.empty((piece.n_rows, piece.columns), STORED[piece.dtype])
    store.read(0, piece.n_rows, out)
    return out


def refuses(read, path, message):
    """`read` raises ArchiveError, names the file, and says `message` (a regular expression)."""
    with pytest.raises(sf.ArchiveError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def survives(path, content, read):
    """Any content is refused by name, or gives pieces that can be read or are refused by the store."""
    path.write_bytes(content)
    message, found = str(path), {}
    try:
        found = read(path)
    except sf.ArchiveError as error:
        message = str(error)
    assert str(path) in message
    for piece in found.values() if isinstance(found, dict) else [found]:
        assert piece.labels is None or piece.labels.shape == (piece.n_rows,)
        assert piece.coords is None or piece.coords.shape == (piece.n_rows, 2)
        if piece.columns:
            with suppress(StoreError):
                read_rows(path, piece)


@st.composite
def damaged(draw, contents, parts):
    """One of `contents` with a few bytes changed in its part (the indices `parts` of it), or cut, or lengthened."""
    which = draw(st.integers(0, len(contents) - 1))
    content, part = bytearray(contents[which]), parts[which]
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.sampled_from(part))
        value = draw(
            st.sampled_from([b"\0", b"\1", b"\x7f", b"\xff", b"\xff" * 4, b"\xff" * 8, b"9", b"-", b"(", b"]"])
        )
        value = draw(st.one_of(st.just(value), st.binary(min_size=1, max_size=2)))
        content[place : place + len(value)] = value[: len(content) - place]
    match draw(st.sampled_from(["as it is", "as it is", "cut", "longer"])):
        case "cut":
            del content[draw(st.sampled_from(part)) :]
        case "longer":
            content += draw(st.binary(min_size=1, max_size=80))
    return bytes(content)
