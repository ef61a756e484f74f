"""What a cross-validation does: bags with their targets and folds, the model's shape, how it is fitted, and where."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from ..archive.opening import ArchiveLike, as_archive
from ..errors import ShazamError
from ..runtime.checks import require_choice, require_count
from ..runtime.devices import choose_device, describe_device
from ..tables.reader import Table
from .bags import Bags, find_patients, make_bags, require_regions
from .cohort.assigning import assign_targets
from .cohort.folds import PROTOCOLS, Fold, deal_folds, read_folds, require_learnable, take_fold
from .cohort.requests import Request, Source, read_targets
from .cohort.rows import texts_of_bags
from .cohort.targets import ClassTargets, SeveralClasses, SurvivalTargets, Targets, ValueTargets, named_classes
from .options import LOSSES, UNITS, FitOptions, SlideConfig, read_options
from .selecting.selection import SelectionLike, require_selection
from .slide_teachers.reading import SlideTeachersLike, add_slide_teachers, describe_slide_teachers, read_by


@dataclass(frozen=True)
class Work:
    """A cross-validation of one model.

    Args:
        bags, targets: all bags and their targets.
        folds: int64 [bags], the fold of each, -1 without a target.
        protocol: see `take_fold`.
        config: shape of the model.
        options: how it is fitted.
        device: where it computes.
    """

    bags: Bags
    targets: Targets
    folds: NDArray[np.int64]
    protocol: str
    config: SlideConfig
    options: FitOptions
    device: torch.device

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.folds.max()) + 1

    def fold(self, number: int) -> Fold:
        """The bags of a fold."""
        return take_fold(self.folds, number, self.protocol)

    def with_model(self, model: str) -> "Work":
        """The same for another model."""
        require_regions(model, self.bags)
        return replace(self, config=replace(self.config, model=model, slide_teachers=read_by(model, self.bags)))

    def job(self) -> dict[str, Any]:
        """What makes two trainings the same."""
        content = self.bags.archive.fingerprint
        return {
            **{name: content[name] for name in ("features", "slides")},
            **{name: value for name, value in asdict(self.config).items() if name not in ("teachers", "targets")},
            **self.options.job(),
            "columns": {name: list(classes) for name, classes in self.config.targets.items()},
            "targets": _digest(*self.targets.arrays().values()),
            "folds": _digest(self.folds),
            "protocol": self.protocol,
            "patches of slides": _digest(self.bags.rows, self.bags.bounds),
            **describe_slide_teachers(self.bags),
            "device": describe_device(self.device),
        }


def plan_work(
    archive: ArchiveLike,
    targets: Request | Source,
    *,
    model: str,
    folds: int | str,
    by: str,
    loss: str,
    sites: str | None,
    protocol: str,
    selection: SelectionLike,
    slide_teachers: SlideTeachersLike | None,
    device: str | None,
    options: Mapping[str, Any],
) -> Work:
    """The work of `sf.slides.train` for its arguments, all of them checked. Nothing is trained yet."""
    shape, fitting = read_options(options)
    if not isinstance(folds, str):
        folds = require_count("folds", folds, 3)
    require_choice("by", by, UNITS)
    require_choice("loss", loss, LOSSES)
    require_choice("protocol", protocol, PROTOCOLS)
    if isinstance(folds, str) and sites is not None:
        raise ShazamError("give sites, by which folds are dealt, or a column of folds, not both")
    place = choose_device(device)
    wanted, table = read_targets(targets)
    archive = as_archive(archive)
    bags = make_bags(archive, by, find_patients(archive, table), require_selection(selection, archive))
    require_regions(model, bags)
    bags = add_slide_teachers(bags, slide_teachers)
    assigned = assign_targets(wanted, table, bags)
    dealt = _folds(bags, assigned, table, folds, sites, fitting.seed)
    require_learnable(bags, assigned, dealt, protocol)
    classes, columns = named_classes(assigned)
    config = SlideConfig(
        archive.teachers, _task_of(assigned, loss), classes, model, **shape, slide_teachers=read_by(model, bags),
        targets=columns,
    )  # fmt: skip
    return Work(bags, assigned, dealt, protocol, config, fitting, place)


def _folds(
    bags: Bags, targets: Targets, table: Table, folds: int | str, sites: str | None, seed: int
) -> NDArray[np.int64]:
    """The fold of each bag: from the column `folds` of the table, or dealt, with the bags of a site in one fold."""
    if isinstance(folds, str):
        column = table.require(folds, "folds")
        names = texts_of_bags(table, bags, column, targets.known)
        return read_folds(bags, targets, names, f"{table.where}, column {column!r}")
    of_bags = None if sites is None else texts_of_bags(table, bags, table.require(sites, "sites"), targets.known)
    return deal_folds(bags, targets, folds, seed, of_bags)


def _task_of(targets: Targets, loss: str) -> str:
    if isinstance(targets, SurvivalTargets):
        return f"survival_{loss}"
    names = {ClassTargets: "classification", SeveralClasses: "multi_classification", ValueTargets: "regression"}
    return names[type(targets)]


def _digest(*arrays: NDArray[Any]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
