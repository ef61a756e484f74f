"""Students on disk: `student.safetensors` with the tensors, `student.json` with everything else. No pickle."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import ArchiveError, ShazamError
from .files import file_checksum, write_durably
from .student import Student
from .student_config import StudentConfig
from .teacher_registry import teachers

FORMAT = "shazam_fast student"
VERSION = 1
CARD = "student.json"
TENSORS = "student.safetensors"


def load(path: str | Path) -> Student:
    """Load a student saved by `Student.save`, on the CPU, in evaluation mode.

    Raises ArchiveError when a file is missing, truncated, corrupt, or does not belong to the other.
    """
    path = Path(path)
    card = _read_card(path / CARD)
    try:
        student = Student(StudentConfig(**card["config"]))
        checksum = str(card["xxh3"])
        student.training_record = dict(card["training"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{path / CARD}: corrupt: {error!r}") from None
    tensors, _ = read_tensors(path / TENSORS)
    if file_checksum(path / TENSORS) != checksum:
        raise ArchiveError(f"{path / TENSORS}: checksum mismatch: it does not belong to {CARD} beside it")
    if any(name.startswith("frozen_targets.") for name in tensors):
        student.freeze_targets()
    try:
        student.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArchiveError(f"{path / TENSORS}: tensors do not fit the configuration: {error}") from None
    return student.eval()


def save_student(student: Student, path: Path) -> None:
    """Write both files into the directory `path`, each complete or not at all; the card last."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / TENSORS, student.state_dict(), {})
        card = {
            "format": FORMAT,
            "version": VERSION,
            "config": asdict(student.config),
            "xxh3": file_checksum(path / TENSORS),
            "licences": _licences(student.config),
            "training": student.training_record,
        }
        write_durably(path / CARD, json.dumps(card, indent=1).encode())
    except OSError as error:
        raise ShazamError(f"{path}: the student could not be saved: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. Raises ArchiveError when it is missing or corrupt."""
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise ArchiveError(f"{path}: file not found") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArchiveError(f"{path}: truncated or corrupt: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, complete or not at all."""
    write_durably(path, save({name: t.contiguous().cpu() for name, t in tensors.items()}, metadata))


def _licences(config: StudentConfig) -> dict[str, dict[str, Any]]:
    """Licence of every teacher whose name is known, and whether it covers models trained on the teacher's outputs."""
    known = {spec.name: {"licence": spec.licence, "covers_derivatives": spec.covers_derivatives} for spec in teachers()}
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
