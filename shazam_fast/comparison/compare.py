"""Comparison of fusion methods on one archive: does fusing help, by how much, and how sure is that?"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from .. import __version__
from ..annotation.annotations import Given
from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike, as_archive, read_sites
from ..errors import ShazamError
from ..images.table import ImageTable
from ..runtime.checks import require_count, require_path
from ..runtime.devices import choose_device, describe_device
from ..runtime.documents import Json
from ..runtime.jobs.locks import require_writable
from ..runtime.progress import Progress
from .fold import PARTS, Fold
from .methods import Bench, Fitted, choose_methods
from .networks import DEFAULT_BUDGET
from .result import Cell, Comparison, Setup, make_cell, summarise
from .splitting import Codes, check_splits, own_split, random_splits
from .studies import Task, compared_methods, default_methods, study_tasks
from .table import MANIFEST, CellDirectory

logger = logging.getLogger("shazam_fast")

REPEATS = 10  # random splits, unless asked otherwise
LIBRARIES = ("sklearn.linear_model", "sklearn.model_selection", "sklearn.neighbors", "scipy.linalg")
FAR = 1_000_003  # between two seeds of a method on one split, so that they are no seed of another split


@dataclass(frozen=True)
class Plan:
    """What is run: tasks on splits with seeds; `bench` has the fields of every bench beside its fold."""

    archive: FeatureArchive
    tasks: Mapping[str, Task]
    splits: Sequence[Codes]
    seeds: int
    setup: Setup
    bench: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> int:
        """Number of fits on one split."""
        return sum(self.seeds if task.method.random else 1 for task in self.tasks.values())


# Over 40 lines: every option is documented here.
def compare(
    archive: ArchiveLike,
    methods: Sequence[str] | None = None,
    *,
    study: str | None = None,
    repeats: int | None = None,
    seeds: int = 1,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    own_splits: bool = False,
    sites: Given = None,
    images: ImageTable | None = None,
    finetuning: Mapping[str, Any] | None = None,
    device: str | None = None,
    out: str | Path | None = None,
) -> Comparison:
    """Fit fusion methods and baselines on the same splits and compare them on the test parts.

    Args:
        archive: an archive or its path, with labels; groups (patients) where they are known.
        methods: names in `METHODS`; by default all for which the archive has what they need (images, levels). A method
            that cannot run is reported, the others go on.
        study: "depth", "lambda", "leave-one-out", "subsets" or "learning-curve": compare settings of the methods
            instead, see `studies`; the study's own methods by default.
        repeats: number of random splits that keep groups whole and classes in proportion; 10 by default.
        seeds: how often methods with randomness are fitted on each split, with other seeds.
        val, test: shares of the labelled patches.
        seed: of the splits (seed, seed + 1, ...), of the methods and of the bootstrap.
        own_splits: take the archive's own train, val and test instead.
        sites: the site (hospital, scanner) of every slide or patch, so that whole sites stay in one part: a table with
            a column "site", {slide: site}, or one name per patch.
        images: the images that the features were made of, in the archive's order, for fine-tuned teachers.
        finetuning: options of `shazam_fast.finetune` for them.
        device: where students are trained: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.
        out: directory for the result: one row per method, split and seed, with the predictions, in Parquet files, and
            comparison.json. An interrupted comparison there is continued, a finished one is opened.

    Returns:
        A `Comparison`: metrics with intervals, paired differences to the best single teacher (chosen on val) and to
        logistic regression on the concatenation; in a study, to its reference.

    Raises:
        MismatchError: no labels, or all equal; too few groups or sites; a class that no training patch has; a group
            with patches in two of the archive's own splits; `out` holds another comparison.
        NonFiniteError: a NaN or infinite feature.
        ShazamError: an unknown method or study, an option out of range; `out` cannot be written.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels = np.arange(80) % 2
    >>> features = {t: np.random.default_rng(0).normal(size=(80, 4)) + labels[:, None] for t in ("uni", "gigapath")}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels)
    >>> found = sf.compare(path, ["best_single_balanced", "lr_concat_balanced"], repeats=2)
    >>> sorted(found.balanced_accuracy)
    ['best_single_balanced', 'lr_concat_balanced']
    >>> list(sf.compare(path, study="subsets", repeats=2).balanced_accuracy)
    ['1 of 2 teachers', '2 of 2 teachers']
    """
    folder = None if out is None else require_path("out", out)
    if folder is not None and not (folder / MANIFEST).exists():
        require_writable(folder)
    repeats, seeds = _counts(repeats, seeds, own_splits)
    names = default_methods(study) if study is not None and methods is None else methods
    opened = as_archive(archive)
    chosen = choose_methods(names, opened, images)
    tasks, references = compared_methods(chosen) if study is None else study_tasks(study, opened, chosen)
    codes = None if sites is None else read_sites(opened, sites)[1]
    splits = [own_split(opened)] if own_splits else random_splits(opened, repeats, val, test, seed, codes)
    notes = check_splits(opened, splits, own_splits)
    n_rows = int((opened.labels >= 0).sum())
    setup = Setup(
        opened.classes, tuple(opened.teachers), n_rows, len(splits), seed, references, study or "", tuple(notes)
    )
    place = describe_device(choose_device(device))
    options = {} if device is None else {"device": device}
    bench = {"options": options, "images": images, "finetuning": {**options, **(finetuning or {})}}
    plan = Plan(opened, tasks, splits, seeds, setup, bench)
    if folder is None:
        with Progress("comparing", len(splits) * plan.fits, "fits") as progress:
            cells = [cell for repeat in range(len(splits)) for cell in _run_split(plan, repeat, progress)]
        return summarise(setup, cells, str(opened.path))
    return _to_disk(plan, folder, {**_job(plan, chosen, finetuning), "device": place})


def _counts(repeats: int | None, seeds: int, own_splits: bool) -> tuple[int, int]:
    """Checked numbers of splits and seeds."""
    seeds = require_count("seeds", seeds)
    if own_splits and repeats not in (None, 1):
        raise ShazamError(
            f"repeats: {repeats} random splits, or own_splits, expected; found both (seeds= repeats fits)"
        )
    return (1 if own_splits else REPEATS) if repeats is None else require_count("repeats", repeats), seeds


def _job(plan: Plan, methods: Sequence[str], finetuning: Mapping[str, Any] | None) -> dict[str, Json]:
    """What makes two comparisons the same."""
    content = plan.archive.fingerprint
    splits = xxhash.xxh3_128(np.stack(plan.splits).tobytes()).hexdigest()
    images: ImageTable | None = plan.bench["images"]
    paths = None if images is None else xxhash.xxh3_128("\n".join(map(str, images.paths)).encode()).hexdigest()
    return {
        "study": plan.setup.study or "none", "methods": list(methods), "repeats": plan.setup.repeats,
        "seeds": plan.seeds, "seed": plan.setup.seed, "release": __version__,
        **{what: content[what] for what in ("features", "labels", "groups", "slides")}, "splits": splits,
        "images": paths or "none", "finetuning": {key: str(value) for key, value in (finetuning or {}).items()},
        "settings of the networks": asdict(DEFAULT_BUDGET),
    }  # fmt: skip


def _to_disk(plan: Plan, folder: Path, job: Mapping[str, Json]) -> Comparison:
    """Run the splits that are not finished, each written when it is, and the manifest."""
    parts = CellDirectory(folder, job, plan.setup)

    def run_missing() -> Comparison:
        missing = parts.missing(range(parts.count))
        done = (parts.count - len(missing)) * plan.fits
        with Progress("comparing", parts.count * plan.fits, "fits", done) as progress:
            for repeat in missing:
                parts.write(repeat, _run_split(plan, repeat, progress))
        return parts.finish()

    found = parts.complete(run_missing) or parts.read_finished()
    assert found is not None
    return found


def _run_split(plan: Plan, repeat: int, progress: Progress) -> list[Cell]:
    """All tasks on one split. Features are read, and libraries loaded, before anything is timed."""
    seed = plan.setup.seed + repeat
    fold = Fold(plan.archive.with_splits(plan.splits[repeat]), seed)
    fold.features(PARTS[0])
    for library in LIBRARIES:
        import_module(library)
    cells = []
    benches: dict[str, Bench] = {}
    for name, task in plan.tasks.items():
        for number in range(plan.seeds if task.method.random else 1):
            whole = Bench(fold, fold.teachers, seed + FAR * number, **plan.bench)
            key = f"{task.key} {number}"
            if key not in benches:
                benches[key] = task.view(whole)
            cells.append(_run(task, benches[key], {"repeat": repeat, "seed": number, "method": name}))
            progress.advance(1, name)
    return cells


def _run(task: Task, bench: Bench, names: Mapping[str, Any]) -> Cell:
    """Fit one method; a user's error becomes the reason why it has no result."""
    fold = bench.fold
    rows = fold.archive.split("test")
    place = {**names, "rows": rows, "labels": fold.labels("test"), "groups": fold.groups("test")}
    fitted: Fitted
    try:
        fitted, fit_seconds = fold.shared.measure(lambda: task.method.fit(bench))
        probabilities, score_seconds = fold.shared.measure(lambda: fitted.predict("test"))
    except ShazamError as error:
        logger.warning("%s: %s", names["method"], error)
        return Cell(
            **place, teachers=bench.teachers, probabilities=None, metrics=None, fit_seconds=0.0, score_seconds=0.0,
            reason=str(error),
        )  # fmt: skip
    place |= {"teachers": fitted.teachers, "fit_seconds": fit_seconds, "score_seconds": score_seconds}
    return make_cell(probabilities, fold.archive.classes, place)
