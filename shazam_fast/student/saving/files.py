"""Students on disk: `student.safetensors` with the tensors, `student.json` with everything else. No pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec
from torch import Tensor

from ... import __version__
from ...errors import ArchiveError, ShazamError
from ...runtime.documents import Count, Digest, Json, Name, Record, Text, encode_document, read_document
from ...runtime.files import file_checksum, write_durably
from ...runtime.tensors import read_described, require_shapes, write_tensors
from ...teachers.licences import find_licence
from ..config import StudentConfig
from .model_card import write_model_card

FORMAT = "shazam_fast student"
VERSION = 1
CARD = "student.json"
TENSORS = "student.safetensors"
CARD_BYTES = 64 << 20  # largest student.json that is read
REMEDY = f"a student is a directory with {CARD} and {TENSORS}, as train(out=...) and Student.save write it"


class Shape(Record, frozen=True, kw_only=True):
    """A `StudentConfig` as it is stored."""

    teachers: dict[Name, Count]
    classes: list[Text]
    dim: Count
    depth: Count
    block: Text
    teacher_dropout: float


class Card(Record, frozen=True, kw_only=True):
    """`student.json`. Version 0.1 wrote neither `written_by` nor `tensors`."""

    format: Text
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    config: Shape
    xxh3: Digest  # of student.safetensors
    written_by: Text = ""
    tensors: dict[Name, list[Count]] | None = None  # shapes by name
    licences: dict[Name, dict[str, Json]] = msgspec.field(default_factory=dict)
    training: dict[str, Json] = msgspec.field(default_factory=dict)
    members: list[Shape] = msgspec.field(default_factory=list)  # of an ensemble


def read_card(path: Path) -> tuple[StudentConfig, Card]:
    """Configuration and card of the student in the directory `path`; the tensors are not read.

    Raises ArchiveError when there is no card, or it is damaged or of something else.
    """
    card = read_document(path / CARD, Card, format=FORMAT, version=VERSION, limit=CARD_BYTES, remedy=REMEDY)
    try:
        msgspec.convert(card.training.get("teachers", {}), dict[str, dict[str, str]])
        return StudentConfig(**msgspec.structs.asdict(card.config)), card
    except (ShazamError, msgspec.ValidationError) as error:
        raise ArchiveError(f"{path / CARD}: corrupt: {error}") from None


def read_weights(path: Path, card: Card, wanted: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Tensors of the student in the directory `path`.

    Args:
        path: the directory.
        card: its card.
        wanted: the shapes that the card's configuration needs, by name; more tensors than these may be there.

    Raises ArchiveError when the file is missing, truncated, corrupt, or does not belong to the card.
    """
    tensors = read_described(path / TENSORS, card.xxh3, CARD)
    for described in (wanted, card.tensors or {}):
        require_shapes(tensors, described, path / TENSORS, CARD)
    return tensors


def write_student(
    path: Path,
    config: StudentConfig,
    tensors: dict[str, Tensor],
    record: Mapping[str, Any],
    members: Sequence[StudentConfig] = (),
) -> None:
    """Write both files and a model card into the directory `path`, each complete or not at all; `student.json` last.

    Args:
        path: the directory.
        config: the student's shape.
        tensors: its tensors by name.
        record: how it was trained.
        members: shapes of an ensemble's members.

    Raises ShazamError when they cannot be written, or `record` holds what JSON cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / TENSORS, tensors, {})
        card = Card(
            format=FORMAT,
            version=VERSION,
            config=Shape(**asdict(config)),
            xxh3=file_checksum(path / TENSORS),
            written_by=f"shazam_fast {__version__}",
            tensors={name: list(tensor.shape) for name, tensor in tensors.items()},
            licences={name: find_licence(name)._asdict() for name in config.teachers},
            training=dict(record),
            members=[Shape(**asdict(member)) for member in members],
        )
        write_model_card(path, config, record, len(members))
        write_durably(path / CARD, encode_document(card))
    except OSError as error:
        raise ShazamError(f"{path}: the student could not be saved: {error}; choose another directory") from error
    except TypeError as error:
        raise ShazamError(f"{path}: training_record: plain values expected, as JSON has them: {error}") from None
