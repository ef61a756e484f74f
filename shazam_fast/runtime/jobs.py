"""Part directories: an interrupted command is continued by the same command, by any number of processes.

A directory is claimed by a document that says which job it is for (`_job.json`). A part is written to a temporary name;
its record, `part-NNNNN.json`, with the checksum of the part and the digest of the job, follows; then the part gets its
name. So a part without a record is somebody else's file, and a record without its part is a part that is not finished.
The manifest is written last, then the records and the claim go.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
import xxhash

from ..errors import ArchiveError, MismatchError, ShazamError
from .documents import Count, Digest, Json, Record, encode_document, read_document
from .files import UNFINISHED, file_checksum, rename_durably, write_durably
from .locks import LOCK, DirectoryLock, make_directory

logger = logging.getLogger("shazam_fast")

CLAIM = "_job.json"
CLAIM_FORMAT = "shazam_fast job"


class Part(Record, frozen=True, kw_only=True):
    """A finished part: its file's name, rows, bytes, and xxh3 of the whole file."""

    file: Annotated[str, msgspec.Meta(pattern=r"^part-[0-9]{5,9}\.(safetensors|parquet)$")]
    rows: Count
    bytes: Count
    xxh3: Digest


class PartRecord(Record, frozen=True, kw_only=True):
    """What is kept of a part until all are finished. `part` is None where no row fell to it."""

    job: Digest
    part: Part | None
    notes: Json = None


class Claim(Record, frozen=True, kw_only=True):
    """Which job a directory is for."""

    format: str
    version: int
    job: dict[str, Json]


class PartDirectory:
    """A directory of parts `part-NNNNN<suffix>` that is finished when its manifest is there.

    Args:
        path: the directory.
        job: what makes two jobs the same, as JSON values by what they are of ("split": "test"); long hexadecimal
            values are digests, and None stands for all.
        count: number of parts.
        suffix: of the parts' files.
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
        own = "|".join(re.escape(name) for name in (CLAIM, manifest, *others))
        self._own = re.compile(
            rf"(part-[0-9]{{5,9}}(\.json|{re.escape(suffix)})|process-[0-9]+\.json|{own})(\.[^/]+{re.escape(UNFINISHED)})?"
        )

    @property
    def interrupted(self) -> bool:
        """Whether a job has begun there and has not ended."""
        return (self.path / CLAIM).exists()

    @property
    def finished(self) -> bool:
        """Whether the manifest is there."""
        return self._manifest.exists()

    def part_path(self, number: int) -> Path:
        """Where a part is when it is finished."""
        return self.path / f"part-{number:05d}{self._suffix}"

    def claim(self) -> None:
        """Create the directory for this job, or check that it is this job's.

        Raises MismatchError, saying what differs, when another job was interrupted there; ShazamError when other files
        are there, or nothing can be written.
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
        """Which of these parts are to be written; what is there is kept only if its checksum is right."""
        return [number for number in numbers if self._checked_record(number) is None]

    def is_finished(self, number: int) -> bool:
        """Whether a part is there, perhaps by another process; its checksum was checked or made by the writer."""
        return self.record(number) is not None

    def record(self, number: int) -> PartRecord | None:
        """The record of a part that is there with the bytes that its record states; None while it is not finished."""
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

    def add(self, number: int, unfinished: Path | None, rows: int, notes: Json = None) -> PartRecord:
        """Take a complete, synced file as a part, or note that no row falls to it (`unfinished` None)."""
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
        """The records of all parts, in order. Raises ArchiveError when one is gone."""
        records = [self.record(number) for number in range(self.count)]
        for number, record in enumerate(records):
            if record is None:
                raise ArchiveError(
                    f"{self.part_path(number)}: was finished and is now missing or changed; run the same command again",
                    "changed",
                )
        return [record for record in records if record is not None]

    def publish(self, manifest: bytes) -> None:
        """Write the manifest; the directory is finished then."""
        write_durably(self._manifest, manifest)
        self.tidy()

    def tidy(self) -> None:
        """Remove from a finished directory what its making left: records, temporary files, and last the claim."""
        for number in range(self.count):
            self._record_path(number).unlink(missing_ok=True)
        for file in self.path.glob("process-*.json"):
            file.unlink(missing_ok=True)
        self.remove_temporary()
        (self.path / CLAIM).unlink(missing_ok=True)

    def remove_temporary(self) -> None:
        """Remove files that killed processes of this job left half-written. Only where no other process writes."""
        for file in self._temporary():
            file.unlink(missing_ok=True)

    def remove_parts(self) -> None:
        """Remove the parts that have a record, and what is half-written. Only where no other process writes."""
        for number in self._recorded():
            self.part_path(number).unlink(missing_ok=True)
            self._record_path(number).unlink(missing_ok=True)
        self.remove_temporary()

    def tidy_after_kill(self) -> None:
        """`tidy` a finished directory whose writer was killed before it could."""
        if self.finished and (self.interrupted or (self.path / LOCK).exists()):
            with suppress(ShazamError), DirectoryLock(self.path):  # another process may be at it, or nobody may write
                self.tidy()

    def discard(self) -> None:
        """Remove all that this job has written unless it is finished. Only where no other process writes."""
        if self.finished:
            return
        self.remove_parts()
        for name in (*self._others, CLAIM):
            (self.path / name).unlink(missing_ok=True)

    def discard_if_empty(self) -> None:
        """Remove the claim if no part is finished and no other process has begun one."""
        if not self._recorded() and not self._temporary():
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

    def _recorded(self) -> list[int]:
        return [int(file.name[5:-5]) for file in self.path.glob("part-*.json") if self._own.fullmatch(file.name)]

    def _record_path(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.json"

    def _temporary(self) -> list[Path]:
        found = ((file, self._own.fullmatch(file.name)) for file in self.path.glob(f"*{UNFINISHED}"))
        return [file for file, match in found if match and match[3]]

    def _refuse_foreign_files(self, claimed: bool) -> None:
        """Raise ShazamError when a file is there that no job of this kind writes, or a part without its record."""
        if self.finished:
            raise ShazamError(
                f"{self.path}: {self._manifest.name} is there already; choose another --out, or delete the directory"
            )
        foreign = sorted(name for name in os.listdir(self.path) if not self._is_own(name, claimed))
        if foreign and (claimed or not (self.path / CLAIM).exists()):  # it may have been claimed just now
            raise ShazamError(
                f"{self.path}: the directory holds other files ({', '.join(foreign[:3])}); choose another --out"
            )

    def _is_own(self, name: str, claimed: bool) -> bool:
        own = self._own.fullmatch(name)
        if own is None or name == LOCK:
            return name == LOCK
        if own[3]:
            return claimed or name.startswith(CLAIM)
        return claimed and (own[2] is None or (self.path / f"{name.partition('.')[0]}.json").exists())


def require_same_job(path: Path, found: Mapping[str, Json] | None, job: Mapping[str, Json]) -> None:
    """Raise MismatchError saying in words what differs between the job that `path` was written by and this one."""
    if not found:
        raise MismatchError(f"{path}: was not written by this command; choose another --out, or delete it")
    different = [key for key in {**job, **found} if found.get(key) != job.get(key)]
    # what only one of them reads (the splits, where one split is chosen) follows from another difference
    different = [key for key in different if key in job and key in found] or different
    if different:
        words = ", ".join(_difference(key, found.get(key), job.get(key)) for key in different)
        raise MismatchError(f"{path}: was written with {words}; choose another --out, or delete it")


_DIGEST = re.compile(r"[0-9a-f]{16,}")
SHOWN = 80  # characters of a value in a message


def _difference(key: str, found: Json, wanted: Json) -> str:
    other = f"{'other' if key.endswith('s') else 'another'} {key}"
    if _DIGEST.fullmatch(str(wanted)) or _DIGEST.fullmatch(str(found)):
        return other
    shown = ["all" if value is None else repr(value) for value in (found, wanted)]
    there, now = (text if len(text) <= SHOWN else f"{text[:SHOWN]}..." for text in shown)
    return f"{other} ({there}, now {now})"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says while files are written into a ShazamError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ShazamError(
            f"{path}: could not be written: {error}. Finished parts are kept; run the same command again to continue"
        ) from error
