"""Errors tell their kind, across a pickle and from the core."""

import os
import pickle
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import shazam_fast as sf
from shazam_fast.errors import ArchiveErrorKind, NotInPlaceError


def _archive(path: Path) -> sf.FeatureArchive:
    return sf.open(sf.write_archive(path / "archive", {"a": np.ones((50, 8), dtype=np.float32)}))


@pytest.mark.parametrize("kind", get_args(ArchiveErrorKind))
def test_a_kind_survives_a_pickle(kind: ArchiveErrorKind) -> None:
    error = pickle.loads(pickle.dumps(sf.ArchiveError("a.h5: broken", kind)))
    assert (str(error), error.kind) == ("a.h5: broken", kind)


def test_without_a_kind_a_file_is_corrupt() -> None:
    assert sf.ArchiveError("a.h5: broken").kind == "corrupt"


def test_features_that_cannot_be_mapped_are_unsupported() -> None:
    error = pickle.loads(pickle.dumps(NotInPlaceError("a.h5: compressed")))
    assert isinstance(error, NotInPlaceError)
    assert error.kind == "unsupported"


@pytest.mark.parametrize(("kept", "kind"), [(None, "missing"), (0.5, "truncated")])
def test_a_file_that_is_gone_or_cut_is_missing_or_truncated(tmp_path: Path, kept: float | None, kind: str) -> None:
    archive = _archive(tmp_path)
    part = next(archive.path.glob("part-*"))
    if kept is None:
        part.unlink()
    else:
        os.truncate(part, int(kept * part.stat().st_size))
    with pytest.raises(sf.ArchiveError) as info:
        archive.gather([49])
    assert info.value.kind == kind


def test_other_bytes_of_equal_length_are_a_checksum_mismatch(tmp_path: Path) -> None:
    archive = _archive(tmp_path)
    part = next(archive.path.glob("part-*"))
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(sf.ArchiveError, match="checksum") as info:
        archive.verify()
    assert info.value.kind == "checksum"
