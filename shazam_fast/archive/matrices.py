"""One teacher's matrix of features, assembled from its pieces slide after slide."""

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from .. import _core
from ..errors import ArchiveError, MismatchError
from ..formats.pieces import ITEM_BYTES, DTypeName, Extents, Piece, Source
from ..layouts.unmapped import Matrix as Rows
from ..layouts.unmapped import Unmapped
from ..runtime.summaries import counted

Loads = MutableMapping[tuple[str, str], Callable[[], Rows]]  # (teacher, file) -> opener of unmappable file


@dataclass
class Matrix:
    """Extents of one teacher.

    Args:
        teacher: its name.
        loads: gets an opener for each file that cannot be memory-mapped; None if such files are an error.

    Where `loads` is given, slides of several dtypes become float32, the widest; otherwise they are an error.
    """

    teacher: str
    loads: Loads | None
    _pieces: list[tuple[Source, Piece]] = field(default_factory=list)
    _like: tuple[str, Piece] | None = None

    def check(self, file: str, piece: Piece) -> None:
        """Raise MismatchError unless the piece can have been made by the encoder of those before."""
        if piece.n_rows == 0:
            return  # an empty slide; it may not even say how wide it would be
        if self._like is None:
            self._like = (file, piece)
        first, like = self._like
        if piece.columns != like.columns or (piece.encoder and like.encoder and piece.encoder != like.encoder):
            raise MismatchError(
                f"teacher {self.teacher!r}: {first} holds {counted(like.columns, 'column')}{_of(like)}, {file} "
                f"{piece.columns}{_of(piece)}; a teacher's slides must come from one encoder"
            )
        if piece.dtype != like.dtype and self.loads is None:
            raise MismatchError(
                f"teacher {self.teacher!r}: {first} holds {like.dtype}, {file} {piece.dtype}; "
                "shazam_fast.convert packs them into one archive"
            )

    def append(self, source: Source, piece: Piece) -> None:
        """Add the rows of a slide."""
        if piece.n_rows:
            self._pieces.append((source, piece))

    def extents(self) -> Extents:
        """The whole matrix. There is at least one row."""
        dtypes = {piece.dtype for _, piece in self._pieces}
        dtype: DTypeName = next(iter(dtypes)) if len(dtypes) == 1 else "float32"
        names: dict[str, int] = {}
        modified: dict[str, int] = {}
        of_run: list[int] = []  # file of every run
        runs = []
        for source, stored in self._pieces:
            name = source.path
            if not name.startswith("/") or "/.." in name:  # what others are, abspath finds out slowly
                name = os.path.abspath(name)
            piece = self._prepare(name, stored, dtype)
            if piece.files:
                of_run += [names.setdefault(os.path.abspath(file), len(names)) for file in piece.files]
            else:
                of_run += [names.setdefault(name, len(names))] * len(piece.runs)
                modified[name] = stored.modified
            runs.append(piece.runs)
        table = np.column_stack([np.array(of_run, dtype=np.int64), np.concatenate(runs)])
        times = np.array([modified.get(name, 0) for name in names], dtype=np.int64)
        return Extents(self._pieces[0][1].columns, dtype, tuple(names), table, times)

    def _prepare(self, name: str, piece: Piece, dtype: DTypeName) -> Piece:
        """The piece, with virtual offsets where its file cannot be memory-mapped as `dtype`."""
        if isinstance(piece, Unmapped):
            assert self.loads is not None, "sources are loaded only where that is asked for"
            self.loads[self.teacher, name] = piece.load
            if piece.dtype == dtype:
                return piece
            scale = ITEM_BYTES[dtype] // ITEM_BYTES[piece.dtype]
            return replace(piece, runs=piece.runs * np.array([scale, 1, scale]))
        if piece.dtype == dtype:
            return piece
        assert self.loads is not None
        assert not piece.files, "a native archive has one dtype"
        self.loads[self.teacher, name] = partial(_MappedRows, name, piece)
        runs = np.array([[0, piece.n_rows, piece.columns * ITEM_BYTES[dtype]]], dtype=np.int64)
        return replace(piece, runs=runs)


class _MappedRows:
    """Rows of a piece that is mapped, as float16 or float32, for matrices of several dtypes."""

    def __init__(self, file: str, piece: Piece) -> None:
        table = np.column_stack([np.zeros(len(piece.runs), dtype=np.int64), piece.runs])
        self._store = _core.FeatureStore(piece.columns, piece.dtype, (file,), table)
        self._columns = piece.columns

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self._store.rows)
        out = np.empty((stop - start, self._columns), dtype=np.float32)
        try:
            self._store.read(start, stop, out, 1)
        except _core.StoreError as error:
            raise ArchiveError(str(error)) from None
        return out


def _of(piece: Piece) -> str:
    return f" of {piece.encoder!r}" if piece.encoder else ""
