"""Part directories: results written part by part, so that the same command resumes after an interruption.

A directory is claimed by a document that says which job it is for (`_job.json`). A part is written to a temporary name;
its record, `part-NNNNN.json`, with the checksum of the part and the digest of the job, follows; then the part gets its
name. So a part without a record is another program's file, and a record without its part is an unfinished part.
The manifest is written last; then the records and the claim are removed.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import xxhash

from ...errors import ArchiveError, ShazamError
from ..documents import Count, Digest, Json, Record, encode_document, read_document
from ..files import (
    file_checksum,
    rename_durably,
    unfinished_path,
    write_durably,
    write_synced,
    writing,
)
from .foreign import CLAIM, PartFiles, require_same_job
from .locks import LOCK, DirectoryLock, make_directory

logger = logging.getLogger("shazam_fast")

Result = TypeVar("Result")

CLAIM_FORMAT = "shazam_fast job"


class Part(Record, frozen=True, kw_only=True):
    """A finished part: its file's name, rows, bytes, and xxh3 of the whole file."""

    file: Annotated[str, msgspec.Meta(pattern=r"^part-[0-9]{5,9}\.(safetensors|parquet)$")]
    rows: Count
    bytes: Count
    xxh3: Digest


class PartRecord(Record, frozen=True, kw_only=True):
    """The record of a finished part, kept until all are finished. `part` is None for a part without rows."""

    job: Digest
    part: Part | None
    notes: Json = None


class Claim(Record, frozen=True, kw_only=True):
    """Which job a directory is for."""

    format: str
    version: int
    job: dict[str, Json]


class PartDirectory:
    """A directory of parts `part-NNNNN<suffix>`, finished when it has its manifest.

    Args:
        path: the directory.
        job: the options and digests that must be equal for a job to be resumed, as JSON values with the names that
            messages use ("split": "test"). Hexadecimal values of 16 or more digits are digests; None means all.
        count: number of parts.
        suffix: of the parts' files, such as ".safetensors".
        manifest: name of the manifest's file.
        others: names of other files that belong to a finished directory.
    """

    def __init__(
        self,
        path: Path,
        job: Mapping[str, Json],
        *,
        count: int,
        suffix: str,
        manifest: str,
        others: Sequence[str] = (),
    ) -> None:
        self.path, self.count = path, count
        self.job: dict[str, Json] = msgspec.json.decode(msgspec.json.encode(job))  # as it is read back
        self._suffix, self._others = suffix, others
        self._manifest = path / manifest
        self.digest = xxhash.xxh3_64_hexdigest(json.dumps(self.job, sort_keys=True).encode())
        self._files = PartFiles(path, suffix, (CLAIM, manifest, *others))

    @property
    def interrupted(self) -> bool:
        """Whether a job was begun in the directory and is not finished."""
        return (self.path / CLAIM).exists()

    @property
    def finished(self) -> bool:
        """Whether the directory has its manifest."""
        return self._manifest.exists()

    def part_path(self, number: int) -> Path:
        """Path of a finished part."""
        return self.path / f"part-{number:05d}{self._suffix}"

    def complete(self, write: Callable[[], Result], *, alone: bool = True) -> Result | None:
        """Have the parts that are missing written, and the manifest, unless the directory is finished.

        The directory is locked and claimed meanwhile. If it fails before any part is finished, the claim is removed,
        so that another job can take the directory.

        Args:
            write: writes the parts that `missing` names, and the manifest.
            alone: False when other processes write parts of the same job, whose files must stay.

        Returns what `write` returns; None where the directory was finished, by another job perhaps.

        Raises ShazamError when another process holds the lock, and what `claim` and `write` raise.
        """
        if self.finished:
            return None
        with DirectoryLock(self.path):
            if self._manifest.exists():  # written by another process, just now
                return None
            self.claim()
            try:
                if alone:
                    self.remove_temporary()
                return write()
            except BaseException:
                if alone:
                    self.discard_if_empty()
                raise

    def claim(self) -> None:
        """Create the directory for this job, or check that it was created for this job.

        Raises MismatchError, saying what differs, when it holds another interrupted job; ShazamError when it holds
        other files, or cannot be written to.
        """
        make_directory(self.path)
        claim = self.path / CLAIM
        self._refuse_foreign_files(claimed=claim.exists())
        if claim.exists():
            found = read_document(claim, Claim, format=CLAIM_FORMAT)
            require_same_job(self.path, found.job, self.job)
            return
        with writing(self.path):
            write_durably(claim, encode_document(Claim(format=CLAIM_FORMAT, version=1, job=self.job)))

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of `numbers` whose parts must still be written; parts with a wrong checksum are among them.

        Logs how many are finished, if any are.
        """
        numbers = list(numbers)
        missing = [number for number in numbers if self._checked_record(number) is None]
        if len(missing) < len(numbers):
            logger.info("%s: continued after %d of %d parts", self.path, len(numbers) - len(missing), len(numbers))
        return missing

    def is_finished(self, number: int) -> bool:
        """Whether a part is finished, perhaps by another process. Its size is checked, its checksum is not."""
        return self.record(number) is not None

    def record(self, number: int) -> PartRecord | None:
        """The record of a part whose file has the size that the record states; None while the part is not finished."""
        try:
            record = read_document(self._record_path(number), PartRecord)
            size = 0 if record.part is None else (self.path / record.part.file).stat().st_size
        except (ArchiveError, OSError) as error:
            if not isinstance(error, OSError) and error.kind != "missing":
                logger.warning("%s; the part is written again", error)
            return None
        if record.part is not None and (record.part.file, record.part.bytes) != (self.part_path(number).name, size):
            return None
        return record if record.job == self.digest else None

    def write_part(self, number: int, content: bytes | memoryview, rows: int, notes: Json = None) -> None:
        """Write the file of a part and add it, see `add`. Raises ShazamError when the disk is full."""
        unfinished = unfinished_path(self.part_path(number))
        with writing(self.path):
            try:
                write_synced(unfinished, content)
                self.add(number, unfinished, rows, notes)
            finally:
                unfinished.unlink(missing_ok=True)  # nothing once the part has its name

    def add(self, number: int, unfinished: Path | None, rows: int, notes: Json = None) -> PartRecord:
        """Add a finished part.

        Args:
            number: of the part, from 0.
            unfinished: its complete, synced file under a temporary name; None for a part without rows.
            rows: number of its rows.
            notes: JSON values to keep with the record.

        Returns the record. Raises OSError when the disk is full.
        """
        part = None
        if unfinished is not None:
            size, checksum = unfinished.stat().st_size, file_checksum(unfinished)
            part = Part(file=self.part_path(number).name, rows=rows, bytes=size, xxh3=checksum)
        record = PartRecord(job=self.digest, part=part, notes=notes)
        write_durably(self._record_path(number), encode_document(record))
        if unfinished is not None:
            rename_durably(unfinished, self.part_path(number))
        return record

    def records(self) -> list[PartRecord]:
        """The records of all parts, in order. Raises ArchiveError when a part is missing or changed."""
        records = [self.record(number) for number in range(self.count)]
        for number, record in enumerate(records):
            if record is None:
                raise ArchiveError(
                    f"{self.part_path(number)}: was finished and is now missing or changed; run the same command again",
                    "changed",
                )
        return [record for record in records if record is not None]

    def publish(self, manifest: bytes) -> None:
        """Write the manifest, which finishes the directory, and remove what is no longer needed."""
        write_durably(self._manifest, manifest)
        self.tidy()

    def tidy(self) -> None:
        """Remove records, temporary files and, last, the claim from a finished directory."""
        for number in range(self.count):
            self._record_path(number).unlink(missing_ok=True)
        for file in self.path.glob("process-*.json"):
            file.unlink(missing_ok=True)
        self.remove_temporary()
        (self.path / CLAIM).unlink(missing_ok=True)

    def remove_temporary(self) -> None:
        """Remove temporary files of killed processes. Call it only while no other process writes."""
        for file in self._files.temporary():
            file.unlink(missing_ok=True)

    def remove_parts(self) -> None:
        """Remove parts that have a record, and temporary files. Call it only while no other process writes."""
        for number in self._files.recorded():
            self.part_path(number).unlink(missing_ok=True)
            self._record_path(number).unlink(missing_ok=True)
        self.remove_temporary()

    def tidy_after_kill(self) -> None:
        """`tidy` a finished directory whose writer was killed before it could."""
        if self.finished and (self.interrupted or (self.path / LOCK).exists()):
            with suppress(ShazamError), DirectoryLock(self.path):  # in use, or read-only
                self.tidy()

    def discard(self) -> None:
        """Remove everything that an unfinished job has written. Call it only while no other process writes."""
        if self.finished:
            return
        self.remove_parts()
        for name in (*self._others, CLAIM):
            (self.path / name).unlink(missing_ok=True)

    def discard_if_empty(self) -> None:
        """Remove the claim if no part is finished and no other process has begun one."""
        if not self._files.recorded() and not self._files.temporary():
            (self.path / CLAIM).unlink(missing_ok=True)

    def _checked_record(self, number: int) -> PartRecord | None:
        record = self.record(number)
        if record is None or record.part is None:
            return record
        found = file_checksum(self.part_path(number))
        if found == record.part.xxh3:
            return record
        logger.warning("%s: checksum mismatch; the part is written again", self.part_path(number))
        return None

    def _record_path(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.json"

    def _refuse_foreign_files(self, claimed: bool) -> None:
        """Raise ShazamError when a file is there that no job of this kind writes, or a part without its record."""
        if self.finished:
            raise ShazamError(
                f"{self.path}: {self._manifest.name} is there already; choose another --out, or delete it"
            )
        foreign = self._files.foreign(claimed)
        if foreign and (claimed or not (self.path / CLAIM).exists()):  # it may have been claimed just now
            raise ShazamError(
                f"{self.path}: the directory holds other files ({', '.join(foreign[:3])}); choose another --out"
            )
