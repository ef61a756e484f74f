"""Students on disk: `student.safetensors` with the tensors, `student.json` with everything else. No pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ArchiveError, ShazamError
from ..runtime.files import file_checksum, write_durably
from ..runtime.tensors import read_tensors, write_tensors
from ..teachers.registry import list_teachers
from .config import StudentConfig

FORMAT = "shazam_fast student"
VERSION = 1
CARD = "student.json"
TENSORS = "student.safetensors"


def read_student(path: Path) -> tuple[StudentConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, tensors and training record of the student in the directory `path`.

    Raises ArchiveError when a file is missing, truncated, corrupt, or does not belong to the other.
    """
    card = _read_card(path / CARD)
    try:
        config = StudentConfig(**card["config"])
        checksum = str(card["xxh3"])
        record = dict(card["training"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{path / CARD}: corrupt: {error!r}") from None
    tensors, _ = read_tensors(path / TENSORS)
    if file_checksum(path / TENSORS) != checksum:
        raise ArchiveError(f"{path / TENSORS}: checksum mismatch: it does not belong to {CARD} beside it")
    return config, tensors, record


def write_student(path: Path, config: StudentConfig, tensors: dict[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write both files into the directory `path`, each complete or not at all; the card last."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / TENSORS, tensors, {})
        card = {
            "format": FORMAT,
            "version": VERSION,
            "config": asdict(config),
            "xxh3": file_checksum(path / TENSORS),
            "licences": _licences(config),
            "training": record,
        }
        write_durably(path / CARD, json.dumps(card, indent=1).encode())
    except OSError as error:
        raise ShazamError(f"{path}: the student could not be saved: {error}") from error


def _licences(config: StudentConfig) -> dict[str, dict[str, Any]]:
    """Licence of every teacher whose name is known, and whether it covers models trained on the teacher's outputs."""
    known = {
        spec.name: {"licence": spec.licence, "covers_derivatives": spec.covers_derivatives} for spec in list_teachers()
    }
    return {name: known[base] for name in config.teachers if (base := name.partition(":")[0]) in known}


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArchiveError(f"{path}: file not found; a student is a directory with {CARD} and {TENSORS}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArchiveError(f"{path}: corrupt: {error}") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ArchiveError(f"{path}: not a {FORMAT!r}")
    if card.get("version") != VERSION:
        raise ArchiveError(f"{path}: version {card.get('version')!r}; this release reads {VERSION}: update shazam_fast")
    return card
