"""The errors a user can cause.

Every message says what was expected, what was found, where (file, teacher, row) and what to do.
"""

from typing import Literal

ArchiveErrorKind = Literal[
    "missing", "truncated", "shrunk", "changed", "corrupt", "checksum", "unsupported", "foreign", "bounds", "dtype",
    "permission", "system",
]  # fmt: skip


class ShazamError(Exception):
    """Base of every error that a user of this package can cause."""


class ArchiveError(ShazamError):
    """A file is not what it claims to be.

    Args:
        message: what was expected, what was found, where, and what to do.
        kind: which fault it is; programs can tell faults apart by it without reading the message.
            "missing": no such file. "truncated": shorter than its header says. "shrunk": became shorter while in use.
            "changed": replaced or rewritten since it was opened. "corrupt": its content contradicts itself.
            "checksum": its bytes are not those that were written. "unsupported": sound, but of a version, dtype or
            storage that this release does not read. "foreign": sound, but something else than what was asked for
            (scores, a student, another job's file). "bounds": a row or an offset outside the file. "dtype": an
            unknown dtype. "permission": not readable for this user. "system": anything else the operating system
            refused.

    >>> error = ArchiveError("slides/a.h5: truncated: 4096 bytes expected, 100 found", kind="truncated")
    >>> error.kind
    'truncated'
    """

    def __init__(self, message: str, kind: ArchiveErrorKind = "corrupt") -> None:
        super().__init__(message)
        self.kind: ArchiveErrorKind = kind


class NotInPlaceError(ArchiveError):
    """Sound features that cannot be mapped as they lie in their file; `shazam_fast.convert` can read them.

    Its kind is "unsupported".
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, "unsupported")


class MismatchError(ShazamError):
    """Two things do not fit together: rows of two teachers, an archive and a student, a job and its output."""


class NonFiniteError(ShazamError):
    """A feature, a loss or a logit is NaN or infinite; the message names the teacher and the first row."""


class ImageError(ShazamError):
    """Images that are missing, listed twice, unreadable, or stored in a way that cannot be read without loss."""
