"""Students and ensembles from the directories where they were saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from ..runtime.checks import require_loaded, require_path
from ..runtime.jobs.foreign import require_kind
from ..runtime.tensors import fill_module
from .config import StudentConfig
from .ensemble import Ensemble
from .saving.files import CARD, TENSORS, Card, read_card, read_weights
from .student import Student


def load(path: str | Path) -> Student:
    """Load a student saved by `Student.save`, on the CPU, in evaluation mode, in the dtype it was saved in.

    Args:
        path: the directory with `student.json` and `student.safetensors`.

    Returns the student.

    Raises ArchiveError when a file is missing, truncated, corrupt, or does not belong to the other.

    >>> import tempfile, shazam_fast as sf
    >>> path = tempfile.mkdtemp()
    >>> sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumor"), dim=8, depth=1)).save(path)
    >>> sf.load(path).config.classes
    ('normal', 'tumor')
    """
    path = require_path("path", path)
    require_kind(path, "student")
    config, card = read_card(path)
    shapes = [StudentConfig(**msgspec.structs.asdict(shape)) for shape in card.members] or [config]
    with torch.device("meta"):  # shapes without memory: the files are checked before any is taken
        wanted = _assemble([Student(shape) for shape in shapes], card).state_dict()
    tensors = read_weights(path, card, {name: list(tensor.shape) for name, tensor in wanted.items()})
    prefixes = [f"members.{index}." for index in range(len(shapes))] if card.members else [""]
    student = _assemble([_empty(shape, tensors, prefix) for shape, prefix in zip(shapes, prefixes, strict=True)], card)
    student.training_record = card.training
    fill_module(student, tensors, path / TENSORS, CARD)
    return student.eval()


def load_student(student: Student | str | Path) -> Student:
    """The student itself, or the one saved in a directory.

    Args:
        student: a student, or the directory of one.

    Raises ArchiveError when a file is missing or damaged, ShazamError for anything else than a student or a path.
    """
    return require_loaded("student", student, Student, load)


def _assemble(students: Sequence[Student], card: Card) -> Student:
    """The one student of a card without members, else the ensemble, with the members' records."""
    if not card.members:
        return students[0]
    records = card.training.get("members", [])
    for student, record in zip(students, records if isinstance(records, list) else [], strict=False):
        student.training_record = record if isinstance(record, dict) else {}
    return Ensemble(students)


def _empty(config: StudentConfig, tensors: Mapping[str, Tensor], prefix: str) -> Student:
    """A student with a place for each of its tensors, which are named with the prefix."""
    student = Student(config).to(tensors[f"{prefix}qkv"].dtype)
    if any(name.startswith(f"{prefix}frozen_targets.") for name in tensors):
        student.freeze_targets()
    if any(name.startswith(f"{prefix}teacher_heads.") for name in tensors):
        student.add_teacher_heads()
    return student
