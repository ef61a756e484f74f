"""`shazam_fast.extract`: run teachers over images and write their features as a native archive."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..annotation.annotations import FOLDER
from ..errors import ImageError, ShazamError
from ..images.slides import slide_patches
from ..images.sources import class_folders, image_folder, manifest
from ..images.table import ImageTable
from ..runtime.checks import require_path
from ..runtime.devices import choose_device, count_cores
from ..runtime.jobs.locks import require_writable
from ..runtime.jobs.ray_jobs import require_cluster
from ..runtime.summaries import counted
from ..tables.reader import TABLE_SUFFIXES
from ..teachers.registry import get_teacher
from ..teachers.spec import TeacherSpec
from .plan import Plan
from .run import Extraction, ExtractionReport, complete, help_complete
from .sharing import Sharing


# Over 40 lines: every option is documented here.
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

    Every image is decoded once and given to all teachers. After an interruption, call it again to resume: finished
    parts (2,048 images each) are kept, and the result is the same as that of an uninterrupted call. Once finished, a
    further call returns the report. Images that change in between are an error. Under torchrun every process writes its
    share of the parts, on its own GPU; all return when the archive is complete.

    Args:
        images: a folder of images; a table of images (CSV or .xlsx: a column path, optionally label, split, patient_id,
            slide_id, x and y); a slide, or a folder of slides, with `coords`; or an ImageTable, as
            `shazam_fast.load_dataset` returns.
        teachers: names (`shazam_fast.list_teachers()`) or specs.
        out: directory of the archive. `images.parquet` in it names the image of every row; `archive.json` records
            each teacher's weights, transform, precision and licence, the versions of the libraries, images left out.
        labels: "folder" if there is one folder per class, whose names are the labels.
        coords: TRIDENT's or CLAM's coords file of the slide, or a folder of them. Patches are read as these tools read
            them: black where they reach over the slide's edge; `archive.json` records how many do.
        classes: names in label order; in natural order ("2" before "10") by default.
        levels: "high" is the teacher's own feature; "low" and "mid" are the CLS token of an early and a middle block,
            called "<teacher>:low" and "<teacher>:mid" in the archive. All come from one forward pass.
        weights: {teacher: "hub", "random" or a local file}; "hub" by default.
        transform: "own", or "imagenet" as the authors' scripts have it, see `load_teacher`.
        token: Hugging Face token; by default that of the stored login.
        dtype: "float16" or "float32" on disk.
        unreadable: "stop" to raise an error for an image that cannot be decoded; "exclude" to leave it out, for all
            teachers, and record it.
        batch_size: images per forward pass; 64 on a GPU and 8 on the CPU by default. It changes the last bits.
        workers: image-decoding threads; one per core by default.
        device: "cpu", "cuda" or "cuda:1"; a GPU if PyTorch finds one by default. Models run in float32 on the CPU.
        cluster: "ray" to share the parts on a Ray cluster, in which `images` and `out` have the same paths.

    Returns a report: path, number of rows, dims of the teachers, images left out.

    Raises:
        ImageError: images that are missing, listed twice, or unreadable (named, with the reason), or that 8-bit RGB
            cannot hold (pages, further channels, 16 bits, transparency); with unreadable="stop", images that an
            earlier call has left out.
        MismatchError: an unknown teacher; a teacher without levels; or `out` was written by another call.
        NonFiniteError: a teacher's feature is NaN, infinite, or too large for float16; names image and teacher.
        ShazamError: weights or a package are not available; the disk is full (finished parts are kept).

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (32, 32)).save(folder / "patch.png")
    >>> mean = {"create": lambda: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())}
    >>> teacher = TeacherSpec("mean", dim=3, library="torch", pooling="model", arguments=mean)
    >>> extract(folder, [teacher], folder / "archive", weights={"mean": "random"}, device="cpu").n_rows
    1
    """
    require_cluster(cluster)
    out = require_path("out", out)
    if not (out / "archive.json").exists():
        require_writable(out)
    specs = tuple(get_teacher(given) if isinstance(given, str) else given for given in teachers)
    given = {name: str(path) for name, path in (weights or {}).items()}
    table = (
        images
        if isinstance(images, ImageTable)
        else _read_table(require_path("images", images), labels, coords, classes)
    )
    plan = Plan(
        table, specs, given, transform, token, tuple(levels), batch_size, workers or count_cores(), dtype,
        unreadable, out,
    )  # fmt: skip
    if cluster is not None:
        from .cluster import extract_on_ray

        return _require_wanted(plan, extract_on_ray(plan, device))
    return _require_wanted(plan, _extract_here(plan, device))


def _require_wanted(plan: Plan, report: ExtractionReport) -> ExtractionReport:
    """The report; raises ImageError when an earlier call has left out images and unreadable is "stop"."""
    if plan.unreadable == "stop" and report.left_out:
        raise ImageError(
            f"{plan.out}: an earlier call with unreadable='exclude' left out {counted(len(report.left_out), 'image')} "
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
