"""Several processes that write one archive: which parts each writes, and how the failure of one stops the others."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import errors
from ..errors import ArchiveError, ShazamError
from ..runtime.documents import Name, Record, Text, encode_document, read_document
from ..runtime.files import write_durably

POLL_SECONDS = 1.0  # between two looks at what others have done
GRACE_SECONDS = 10.0  # failures are read after this time, when every process has removed its old record


class Failure(Record, frozen=True, kw_only=True):
    """Why a process has stopped: the name of the error's class, and its message."""

    error: Name
    message: Text


@dataclass(frozen=True)
class Sharing:
    """This process among those that write to `path`: number `rank` of `world`, each with every world-th part."""

    path: Path
    rank: int = 0
    world: int = 1

    def parts(self, count: int) -> range:
        """The numbers of the parts that this process writes, of `count`."""
        return range(self.rank, count, self.world)

    def begin(self) -> None:
        """Forget a failure of this process in an earlier run."""
        self._record(self.rank).unlink(missing_ok=True)

    def fail(self, error: BaseException) -> None:
        """Record for the other processes, if there are any, that this one stops. Raises ShazamError if it cannot."""
        if self.world == 1 or not self.path.is_dir():
            return
        known = isinstance(error, ShazamError)
        message = str(error) if known else f"process {self.rank} of {self.world} stopped: {error!r}"
        failure = Failure(error=type(error).__name__ if known else "ShazamError", message=message)
        try:
            write_durably(self._record(self.rank), encode_document(failure))
        except OSError as full:
            raise ShazamError(f"{error}; and the other processes could not be told: {full}") from error

    def wait(self, done: Callable[[], bool]) -> None:
        """Return once `done()`. Raises the error that stopped another process."""
        started = time.monotonic()
        while not done():
            if time.monotonic() - started >= GRACE_SECONDS:
                self._raise_failure()
            time.sleep(POLL_SECONDS)

    def _raise_failure(self) -> None:
        for rank in range(self.world):
            try:
                failure = read_document(self._record(rank), Failure) if rank != self.rank else None
            except ArchiveError as error:
                if error.kind == "missing":
                    continue
                raise
            if failure is not None:
                kind = getattr(errors, failure.error, ShazamError)
                raise kind(failure.message)

    def _record(self, rank: int) -> Path:
        return self.path / f"process-{rank}.json"
