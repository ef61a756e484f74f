"""The errors a user can cause.

Every message says what was expected, what was found, where (file, teacher, row) and what to do.
"""


class ShazamError(Exception):
    """Base of every error that a user of this package can cause."""


class ArchiveError(ShazamError):
    """A file is not what it claims to be: missing, truncated, corrupt, or changed while in use."""


class NotInPlaceError(ArchiveError):
    """Sound features that cannot be mapped as they lie in their file; `shazam_fast.convert` can read them."""


class MismatchError(ShazamError):
    """Two things that must fit do not: rows of two teachers, an archive and a student, a job and its output."""


class NonFiniteError(ShazamError):
    """A feature, a loss or a logit is NaN or infinite; the message names the teacher and the first row."""


class ImageError(ShazamError):
    """Images that are missing, listed twice, unreadable, or stored in a way that cannot be read without loss."""
