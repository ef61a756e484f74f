"""Rows of feature matrices, gathered from memory-mapped files, and the student's arithmetic on the CPU.

Bytes in, bytes out: the store knows files, extents and dtypes, and nothing of teachers or labels.
All classes may be used from several threads; whatever takes time runs without the GIL.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

DTypeName = Literal["float16", "bfloat16", "float32"]
Floats: TypeAlias = npt.NDArray[np.float32]
Present: TypeAlias = npt.NDArray[np.bool_] | None

class StoreError(Exception):
    """The one exception of the core. The message names the file, what was expected and what found.

    kind:
        "missing"      no such file
        "truncated"    a file is shorter than its extents need
        "shrunk"       a file was long enough when it was opened, and no longer is
        "changed"      a file was written, or replaced by another one, after it was first opened
        "unsupported"  a directory, a pipe or a device in place of a file
        "bounds"       a row, an extent, an array shape or a number outside what it refers to
        "dtype"        an unknown dtype, or an array whose dtype or memory layout does not fit
        "system"       anything else the operating system refused
    """

    kind: Literal["missing", "truncated", "shrunk", "changed", "unsupported", "bounds", "dtype", "system"]

class FeatureStore:
    """One logical matrix [rows, columns] of one dtype: extents of files, one after another.

    An output array is float32, or of the stored dtype with uint16 standing for the raw bits of
    bfloat16, which NumPy lacks. Widening to float32 is exact. It must be writable, with
    contiguous values in a row; the rows may be any distance apart, as in a column slice of a wider
    buffer. After an error its contents are unspecified.

    Every call checks each file that it touches after it has read: a file that has become too short
    raises "shrunk", one that was written since it was opened "changed". All stores of a process
    together keep at most a quarter of the file descriptors that it may have.
    """

    def __init__(
        self,
        columns: int,
        dtype: DTypeName,
        files: Sequence[str | bytes | PathLike[str]],
        extents: npt.NDArray[np.int64],
        max_open: int = 512,
        manifest: tuple[bytes, int, int] | None = None,
        modified: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Checks all that can be checked without opening a file, and opens none.

        extents: int64 [n, 4], the columns being the index into `files`, the offset of the first
            row in bytes, the number of rows, and the bytes from one row to the next, which may
            exceed those of a row. Extents may overlap, and may have no rows.
        max_open: the most files kept mapped, the least recently used being closed first. A call
            in progress on another thread may hold up to as many again.
        manifest: path, modification time in nanoseconds and inode of the document that lists the files; a file that
            is first opened after that document was written anew raises "changed".
        modified: int64 [files], when each file was last written, in nanoseconds, as of when its layout was read; 0:
            not known. A file that was written since raises "changed".
        """

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def dtype(self) -> DTypeName: ...
    @property
    def itemsize(self) -> int:
        """Bytes of one stored value."""

    def gather(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], threads: int = 1) -> None:
        """Copies row rows[i] to out[i].

        rows: int64 [n], each in [0, self.rows), in any order and with repetitions.
        out: [n, columns].
        threads: how many may work on it, 1 to 1024. Small requests use one in any case.
        """

    def gather_past_cache(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], threads: int = 1) -> bool:
        """Like `gather`; runs of 256 KiB and more that the page cache lacks are read past it.

        Returns False, with nothing copied, where all rows seem to be in the page cache; one in 16 or more is looked at.
        """

    def read_ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Reads these rows into the page cache unless they are there.

        Returns when all runs of 1 MiB and more are there; reading the others has started.
        """

    def read(self, start: int, stop: int, out: npt.NDArray[Any], threads: int = 1) -> None:
        """Copies the rows [start, stop) to `out` [stop - start, columns]."""

    def check_finite(self, start: int, stop: int) -> int:
        """The first row in [start, stop) that holds a NaN or an infinity, or -1."""

    def advise(self, pattern: Literal["random", "sequential"]) -> None:
        """Tells the system how the files will be read: those open now and those opened later."""

def file_states(files: Sequence[str | bytes | PathLike[str]]) -> npt.NDArray[np.int64]:
    """What tells files from those that were changed or replaced, looked at by several threads, int64 [n, 4].

    Columns: bytes, when the content and when the inode last changed in nanoseconds, inode; -1 where a file cannot be
    looked at, or a number is too large.
    """

def take_rows(features: npt.NDArray[Any], rows: npt.NDArray[np.int64], out: Floats) -> None:
    """Copies row rows[i] of features in memory to out[i], widened to float32.

    features: [R, columns], float32, float16 or uint16 (bfloat16), the values of a row contiguous.
    rows: int64 [n], each in [0, R), in any order and with repetitions.
    out: [n, columns].
    """

class Prefetcher:
    """Fills the caller's buffers with batches of rows, in order, on a thread of its own.

    A buffer belongs to the prefetcher until `next` returns its index, then to the caller until
    `release`. Used in a forked child, `next` raises "system".

        while (batch := prefetcher.next()) is not None:
            index, rows = batch
            consume(buffers[index][:rows])
            prefetcher.release(index)
    """

    def __init__(
        self,
        sources: Sequence[tuple[FeatureStore, int]],
        rows: npt.NDArray[np.int64],
        bounds: npt.NDArray[np.int64],
        buffers: Sequence[npt.NDArray[Any]],
        threads: int = 1,
        past_cache: bool = False,
    ) -> None:
        """Starts at once.

        sources: the stores, each with the first column of the buffers that is its own. All are
            asked for the same rows.
        rows: int64 [n], the rows of all batches. Copied.
        bounds: int64 [batches + 1], rising. Batch k is rows[bounds[k]:bounds[k + 1]]. Copied.
        buffers: at least one array [>= the largest batch, >= all columns], as `out` of `gather`.
            They are kept alive.
        threads: as in `gather`.
        past_cache: whether to read as `gather_past_cache` does.
        """

    def next(self) -> tuple[int, int] | None:
        """Waits for the next batch: the index of its buffer and its number of rows.

        None after the last batch, and after `close`. An error while a batch was filled is raised
        in its place, and on every call after. Raises "bounds" when the caller holds every buffer.
        """

    def release(self, buffer: int) -> None:
        """Gives a buffer back. Raises "bounds" unless `next` handed it out."""

    def close(self) -> None:
        """Stops the thread, which finishes the batch it is at. May be called again."""

# The student's arithmetic. Arrays are float32 and contiguous, `present` bool [B, N] or None when every
# patch has all teachers. Results go into the caller's arrays; they do not depend on `threads`, of which
# small requests use one in any case. Every misuse is a StoreError, "bounds" or "dtype".

MAX_TEACHERS: int
AMD_AVX512: bool
"""This is a processor of AMD's with AVX-512, which Intel's MKL does not use there."""

def attention_forward(
    qkv: Floats,
    present: Present,
    attention: Floats,
    out: Floats,
    threads: int = 1,
    keys: Floats | None = None,
) -> None:
    """P = softmax(Q K^T / sqrt(D)) over the present teachers, and P V.

    qkv: [B * N, 3 * D], query, key and value side by side; with `keys`, query and value [B * N, 2 * D].
    keys: [B, N, D], the keys where they lie by themselves.
    attention: P [B, N, N]; patches may be any distance apart, as in a slice over layers.
    out: P V [B, N, D], or [B, D] for its mean over the present teachers.
    """

def attention_backward(
    qkv: Floats,
    present: Present,
    attention: Floats,
    d_out: Floats,
    d_qkv: Floats,
    threads: int = 1,
    keys: Floats | None = None,
    d_keys: Floats | None = None,
) -> None:
    """Writes d_qkv, and d_keys of keys by themselves, given what `attention_forward` wrote and the gradient of `out`.

    d_qkv and d_keys have the shapes of qkv and keys.
    """

def distillation(
    fused: Floats,
    targets: Floats,
    present: Present,
    lam: float,
    delta: float,
    elementwise: bool,
    total: Floats,
    cosine: Floats,
    huber: Floats,
    d_fused: Floats | None,
    d_targets: Floats | None,
    threads: int = 1,
) -> None:
    """The distillation losses of fused [B, D] and targets [B, N, D], and the gradients of their total.

    elementwise: whether the Huber loss is of every element or of the distance of two rows.
    total: [], lam times the sum of `cosine` [N] and `huber` [N], which are means over the batch.
    d_fused, d_targets: of `total`; None where not wanted. No d_targets without d_fused.
    """

def folded_scores(
    left: Floats,
    tokens: Floats,
    present: Present,
    pooled: Floats,
    shares: Floats,
    threads: int = 1,
) -> None:
    """Shares w [B, N] and pooled w T [B, D] of the folded student.

    left: [B, N * K, D], the tokens times the score maps of all K layers side by side.
    tokens: T [B, N, D], finite also where a teacher is absent.
    """

def bare_stack_space(tokens: Floats, qkv: Floats, kept: bool) -> int:
    """Values of `space` for the two functions below; `kept`: if the second one follows the first one."""

def bare_stack_forward(
    tokens: Floats,
    qkv: Floats,
    present: Present,
    fused: Floats,
    attention: Floats,
    space: Floats,
    kept: bool,
    threads: int = 1,
) -> None:
    """K bare layers and the mean: fused [B, D] and attention [B, K, N, N] of tokens [B, N, D] and maps qkv [K, D, 3D].

    tokens: finite also where a teacher is absent.
    space, kept: see `bare_stack_space`.

    The same bits for any number of threads.
    """

def bare_stack_backward(
    tokens: Floats,
    qkv: Floats,
    present: Present,
    attention: Floats,
    d_fused: Floats,
    space: Floats,
    d_tokens: Floats | None,
    d_qkv: Floats | None,
    threads: int = 1,
) -> None:
    """The gradients d_tokens and d_qkv, each if wanted, from d_fused [B, D].

    space: as the forward pass left it; it is overwritten.

    The same bits for any number of threads.
    """

def project(
    features: npt.NDArray[Any],
    rows: npt.NDArray[np.int64] | None,
    dims: Sequence[int],
    mean: Floats,
    scale: Floats,
    present: Present,
    weight: Floats,
    bias: Floats,
    columns: Floats | None,
    tokens: Floats,
    threads: int = 1,
) -> None:
    """Chosen rows of a table, standardised, each teacher's columns through its own map.

    features: [R, sum of dims], float32, float16 or uint16 (bfloat16), the values of a row contiguous.
    rows: int64 [B], or None: all rows in order.
    mean, scale: [sum of dims]; features are divided by `scale`.
    present: [B, N], or None; the columns of a missing teacher count 0.
    weight, bias: [sum of dims, D] and [N, D].
    columns: gets what is multiplied, [B, sum of dims]; None: not wanted.
    tokens: gets the result, [B, N, D].

    The same bits for any number of threads.
    """

def project_gradient(
    columns: Floats, dims: Sequence[int], d_tokens: Floats, d_weight: Floats, threads: int = 1
) -> None:
    """The gradient d_weight [sum of dims, D] of `project` from d_tokens [B, N, D] and the columns that it multiplied.

    The same bits for any number of threads.
    """

def product(left: Floats, right: Floats, bias: Floats | None, out: Floats, threads: int = 1) -> None:
    """out = left right + bias, [rows, depth] and [depth, columns].

    left, right: the values of rows or of columns are contiguous, of one of the two those of rows.
    bias: [columns], contiguous, or None.
    out: [rows, columns], the values of a row contiguous. It overlaps none of the others.

    The same bits for any number of threads.
    """

def stacked_product(
    left: Floats,
    right: Floats,
    bias: Floats | None,
    out: Floats,
    left_transposed: bool = False,
    right_transposed: bool = False,
    threads: int = 1,
) -> None:
    """out = left right + bias of S pairs of matrices, [S, rows, depth] and [S, depth, columns].

    left, right: of one of them, if it is said to be transposed, the transposes. Values of a row are contiguous; rows
        and matrices may be any distance apart, and may repeat (distance 0).
    bias: [S, columns], contiguous, or None.
    out: [S, rows, columns], laid out as `left` but without repeating. It overlaps none of the others.
    """

class FoldedStudent:
    """The whole folded student on tiles of patches, one thread per tile.

    What lies between two products stays in that thread's caches, and features are widened on their way into the first.
    A patch's results do not depend on the tile it is in. `forward` may be called from several threads.
    """

    def __init__(
        self,
        dims: Sequence[int],
        weight: Floats,
        bias: Floats,
        score_maps: Floats,
        head_weight_1: Floats,
        head_bias_1: Floats,
        head_weight_2: Floats,
        head_bias_2: Floats,
        shift: Floats | None = None,
        vote_weight: Floats | None = None,
        vote_bias: Floats | None = None,
    ) -> None:
        """The tensors of `shazam_fast.FoldedStudent` by their names there. Copied.

        dims: the columns of each teacher.
        shift: [sum of dims], subtracted from the features, as float32, before the first product. A mean that is large
            for its spread costs no digits that way.
        vote_weight, vote_bias: of its `votes`, [N, D, C] and [N, C]; None without them.
        """

    def forward(
        self,
        features: npt.NDArray[Any],
        starts: Sequence[int],
        logits: Floats,
        shares: Floats,
        pooled: Floats,
        withheld: Floats | None = None,
    ) -> None:
        """Writes logits [B, C], teacher shares [B, N] and pooled w T [B, D].

        And to `withheld` [N, B, C] the logits without each teacher in turn, which needs two teachers that are there;
        for one that is absent they are the logits.

        features: [B, any], float32, float16 or uint16 (bfloat16).
        starts: the first column of every teacher's features, or -1 for one that is absent from all patches.
        """
