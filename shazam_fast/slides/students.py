"""The student of a slide: one model per fold of a cross-validation, whose predictions are averaged; and its files.

On disk it is a directory: `student.json`, and one file of tensors per member, `part-NNNNN.safetensors`. No pickle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import nn

from .. import __version__
from ..errors import ArchiveError, MismatchError, ShazamError
from ..runtime.checks import require_loaded, require_path
from ..runtime.documents import Count, Json, Name, Record, Text, encode_document, read_document
from ..runtime.files import file_checksum, write_durably
from ..runtime.jobs.foreign import require_kind
from ..runtime.jobs.part_directory import Part
from ..runtime.summaries import name_some
from ..runtime.tensors import fill_module, read_described, require_shapes, write_tensors
from ..teachers.licences import find_licence
from .bags import Bags
from .losses import count_outputs
from .models.abmil import ABMIL
from .models.fusecpath import FuseCPath
from .models.fusion import ShazamABMIL
from .models.pooling import MaxPooling, MeanPooling, SlideModel
from .models.slide_linear import SlideLinear
from .models.torchmil_model import TorchmilModel
from .options import TORCHMIL, SlideConfig

FORMAT = "shazam_fast slide student"
CARD = "student.json"
POOLINGS = {"mean": MeanPooling, "max": MaxPooling}
REMEDY = f"a slide's student is a directory with {CARD}, as sf.slides.train(out=...) writes it"


def build_model(config: SlideConfig) -> SlideModel:
    """A model with random parameters, drawn from PyTorch's global generator.

    >>> type(build_model(SlideConfig({"uni": 8}, "survival_cox", (), model="max", dim=4))).__name__
    'MaxPooling'
    """
    dims, outputs = list(config.teachers.values()), count_outputs(config)
    if config.model == "slide_linear":
        return SlideLinear(list(config.slide_teachers.values()), outputs, config.dropout)
    if config.model.startswith(TORCHMIL):
        two_classes = config.task == "classification" and outputs == 2
        return TorchmilModel(config.model.removeprefix(TORCHMIL), dims, config.dim, outputs, two_classes)
    shape = (dims, config.dim, outputs, config.dropout)
    if config.model in POOLINGS:
        return POOLINGS[config.model](*shape)
    if config.model == "fusecpath":
        return FuseCPath(*shape, depth=config.depth, top_k=config.top_k)
    if config.model == "shazam_abmil":
        return ShazamABMIL(*shape, depth=config.depth)
    return ABMIL(*shape, gated=config.model == "gated_abmil")


class SlideStudent(nn.Module):
    """Models of the same shape, one per fold, whose probabilities (or risks), attention and shares are averaged.

    Args:
        config: their shape.
        members: the models.

    Attributes:
        training_record: how it was trained, plain values that are saved as JSON.

    >>> import tempfile
    >>> config = SlideConfig({"uni": 8}, "classification", ("luad", "lusc"), dim=4)
    >>> SlideStudent(config, [build_model(config)]).save(path := tempfile.mkdtemp())
    >>> load(path).config.classes
    ('luad', 'lusc')
    """

    def __init__(self, config: SlideConfig, members: Sequence[SlideModel]) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(members)
        self.training_record: dict[str, Any] = {}

    @property
    def models(self) -> list[SlideModel]:
        """The members."""
        return [member for member in self.members if isinstance(member, SlideModel)]

    def save(self, path: str | Path) -> None:
        """Write `student.json` and one file of tensors per member into the directory `path`; the card last.

        Args:
            path: the directory.

        Raises ShazamError when they cannot be written.
        """
        folder = require_path("path", path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            parts = []
            for number, member in enumerate(self.members):
                file = folder / f"part-{number:05d}.safetensors"
                write_tensors(file, member.state_dict(), {})
                parts.append(Part(file=file.name, rows=0, bytes=file.stat().st_size, xxh3=file_checksum(file)))
            write_durably(folder / CARD, encode_card(self.config, parts, self.training_record))
        except OSError as error:
            raise ShazamError(f"{folder}: the student could not be saved: {error}; choose another directory") from error


class Shape(Record, frozen=True, kw_only=True):
    """A `SlideConfig` as it is stored."""

    teachers: dict[Name, Count]
    task: Text
    classes: list[Text]
    model: Text
    dim: Count
    depth: Count
    dropout: float
    top_k: Count = SlideConfig.top_k
    slide_teachers: dict[Name, Count] = msgspec.field(default_factory=dict)
    targets: dict[Name, list[Text]] = msgspec.field(default_factory=dict)


class Card(Record, frozen=True, kw_only=True):
    """`student.json` of a slide's student."""

    format: Text
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    config: Shape
    parts: list[Part]
    written_by: Text
    licences: dict[Name, dict[str, Json]] = msgspec.field(default_factory=dict)
    training: dict[str, Json] = msgspec.field(default_factory=dict)


def encode_card(config: SlideConfig, parts: Sequence[Part], record: Mapping[str, Any]) -> bytes:
    """`student.json` of a student whose members are in `parts`."""
    shape = {**asdict(config), "classes": list(config.classes)}
    card = Card(
        format=FORMAT,
        version=1,
        config=Shape(**shape),
        parts=list(parts),
        written_by=f"shazam_fast {__version__}",
        licences={name: find_licence(name)._asdict() for name in config.teachers},
        training=dict(record),
    )
    return encode_document(card)


def read_card(path: Path) -> tuple[SlideConfig, Card]:
    """Configuration and card of the slide's student in the directory `path`.

    Raises ArchiveError when there is no card, or it is damaged or of something else.
    """
    card = read_document(path / CARD, Card, format=FORMAT, remedy=REMEDY)
    try:
        return SlideConfig(**msgspec.structs.asdict(card.config)), card
    except ShazamError as error:
        raise ArchiveError(f"{path / CARD}: corrupt: {error}") from None


def load(path: str | Path) -> SlideStudent:
    """Load a slide's student, on the CPU, in evaluation mode.

    Args:
        path: the directory that `sf.slides.train(out=...)` or `SlideStudent.save` wrote.

    Returns the student.

    Raises ArchiveError when a file is missing, truncated, corrupt, or does not belong to the others.
    """
    folder = require_path("path", path)
    require_kind(folder, "slide student")
    config, card = read_card(folder)
    if not card.parts:
        raise ArchiveError(f"{folder / CARD}: corrupt: it names no part")
    student = SlideStudent(config, [read_member(folder, config, part) for part in card.parts])
    student.training_record = card.training
    return student.eval()


def read_member(folder: Path, config: SlideConfig, part: Part) -> SlideModel:
    """One member, from the file that `part` describes. Raises ArchiveError when it is missing, damaged or another."""
    file = folder / part.file
    tensors = read_described(file, part.xxh3, CARD)
    with torch.device("meta"):  # shapes without memory: they are checked before any is taken
        wanted = {name: list(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    require_shapes(tensors, wanted, file, CARD)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        model = build_model(config)
    fill_module(model, tensors, file, CARD)
    return model.eval()


def load_student(student: SlideStudent | str | Path) -> SlideStudent:
    """The student itself, or the one saved in a directory.

    Raises ArchiveError when a file is missing or damaged, ShazamError for anything else than a student or a path.
    """
    return require_loaded("student", student, SlideStudent, load)


def require_teachers(student: SlideStudent, teachers: Mapping[str, int], where: Path) -> None:
    """Raise MismatchError unless an archive has the student's teachers, in its order."""
    wanted = dict(student.config.teachers)
    if list(wanted.items()) == list(teachers.items()):
        return
    if other := [name for name, dim in wanted.items() if teachers.get(name) != dim]:
        remedy = f"{name_some(other)} missing or of another width: a student of slides needs all its teachers"
    else:
        remedy = f"open it with teachers={list(wanted)}"
    raise MismatchError(
        f"{where}: the student's teachers {wanted} expected, in this order, found {dict(teachers)}; {remedy}"
    )


def require_slide_teachers(student: SlideStudent, bags: Bags) -> None:
    """Raise MismatchError unless the bags have the slide-level teachers that the student reads, in its order."""
    wanted = dict(student.config.slide_teachers)
    if wanted and list(wanted.items()) != list(bags.slide_teachers.items()):
        raise MismatchError(
            f"slide_teachers: the student's {wanted} expected, in this order, found "
            f"{dict(bags.slide_teachers) or 'none'}; give slide_teachers={{name: directory}} (--slide-teacher)"
        )
