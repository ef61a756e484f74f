"""JSON documents that are read back: decoded into typed records, with limits on size, depth, length and digits.

A document that this release writes ends with a checksum of itself, so that damage is noticed even where it leaves valid
JSON.
"""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import xxhash

from ..errors import ArchiveError, ShazamError
from .files import read_whole

DOCUMENT_BYTES = 256 << 20  # largest document that is read; the manifest of a million slides takes a third of it
CHECKSUM_FIELD = "document_xxh3"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Text = Annotated[str, msgspec.Meta(max_length=1 << 20)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]  # what every JSON reader holds exactly
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]  # xxh3, 64 bit
Ratio = Annotated[float, msgspec.Meta(ge=0)]

Json = Any  # a free-form value: text, number, boolean, null, or lists and mappings of these
JSON_DEPTH = 16  # levels of lists and mappings in a free-form value

RecordType = TypeVar("RecordType", bound=msgspec.Struct)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records. Unknown fields are ignored in documents with a checksum: later versions may have more."""


class _Head(Record, frozen=True, kw_only=True):
    format: Text = ""
    version: int = 0


def read_document(
    path: Path,
    record: type[RecordType],
    *,
    format: str = "",
    version: int = 1,
    limit: int = DOCUMENT_BYTES,
    remedy: str = "",
) -> RecordType:
    """Read a JSON document, see `decode_document`.

    Args:
        path: the file.
        record, format, version: as for `decode_document`.
        limit: largest size in bytes.
        remedy: what to do when there is no such file, for the message.

    Returns the record. Raises ArchiveError as `decode_document` does, and of kind "missing", "permission" or "system".
    """
    try:
        content = read_whole(path, limit)
    except ArchiveError as error:
        if error.kind == "missing" and remedy:
            raise ArchiveError(f"{error}; {remedy}", "missing") from None
        raise
    return decode_document(content, record, path, format=format, version=version)


def decode_document(
    content: bytes, record: type[RecordType], path: Path, *, format: str = "", version: int = 1
) -> RecordType:
    """Decode a JSON document to a record.

    Args:
        content: the text, as `encode_document` makes it.
        record: what the document must hold, a subclass of `Record`.
        path: where the text came from, for messages.
        format: what its field "format" must be; "" for documents that have none.
        version: what its field "version" must be, if it has a format.

    Returns the record.

    Raises ArchiveError; kind "corrupt" (not JSON; a field that is absent, of another type, too long or too deep),
    "checksum", "foreign" (another format) or "unsupported" (another version).
    """
    body = _without_checksum(content, path)
    if format:
        head = _decode(body, _Head, path)
        if head.format != format:
            found = f"it holds {head.format!r}" if head.format else "it does not name its format"
            raise ArchiveError(f"{path}: {format!r} expected, but {found}", "foreign")
        if head.version != version:
            raise ArchiveError(
                f"{path}: format version {head.version}; this release reads version {version}: update shazam_fast",
                "unsupported",
            )
    if body is content:
        _require_known_fields(content, record, path)
    return _decode(body, record, path)


def _decode(body: bytes, record: type[RecordType], path: Path) -> RecordType:
    try:
        decoded = msgspec.json.decode(body, type=record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if (standard := _nan_as_null(body)) != body:
            return _decode(standard, record, path)
        raise ArchiveError(f"{path}: corrupt document: {error}", "corrupt") from None
    for field in msgspec.structs.fields(decoded):
        if field.type in (Json, dict[str, Json]) and _depth_exceeds(getattr(decoded, field.name), JSON_DEPTH):
            raise ArchiveError(f"{path}: corrupt document: {field.name!r} is nested too deeply", "corrupt")
    return decoded


def _depth_exceeds(value: Json, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_depth_exceeds(one, depth - 1) for one in inner)


def encode_document(record: Record) -> bytes:
    """The record as JSON text that ends with a checksum of itself; numbers that are not finite become null.

    Raises ShazamError when a text in it cannot be written as UTF-8 (a file name that is not valid text).
    """
    try:
        body = msgspec.json.format(msgspec.json.encode(record), indent=1).removesuffix(b"\n}")
    except UnicodeEncodeError as error:
        raise ShazamError(f"{error.object!r}: this name cannot be written as UTF-8; rename the file") from None
    return body + b',\n "%s": "%s"\n}' % (CHECKSUM_FIELD.encode(), xxhash.xxh3_64_hexdigest(body).encode())


_CHECKSUM = re.compile(rb',\n "%s": "([0-9a-f]{16})"\n}\s*\Z' % CHECKSUM_FIELD.encode())


def _without_checksum(content: bytes, path: Path) -> bytes:
    """The document without its checksum, which is compared; `content` itself if it has none."""
    found = _CHECKSUM.search(content, max(0, len(content) - 128))
    if found is None:
        if CHECKSUM_FIELD.encode() in content:
            raise _edited(path)
        return content
    body = content[: found.start()]
    if xxhash.xxh3_64_hexdigest(body).encode() != found[1]:
        raise _edited(path)
    return body + b"\n}"


def _require_known_fields(content: bytes, record: type[msgspec.Struct], path: Path) -> None:
    """Refuse unknown fields in a document without a checksum: one may be the checksum under a damaged name.

    Version 0.1 wrote no checksums, and those who edit a document remove it.
    """
    try:
        found = msgspec.json.decode(_nan_as_null(content), type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # decoding it will say why
    if unknown := found.keys() - {field.encode_name for field in msgspec.structs.fields(record)}:
        raise ArchiveError(
            f"{path}: corrupt document: unknown field {sorted(unknown)[0]!r:.60} and no checksum ({CHECKSUM_FIELD!r}), "
            "which this release writes; copy the file again",
            "checksum",
        )


def _edited(path: Path) -> ArchiveError:
    return ArchiveError(
        f"{path}: checksum mismatch: the document was damaged or edited; "
        f"if you edited it, remove its last field, {CHECKSUM_FIELD!r}, and the comma before it",
        "checksum",
    )


_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"|\bNaN\b|-?\bInfinity\b')


def _nan_as_null(content: bytes) -> bytes:
    """JSON without NaN and Infinity, which version 0.1 wrote as Python does, against the standard."""
    return _TOKENS.sub(lambda found: found[0] if found[0].startswith(b'"') else b"null", content)
