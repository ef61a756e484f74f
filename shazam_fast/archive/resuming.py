"""Writing an archive that may be interrupted: the same job, started again, continues after its finished parts.

Beside the parts lies a journal: the archive's manifest as far as it goes, with the job that it belongs to. It is
written durably after every part and becomes the manifest by one rename, so at any moment there is either a journal that
says which parts are finished, or a complete archive.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import NonFiniteError
from ..formats.geometry import Geometry
from ..formats.native import MANIFEST
from ..runtime.files import rename_durably, write_durably
from ..runtime.jobs import lock_directory, read_json, require_part, require_same_job
from .writer import ArchiveWriter, claim_directory, remove_leftovers

JOURNAL = "unfinished.json"


class ResumableWriter(ArchiveWriter):
    """An ArchiveWriter that continues an interrupted writing of the same job; `rows` says from which row on.

    Args:
        job: JSON values that tell this work from any other; a part that is there was written by the same job.
        notes: JSON values that are kept with every finished part, changed in place by the caller, and found again.

    An archive comes out identical byte for byte, however often it was interrupted, if the rows are appended in the same
    chunks; chunks of at most `rows_left` never cross from one part into the next.
    Left by an exception, finished parts stay, except after a NonFiniteError, which the same job would run into again.

    Raises MismatchError when another job was interrupted at `path`, or is finished there.
    """

    def __init__(
        self,
        path: str | Path,
        teachers: Mapping[str, int],
        *,
        job: Mapping[str, object],
        notes: dict[str, Any],
        classes: Sequence[str],
        dtype: str,
        part_bytes: int,
        geometry: Mapping[str, Geometry] | None = None,
    ) -> None:
        self._job, self._notes = dict(job), notes
        super().__init__(path, teachers, classes=classes, dtype=dtype, part_bytes=part_bytes, geometry=geometry)

    @property
    def rows_left(self) -> int:
        """Rows until the current part is full."""
        return self._part_rows - (self._part.n_rows if self._part else 0)

    def abort(self) -> None:
        """Remove everything written so far, finished parts too."""
        (self.path / JOURNAL).unlink(missing_ok=True)
        super().abort()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        except BaseException as failure:
            error = failure
            raise
        finally:
            if isinstance(error, NonFiniteError) or (error is not None and not self._parts):
                self.abort()
            elif self._part is not None:
                self._part.abort()
            os.close(self._lock)

    def _claim(self) -> None:
        self._record = {"job": self._job, "notes": self._notes}
        claim_directory(self.path, (JOURNAL,))
        self._lock = lock_directory(self.path)
        try:
            if (self.path / JOURNAL).exists():
                self._continue(read_json(self.path / JOURNAL))
            remove_leftovers(self.path, {str(part["file"]) for part in self._parts})
        except BaseException:
            os.close(self._lock)
            raise

    def _continue(self, journal: Mapping[str, Any]) -> None:
        require_same_job(self.path, journal, self._job)
        self._parts = journal["parts"]
        self.n_rows = journal["rows"]
        self._notes.update(journal["notes"])
        for kind in self._names:
            self._names[kind] = {name: code for code, name in enumerate(journal[f"{kind}s"])}
        for part in journal["parts"]:
            require_part(self.path / part["file"], part["bytes"], f"delete {self.path}, start anew")

    def _close_part(self) -> None:
        super()._close_part()
        write_durably(self.path / JOURNAL, self._manifest())

    def _publish(self) -> None:
        rename_durably(self.path / JOURNAL, self.path / MANIFEST)


def read_finished(path: Path, job: Mapping[str, object]) -> dict[str, Any] | None:
    """The manifest of the archive at `path` if this job has finished it before; None if there is no archive yet.

    Raises MismatchError when another job has written it, or none.
    """
    if not (path / MANIFEST).exists():
        return None
    manifest = read_json(path / MANIFEST)
    require_same_job(path, manifest, job)
    return manifest
