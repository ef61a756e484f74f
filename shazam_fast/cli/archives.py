"""`shazam-fast convert`, `verify` and `inspect`: archives of features."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.jobs.foreign import require_place_for
from ..runtime.summaries import counted
from .options import Dtype, Features, opens_features
from .printing import print_table, say

if TYPE_CHECKING:
    from ..archive.archive import FeatureArchive


@opens_features()
def convert(
    features: Features,
    out: Annotated[Path, typer.Option(help="Archive to write. Run the command again to resume it.")],
    dtype: Dtype = "float16",
) -> None:
    """Pack features of any format into one archive."""
    from ..archive.conversion import convert as run

    require_place_for(out, "archive")
    report = run(features.source, out, dtype=dtype, **features.given)
    say(f"{counted(report.n_rows, 'patch')}, {report.bytes / 1e9:.2f} GB in {out}")
    if report.overflowed:
        say(f"{counted(report.overflowed, 'value')} too large for float16; --dtype float32 keeps them")
    print_table(
        ["teacher", "largest", "rms"],
        [(name, f"{largest:.1e}", f"{report.rms_error[name]:.1e}") for name, largest in report.max_error.items()],
        f"relative rounding error of {dtype}, per patch",
    )


@opens_features()
def verify(features: Features) -> None:
    """Check the checksums, and that all features are finite."""
    archive = features.open()
    archive.verify()
    checked = "checksums match" if _is_native(features) else "complete, without checksums"
    patches, files = counted(archive.n_rows, "patch"), counted(len(archive.files), "file")
    say(f"{archive.path}: {patches}, all finite; {checked}: {files}")


@opens_features()
def inspect(features: Features) -> None:
    """Print what an archive or a folder of features holds.

    Teachers and their norms, patches, slides, patch size, classes per split, bytes.
    """
    archive = features.open()
    kind = "native archive of" if _is_native(features) else "opened in place from"
    say(
        f"{archive.path}: {counted(archive.n_rows, 'patch')}, {archive.dtype}, "
        f"{archive.n_rows * archive.row_bytes / 1e9:.2f} GB, {len(archive.slides):,} slides, "
        f"{counted(len(archive.groups), 'group')}, {kind} {counted(len(archive.files), 'file')}"
    )
    _print_teachers(archive)
    _print_geometry(archive)
    _print_classes(archive)


def _is_native(features: Features) -> bool:
    from ..formats.native import is_native

    return isinstance(features.source, Path) and is_native(features.source)


def _print_teachers(archive: "FeatureArchive") -> None:
    from ..archive.inspection import sample_teachers

    samples = sample_teachers(archive)
    n_rows = next(iter(samples.values())).n_rows
    print_table(
        ["teacher", "dim", "smallest", "median", "largest", "not finite"],
        [
            (
                name,
                f"{archive.teachers[name]:,}",
                *(f"{norm:.4g}" for norm in (sample.min_norm, sample.median_norm, sample.max_norm)),
                f"{sample.non_finite:,} of {n_rows:,}",
            )
            for name, sample in samples.items()
        ],
        "teachers; norms of "
        + ("all patches" if n_rows == archive.n_rows else f"a random sample of {counted(n_rows, 'patch')}"),
    )


def _print_geometry(archive: "FeatureArchive") -> None:
    """One row per combination of unit, patch size, level and resolution; nothing where none is known."""
    counts = Counter((g.unit, g.patch_size, g.level, g.mpp) for g in archive.geometry.values())
    if not counts:
        return
    rows = [
        (f"{count:,}", unit or "unknown", *("unknown" if number is None else f"{number:g}" for number in numbers))
        for (unit, *numbers), count in counts.items()
    ]
    unknown = len(archive.slides) - counts.total()
    if unknown > 0:
        rows.append((f"{unknown:,}", *["unknown"] * 4))
    print_table(
        ["slides", "unit", "patch size", "level", "mpp"],
        rows,
        "positions of patches; mpp: micrometres per pixel of level 0",
    )


def _print_classes(archive: "FeatureArchive") -> None:
    splits = ("train", "val", "test", "none")
    labels = {split: archive.labels[archive.split(split)] for split in splits}
    rows = []
    for code, name in [*enumerate(archive.classes), (-1, "(no label)")]:
        counts = [int((labels[split] == code).sum()) for split in splits]
        if code >= 0 or any(counts):
            rows.append((name, *(f"{count:,}" for count in counts)))
    print_table(["class", *splits], rows, "patches per class and split")
