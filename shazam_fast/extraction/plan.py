"""The options of an extraction, and what an archive records of them."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from ..archive.parts import require_dtype
from ..errors import ImageError, MismatchError, ShazamError
from ..formats.geometry import describe_geometry
from ..images.slide_reader import reader_name, reader_packages
from ..images.table import ImageTable, some_of
from ..runtime.levels import LEVELS
from ..teachers.models import Teacher, load_teacher
from ..teachers.spec import TeacherSpec
from .pipeline import Stamp, stamp_of

PART_ROWS = 2048  # images per part; at most one part's work is lost when a process is killed
UNREADABLE = ("stop", "exclude")


@dataclass(frozen=True)
class PartSource:
    """The images of a part: a digest that changes when one of them does, and the path of the one that changed last."""

    digest: str
    newest: str


@dataclass(frozen=True)
class Plan:
    """Everything that decides what the archive will hold; sent to other machines.

    Args:
        table: the images [n].
        specs: the teachers, each once.
        weights: {teacher: "hub", "random" or a file}; "hub" for teachers that are not named.
        transform, token: see `load_teacher`.
        levels: of "low", "mid" and "high".
        batch_size: images per forward pass; None for the device's default.
        workers: image-decoding threads.
        dtype: "float16" or "float32" on disk.
        unreadable: "stop" or "exclude".
        out: directory of the archive.
        part_rows: images per part.

    Raises ShazamError for an option out of range; MismatchError for teachers, weights or levels that do not fit;
    ImageError when an image is missing.
    """

    table: ImageTable
    specs: tuple[TeacherSpec, ...]
    weights: Mapping[str, str]
    transform: str
    token: str | None
    levels: tuple[str, ...]
    batch_size: int | None
    workers: int
    dtype: str
    unreadable: str
    out: Path
    part_rows: int = field(default_factory=lambda: PART_ROWS)
    stamps: Mapping[Path, Stamp] = field(init=False)  # of the image files now

    def __post_init__(self) -> None:
        require_dtype(self.dtype)
        names = [spec.name for spec in self.specs]
        if not names or len(set(names)) < len(names):
            raise MismatchError(f"teachers: at least one, each name once, expected, found {names}")
        if unknown := sorted(set(self.weights) - set(names)):
            raise MismatchError(f"weights: names among the teachers {names} expected, found {unknown}")
        if not self.levels or set(self.levels) - set(LEVELS) or len(set(self.levels)) < len(self.levels):
            raise MismatchError(
                f"levels: some of {', '.join(LEVELS)}, each once, expected, found {', '.join(self.levels) or 'none'}"
            )
        if self.unreadable not in UNREADABLE:
            raise ShazamError(f"unreadable: one of {UNREADABLE} expected, found {self.unreadable!r}")
        if (self.batch_size is not None and self.batch_size < 1) or self.workers < 1:
            raise ShazamError(f"batch_size and workers >= 1 expected, found {self.batch_size} and {self.workers}")
        object.__setattr__(self, "stamps", _stamps(self.table))

    @property
    def parts(self) -> int:
        """Parts that the archive is written in."""
        return -(-len(self.table) // self.part_rows)

    def batches(self, part: int, size: int) -> list[range]:
        """The batches of a part: they depend on row numbers alone, so that a part is the same whoever writes it."""
        start, stop = part * self.part_rows, min((part + 1) * self.part_rows, len(self.table))
        return [range(i, min(i + size, stop)) for i in range(start, stop, size)]

    def part_of(self, batch: range) -> int:
        """The number of the part that a batch belongs to."""
        return batch.start // self.part_rows

    def sources(self) -> list[PartSource]:
        """What the files are that each part is made of, so that a changed image is noticed when the work goes on."""
        return [self._source(start) for start in range(0, len(self.table), self.part_rows)]

    def _source(self, start: int) -> PartSource:
        paths = list(dict.fromkeys(self.table.paths[start : start + self.part_rows]))
        stamps = [self.stamps[path] for path in paths]
        newest = max(paths, key=lambda path: self.stamps[path][1])
        return PartSource(xxhash.xxh3_128_hexdigest(json.dumps(stamps).encode()), str(newest))

    def build(self) -> list[Teacher]:
        """The teachers with their weights."""
        return [
            load_teacher(spec, self.weights.get(spec.name, "hub"), self.token, self.transform) for spec in self.specs
        ]


def describe_job(plan: Plan, teachers: Sequence[Teacher], device: torch.device, batch_size: int) -> dict[str, Any]:
    """What the archive records of the extraction; two calls with the same values write the same parts.

    Args:
        plan: the extraction.
        teachers: as `plan.build` gives them, not yet moved to a device.
        device: where they will run.
        batch_size: images per forward pass.

    Returns:
        JSON values.
    """
    of_slides = plan.table.sides is not None
    libraries = {teacher.spec.library for teacher in teachers} - {"torch"}
    packages = sorted({"numpy", "pillow", *libraries, *(reader_packages() if of_slides else ())})
    return {
        "images": _describe(plan.table),
        "teachers": {teacher.spec.name: _record(teacher, device) for teacher in teachers},
        "levels": [level for level in LEVELS if level in plan.levels],
        "dtype": plan.dtype,
        "batch_size": batch_size,
        "part_rows": plan.part_rows,
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "slide_reader": reader_name() if of_slides else None,
        "versions": {"torch": str(torch.__version__), **{name: _version(name) for name in packages}},
    }


def _record(teacher: Teacher, device: torch.device) -> dict[str, Any]:
    spec = teacher.spec
    return {
        "hub": spec.hub,
        "revision": teacher.revision if teacher.revision != "callable" else _describe_module(teacher.model),
        "arguments": {name: _plain(value) for name, value in spec.arguments.items()},
        "transform": teacher.transform.to_dict(),
        "pooling": spec.pooling,
        "levels": spec.levels and list(spec.levels),
        "precision": spec.precision if device.type == "cuda" else "float32",
        "licence": spec.licence,
        "covers_derivatives": spec.covers_derivatives,
    }


def _plain(value: Any) -> Any:
    """An argument as JSON has it; of a callable its name."""
    return value if isinstance(value, str | int | float | bool | None) else getattr(value, "__qualname__", str(value))


def _describe_module(model: nn.Module) -> str:
    """What tells a model that a callable made from another: its layers, parameters and buffers."""
    digest = xxhash.xxh3_128(f"{type(model).__qualname__} {model}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"callable xxh3:{digest.hexdigest()}"


def _version(package: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _stamps(table: ImageTable) -> dict[Path, Stamp]:
    stamps = {path: stamp_of(path) for path in dict.fromkeys(table.paths)}
    if missing := [str(path) for path, stamp in stamps.items() if stamp is None]:
        raise ImageError(f"{len(missing)} image files are missing: {some_of(missing)}")
    return {path: stamp for path, stamp in stamps.items() if stamp is not None}


def _describe(table: ImageTable) -> dict[str, Any]:
    """Which images in which order, and what is known of them.

    Not what changes when a broken image is mended: that is in `Plan.sources`, part by part.
    """
    digest = xxhash.xxh3_128()
    places = {path: os.fsencode(os.path.realpath(path)) + b"\0" for path in dict.fromkeys(table.paths)}
    for path in table.paths:
        digest.update(places[path])
    for array in (table.labels, table.splits, table.coords, table.sides):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
    names = [table.classes, table.groups, table.slides, describe_geometry(table.geometry)]
    digest.update(json.dumps(names).encode())
    record = {"count": len(table), "xxh3": digest.hexdigest(), "note": table.note}
    if table.sides is not None:
        record |= {"over_the_edge": table.over_edge, "outside_the_slide": "black"}
    return record
