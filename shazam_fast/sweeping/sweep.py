"""Training many students in one pass over the archive: one call from an archive to all of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..archive.archive import FeatureArchive
from ..archive.inspection import slides_by_split
from ..archive.opening import ArchiveLike, as_archive
from ..runtime.checks import require_count
from ..runtime.devices import choose_device
from ..runtime.progress import Progress
from ..scoring.metrics import Metrics, selection_score
from ..student.ensemble import Ensemble, average
from ..student.student import Student
from ..training.config import MOST_SEED, TrainConfig, resolve_config
from ..training.feed import feature_statistics
from ..training.train import checked_rows, circumstances
from .grid import Options, group, list_options, require_sweepable
from .run import GroupRun, Member, make_member

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweepRun:
    """One student of a sweep.

    Attributes:
        options: what the sweep changed for it.
        config: everything that decided its training.
        student: on the CPU, of the epoch that is kept.
        history: one record per epoch: `epoch`, `loss`, `cross_entropy`, `val_score`, `val_balanced_accuracy`,
            `val_weighted_f1`.
        metrics: of that epoch on the validation split.
    """

    options: dict[str, Any]
    config: TrainConfig
    student: Student
    history: list[dict[str, Any]]
    metrics: Metrics

    @property
    def score(self) -> float:
        """The validation score of the epoch that is kept, 0.8 balanced accuracy + 0.2 weighted F1."""
        return selection_score(self.metrics.balanced_accuracy, self.metrics.weighted_f1)


@dataclass(frozen=True)
class SweepResult:
    """The students of a sweep, in the order in which they were asked for.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels, splits = np.arange(80) % 2, np.repeat(["train", "val", "test", "train"], 20)
    >>> features = {"uni": np.random.default_rng(0).normal(size=(80, 8)) + labels[:, None]}
    >>> archive = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels, splits=splits)
    >>> result = sf.sweep(archive, {"seed": [0, 1, 2]}, epochs=2, dim=8, depth=1, batch_size=8, device="cpu")
    >>> result.ensemble().config.classes, len(result.best.history)
    (('0', '1'), 2)
    """

    runs: tuple[SweepRun, ...]
    order_seed: int

    @property
    def students(self) -> list[Student]:
        """All students."""
        return [run.student for run in self.runs]

    @property
    def best(self) -> SweepRun:
        """The run with the best validation score, the first of them."""
        return max(self.runs, key=lambda run: run.score)

    def ensemble(self) -> Ensemble:
        """All students as one, see `average`. Raises MismatchError when their widths differ."""
        return average(self.students)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: options, configuration, history and metrics of every student."""
        return {
            "order_seed": self.order_seed,
            "runs": [
                {
                    "options": run.options, "config": asdict(run.config), "history": run.history,
                    "metrics": run.metrics.to_dict(),
                }
                for run in self.runs
            ],
        }  # fmt: skip

    def to_pandas(self) -> "pd.DataFrame":
        """A table with one row per student: its options, validation score, metrics and number of epochs."""
        import pyarrow as pa

        names = ("balanced_accuracy", "weighted_f1", "accuracy", "auroc", "calibration_error")
        rows = [
            {
                **run.options, "val_score": run.score, **{f"val_{name}": getattr(run.metrics, name) for name in names},
                "epochs": len(run.history),
            }
            for run in self.runs
        ]  # fmt: skip
        return pa.Table.from_pylist(rows).to_pandas()


# Over 40 lines: every option is documented here.
def sweep(
    archive: ArchiveLike,
    students: Options,
    *,
    preset: str | None = None,
    order_seed: int = 0,
    **overrides: Any,
) -> SweepResult:
    """Train many students on the archive's "train" split in one pass, and validate each on "val" after every epoch.

    Students that differ in seed, lr, weight_decay, lam, delta, balance, patience, selection and the weight of teacher
    heads alone are trained together: every batch is read and standardised once for all. Students that differ in other
    options (depth, block, dim, ...) are trained group after group.

    All see the patches in the same order: `order_seed` decides it and all dropout, and `seed` the initial parameters.
    So a student with seed = order_seed is the one that `train()` gives, up to rounding. The "test" split is not read:
    use `evaluate` on the student that you choose.

    Args:
        archive: an archive or its path, with labels, classes and splits.
        students: a grid {option: values} of which every combination is trained, or a list of {option: value}, one per
            student; options are fields of `TrainConfig`.
        preset: as for `train`.
        order_seed: seed of the order of patches and of dropout, 0 or more.
        overrides: fields of `TrainConfig` that all students share.

    Returns the students with their histories and validation metrics.

    Raises:
        ShazamError: no student, an unknown option or one out of range; a backend or precision that sweeps do not offer.
        ArchiveError: the archive is missing or damaged.
        MismatchError: as for `train`.
        NonFiniteError: a NaN or infinite feature (names teacher and row) or loss (names the student).

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels, splits = np.arange(80) % 2, np.repeat(["train", "val", "test", "train"], 20)
    >>> features = {"uni": np.random.default_rng(0).normal(size=(80, 8)) + labels[:, None]}
    >>> archive = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels, splits=splits)
    >>> grid = {"lam": [0.0, 0.5], "seed": [0, 1]}
    >>> result = sf.sweep(archive, grid, epochs=2, dim=8, depth=1, batch_size=8, device="cpu")
    >>> [run.options for run in result.runs][1], len(result.students)
    ({'lam': 0.0, 'seed': 1}, 4)
    """
    options = list_options(students)
    order_seed = require_count("order_seed", order_seed, 0, MOST_SEED)
    configs = [resolve_config(None, preset, {**overrides, **own}) for own in options]
    for config in configs:
        require_sweepable(config)
        choose_device(config.device)
    archive = as_archive(archive)
    n_rows = len(archive.split("train"))
    configs = [
        config if "batch_size" in {**overrides, **own} else config.fit_batch(n_rows)
        for config, own in zip(configs, options, strict=True)
    ]
    members: dict[int, Member] = {}
    total = sum(config.epochs for config in (configs[indices[0]] for indices in group(configs)))
    statistics = None
    with Progress("training", total * n_rows, "patches") as progress:
        for indices in group(configs):
            rows = checked_rows(archive, configs[indices[0]])
            if statistics is None:
                statistics = feature_statistics(archive, rows["train"])
            found = _train_group(archive, configs, indices, rows, statistics, order_seed, progress)
            members.update(zip(indices, found, strict=True))
    labels = archive.labels[archive.split("val")]
    runs = [_finish(archive, members[i], own, labels, order_seed) for i, own in enumerate(options)]
    return SweepResult(tuple(runs), order_seed)


def _train_group(
    archive: FeatureArchive,
    configs: Sequence[TrainConfig],
    indices: Sequence[int],
    rows: dict[str, Any],
    statistics: tuple[torch.Tensor, torch.Tensor],
    order_seed: int,
    progress: Progress,
) -> list[Member]:
    first = configs[indices[0]]
    device = choose_device(first.device)
    standard = statistics
    if not first.standardize:
        standard = torch.zeros_like(statistics[0]), torch.ones_like(statistics[1])
    members = [make_member(archive, configs[i], device, standard, f"student {i} ({configs[i]})") for i in indices]
    GroupRun(archive, members, device, rows, standard, order_seed).train(progress)
    return members


def _finish(archive: FeatureArchive, member: Member, options: dict[str, Any], labels: Any, order_seed: int) -> SweepRun:
    metrics = member.metrics(labels)
    place = circumstances(member.student.qkv.device)
    student = member.student.cpu()
    student.training_record = {
        "job": member.config.job(archive.fingerprint),
        "order_seed": order_seed,
        "history": member.history,
        "metrics": {"val": metrics.to_dict()},
        "archive": archive.path.name,
        "slides": slides_by_split(archive),
        "teachers": archive.records,
        **place,
    }
    return SweepRun(options, member.config, student, member.history, metrics)
