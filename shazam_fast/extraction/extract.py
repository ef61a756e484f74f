"""Images to features: `shazam_fast.extract` runs every teacher over every image once and writes a native archive."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..annotation.annotations import FOLDER
from ..errors import ImageError, ShazamError
from ..images.slides import slide_patches
from ..images.sources import class_folders, image_folder, manifest
from ..images.table import ImageTable
from ..runtime.devices import choose_device, count_cores
from ..runtime.locks import require_writable
from ..runtime.ray_jobs import require_cluster
from ..tables.reader import TABLE_SUFFIXES
from ..teachers.registry import get_teacher
from ..teachers.spec import TeacherSpec
from .plan import Plan
from .run import Extraction, ExtractionReport, complete, help_complete
from .sharing import Sharing


def extract(
    images: ImageTable | str | Path,
    teachers: Sequence[str | TeacherSpec],
    out: str | Path,
    *,
    labels: str | None = None,
    coords: str | Path | None = None,
    classes: Sequence[str] | None = None,
    levels: Sequence[str] = ("high",),
    weights: Mapping[str, str | Path] | None = None,
    transform: str = "own",
    token: str | None = None,
    dtype: str = "float16",
    unreadable: str = "stop",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    cluster: str | None = None,
) -> ExtractionReport:
    """Run teachers over images and write their features as a native archive.

    Every image is decoded once and given to all teachers. Interrupted in any way, the same call goes on after the
    finished parts (2,048 images each) and gives the same bytes; called again once it is done, it returns the report.
    Images that change meanwhile are an error. Under torchrun every process takes its share of the parts, on its own
    GPU; all return when the archive is complete.

    Args:
        images: a folder of images; a CSV manifest (see `image_sources.manifest`); a slide, or a folder of slides, with
            `coords`; or an ImageTable, as the readers in `datasets` give.
        teachers: names (`shazam-fast teachers` lists them) or specs.
        out: directory of the archive. `images.parquet` in it names the image of every row; `archive.json` records
            each teacher's weights, transform, precision and licence, the versions of the libraries, images left out.
        labels: "folder" when the images lie in one folder a class.
        coords: TRIDENT's or CLAM's coords file of the slide, or a folder of them. Patches are read as these tools read
            them: black where they reach over the slide's edge; `archive.json` records how many do.
        classes: names in label order; sorted by name when not given.
        levels: "high" is the teacher's own feature; "low" and "mid" are the CLS token of an early and a middle block,
            called "<teacher>:low" and "<teacher>:mid" in the archive. All come from one forward pass.
        weights: {teacher: "hub", "random" or a local file}; the hub unless given.
        transform: "own", or "imagenet" as the authors' scripts have it, see `load_teacher`.
        token: of the Hugging Face hub, by default the one that its login left.
        dtype: "float16" or "float32" on disk.
        unreadable: what an image that cannot be decoded does: "stop", or "exclude" from all teachers alike, recorded.
        batch_size: images in a forward pass: 64 on a GPU, 8 on the CPU unless given; changes the last bits.
        workers: threads that decode; one a core by default.
        device: "cpu", "cuda", ...; a GPU when there is one. Models run in float32 on the CPU.
        cluster: "ray" spreads the parts over a Ray cluster that sees `images` and `out` under the same paths.

    Raises:
        ImageError: images that are missing, listed twice, or unreadable (named, with the reason), or that 8-bit RGB
            cannot hold (pages, further channels, 16 bits, transparency); with unreadable="stop", images that an
            earlier call has left out.
        MismatchError: an unknown teacher; a teacher without levels; or `out` holds the work of another call.
        NonFiniteError: a teacher's feature is NaN, infinite, or too large for float16; names image and teacher.
        ShazamError: weights or a package that cannot be had; the disk is full, which leaves finished parts valid.
    """
    require_cluster(cluster)
    if not (Path(out) / "archive.json").exists():
        require_writable(Path(out))
    specs = tuple(get_teacher(given) if isinstance(given, str) else given for given in teachers)
    given = {name: str(path) for name, path in (weights or {}).items()}
    table = images if isinstance(images, ImageTable) else _read_table(Path(images), labels, coords, classes)
    plan = Plan(
        table, specs, given, transform, token, tuple(levels), batch_size, workers or count_cores(), dtype,
        unreadable, Path(out),
    )  # fmt: skip
    if cluster is not None:
        from .cluster import extract_on_ray

        return _require_wanted(plan, extract_on_ray(plan, device))
    return _require_wanted(plan, _extract_here(plan, device))


def _require_wanted(plan: Plan, report: ExtractionReport) -> ExtractionReport:
    """Raise ImageError when an earlier call has left images out that this one does not want to be left out."""
    if plan.unreadable == "stop" and report.left_out:
        raise ImageError(
            f"{plan.out}: {len(report.left_out)} images are left out by an earlier call with unreadable='exclude' "
            f"(the first: {report.left_out[0]['reason']}); give unreadable='exclude' to take the archive as it is, or "
            "mend the images, delete the directory and extract again"
        )
    return report


def _read_table(path: Path, labels: str | None, coords: str | Path | None, classes: Sequence[str] | None) -> ImageTable:
    if labels not in (None, FOLDER):
        raise ShazamError(f"labels: {FOLDER!r} expected, found {labels!r}; in a CSV manifest they are a column")
    if coords is not None:
        return slide_patches(path, coords)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return manifest(path, classes)
    if path.is_file():
        raise ImageError(f"{path}: a folder or a table ({', '.join(TABLE_SUFFIXES)}) expected; a slide needs coords")
    return class_folders(path, classes) if labels == FOLDER else image_folder(path)


def _extract_here(plan: Plan, device: str | None) -> ExtractionReport:
    """In this process, or as one of torchrun's."""
    rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    sharing = Sharing(plan.out, rank, max(world, 1))
    sharing.begin()
    chosen = choose_device(device)
    extraction = Extraction(plan, torch.device("cuda", local) if str(chosen) == "cuda" else chosen)
    finish = complete if rank == 0 else help_complete
    return finish(extraction.store, extraction.write, sharing)
