"""Selection of a slide's patches: some of every cluster, several times over, kept as row numbers."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors.torch import save

from ...archive.archive import FeatureArchive
from ...archive.opening import ArchiveLike, as_archive
from ...errors import ArchiveError, MismatchError, ShazamError
from ...runtime.checks import require_choice, require_count, require_path
from ...runtime.documents import Count, Json, Record, Text, encode_document, read_document
from ...runtime.files import writing
from ...runtime.jobs.foreign import require_same_job
from ...runtime.jobs.locks import require_writable
from ...runtime.jobs.part_directory import Part, PartDirectory
from ...runtime.progress import Progress
from ...runtime.tensors import read_described
from ...training.config import MOST_SEED
from ..bags import Bags, Selection, make_bags
from .clustering import Views, cluster, draw, project_rows
from .spectral import cluster_spectral

FORMAT = "shazam_fast selection"
MANIFEST = "selection.json"
METHODS = ("kmeans", "spectral")
PART_SLIDES = 16  # slides whose selections are in one part


SelectionLike = Selection | str | Path | None


class Manifest(Record, frozen=True, kw_only=True):
    """`selection.json`."""

    format: Text
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    slides: list[Text]  # in the order of the parts, PART_SLIDES in each
    bags: Count
    parts: list[Part]
    job: dict[str, Json]


# Over 40 lines: every option is documented here.
def select(
    archive: ArchiveLike,
    out: str | Path | None = None,
    *,
    clusters: int = 50,
    per_cluster: int = 10,
    bags: int = 1,
    method: str = "kmeans",
    seed: int = 0,
) -> Selection:
    """Cluster each slide's patches by all teachers at once, and draw patches from every cluster.

    Slides with fewer patches than clusters have one patch per cluster; from clusters with fewer patches than asked for
    all are drawn. So a slide of at most `clusters` patches is selected whole.

    Args:
        archive: an archive or its path; needs slides.
        out: directory for the selection, some kilobytes per slide. After an interruption, run the same call again:
            finished parts are kept. Without `out` it is kept in memory.
        clusters: clusters per slide (K of FuseCPath, arXiv 2510.27237).
        per_cluster: patches drawn from each (N_K).
        bags: how often patches are drawn anew, from the same clusters (N_R); `train` takes another one in every epoch.
        method: of clustering: "kmeans", or "spectral", which FuseCPath takes and which costs more.
        seed: of projections, clusters and draws.

    Returns the selection, for `sf.slides.train(selection=...)`.

    Raises:
        MismatchError: no patch has a slide, or `out` holds the selection of another archive or call.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.
        ShazamError: an option out of range, or `out` cannot be written.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> features = {"uni": np.random.default_rng(0).normal(size=(60, 4))}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=["s1"] * 50 + ["s2"] * 10)
    >>> chosen = select(path, clusters=5, per_cluster=2, bags=3)
    >>> len(chosen.rows["s1"]), len(chosen.rows["s1"][0])
    (3, 10)
    """
    options: dict[str, Any] = {
        "method": require_choice("method", method, METHODS),
        "clusters": require_count("clusters", clusters),
        "per_cluster": require_count("per_cluster", per_cluster),
        "bags": require_count("bags", bags),
        "seed": require_count("seed", seed, 0, MOST_SEED),
    }
    folder = None if out is None else require_path("out", out)
    archive = as_archive(archive)
    whole = make_bags(archive, "slide", {})
    content = archive.fingerprint
    job = {**options, "features": content["features"], "slides": content["slides"]}
    if folder is None:
        with Progress("selecting", len(whole), "slides") as progress:
            found = _select(whole, range(len(whole)), options, progress)
        return _by_slide(whole.names, found, content["features"], content["slides"])
    if not (folder / MANIFEST).exists():
        require_writable(folder)
        _select_parts(folder, whole, job, options)
    manifest = read_document(folder / MANIFEST, Manifest, format=FORMAT)
    require_same_job(folder, manifest.job, job)
    return open_selection(folder)


class Chosen(NamedTuple):
    """A bag of selected rows of one slide, ascending, and the cluster of each, int64 [n] both."""

    rows: NDArray[np.int64]
    clusters: NDArray[np.int64]


def _by_slide(names: Sequence[str], found: Sequence[Sequence[Chosen]], features: str, slides: str) -> Selection:
    """The selection of slides, of which `found` has the bags."""
    return Selection(
        {name: tuple(bag.rows for bag in bags) for name, bags in zip(names, found, strict=True)},
        {name: tuple(bag.clusters for bag in bags) for name, bags in zip(names, found, strict=True)},
        features,
        slides,
    )


def _select(whole: Bags, slides: range, options: Mapping[str, Any], progress: Progress) -> list[list[Chosen]]:
    """The bags of some slides."""
    views = Views(whole.archive.teachers, options["seed"])
    found = []
    for slide in slides:
        rows = whole.rows_of(slide)
        points = project_rows(views, (batch.features for batch in whole.archive.stream(rows)), len(rows))
        if not torch.isfinite(points).all():
            _refuse_non_finite(whole.archive, rows)
        own = [options["seed"], xxhash.xxh3_64_intdigest(whole.names[slide].encode())]  # whatever the other slides are
        rng = np.random.default_rng(own)
        count, start = options["clusters"], int(rng.integers(MOST_SEED))
        if options["method"] == "spectral":
            codes = cluster_spectral(points, views.widths, count, start)
        else:
            codes = cluster(points, count, start)
        drawn = [draw(codes, options["per_cluster"], rng) for _ in range(options["bags"])]
        found.append([Chosen(rows[one], codes[one]) for one in drawn])
        progress.advance(1, whole.names[slide])
    return found


def _refuse_non_finite(archive: FeatureArchive, rows: NDArray[np.int64]) -> None:
    for batch in archive.batches(rows):
        archive.require_finite(batch.rows, batch.features)
    raise ShazamError(f"{archive.path}: features are too large to be clustered; scale them")


def _select_parts(folder: Path, whole: Bags, job: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Write the parts that are missing, then the manifest."""
    ranges = [range(i, min(i + PART_SLIDES, len(whole))) for i in range(0, len(whole), PART_SLIDES)]
    parts = PartDirectory(folder, job, count=len(ranges), suffix=".safetensors", manifest=MANIFEST)

    def select_missing() -> None:
        missing = parts.missing(range(parts.count))
        done = len(whole) - sum(len(ranges[number]) for number in missing)
        with Progress("selecting", len(whole), "slides", done) as progress:
            for number in missing:
                bags = [bag for slide in _select(whole, ranges[number], options, progress) for bag in slide]
                tensors = {
                    "rows": torch.from_numpy(np.concatenate([bag.rows for bag in bags])),
                    "clusters": torch.from_numpy(np.concatenate([bag.clusters for bag in bags])),
                    "bounds": torch.from_numpy(np.cumsum([0, *(len(bag.rows) for bag in bags)])),
                }
                parts.write_part(number, save(tensors, {}), len(tensors["rows"]))
        manifest = Manifest(
            format=FORMAT,
            version=1,
            slides=list(whole.names),
            bags=options["bags"],
            parts=[record.part for record in parts.records() if record.part is not None],
            job=parts.job,
        )
        with writing(folder):
            parts.publish(encode_document(manifest))

    parts.complete(select_missing)


def open_selection(path: str | Path) -> Selection:
    """A selection that `select` wrote.

    Args:
        path: the directory.

    Raises ArchiveError when a file is missing, damaged, or does not belong to the others.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> folder = tempfile.mkdtemp()
    >>> path = sf.write_archive(f"{folder}/a", {"uni": np.ones((3, 4))}, slides=["s1", "s1", "s2"])
    >>> _ = select(path, f"{folder}/chosen")
    >>> open_selection(f"{folder}/chosen").rows["s2"][0].tolist()
    [2]
    """
    folder = require_path("selection", path)
    manifest = read_document(folder / MANIFEST, Manifest, format=FORMAT)
    bags: list[Chosen] = []
    for part in manifest.parts:
        tensors = read_described(folder / part.file, part.xxh3, MANIFEST)
        bounds = tensors["bounds"].tolist()
        rows, clusters = tensors["rows"].numpy(), tensors["clusters"].numpy()
        bags += [Chosen(rows[start:stop], clusters[start:stop]) for start, stop in pairwise(bounds)]
    if len(bags) != len(manifest.slides) * manifest.bags:
        raise ArchiveError(f"{folder / MANIFEST}: {len(manifest.slides)} slides stated, the parts hold others")
    by_slide = [bags[i * manifest.bags : (i + 1) * manifest.bags] for i in range(len(manifest.slides))]
    return _by_slide(manifest.slides, by_slide, manifest.job["features"], manifest.job["slides"])


def require_selection(selection: SelectionLike, archive: FeatureArchive) -> Selection | None:
    """The selection itself, or the one in a directory; None where nothing was selected.

    Raises MismatchError when the selection is of another archive; ArchiveError as `open_selection`.
    """
    if selection is None:
        return None
    found = selection if isinstance(selection, Selection) else open_selection(selection)
    content = archive.fingerprint
    if (found.features, found.slides) != (content["features"], content["slides"]):
        raise MismatchError(
            f"{archive.path}: the selection is of other features or slides; select again from this archive"
        )
    return found
