"""Labels, splits and groups for archives whose files hold none: from CSV files, mappings, arrays or folder names."""

import csv
from collections.abc import Mapping
from pathlib import Path

from ..errors import ArchiveError

# Column names that the field's tables use (CLAM, TRIDENT, TCGA clinical tables), the usual one first.
SLIDE_COLUMNS = ("slide_id", "slide", "slide_name", "image_id", "wsi", "filename", "filename_ext")
LABEL_COLUMNS = ("label", "target", "class", "diagnosis")
GROUP_COLUMNS = ("patient_id", "patient", "case_id", "case", "group")
SPLIT_COLUMNS = ("split", "set", "subset")
IMAGE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".czi", ".bif", ".vms", ".dcm", ".png", ".jpg")
SUFFIXES = frozenset((*IMAGE_SUFFIXES, ".h5", ".pt", ".npy", ".safetensors"))


def read_csv(path: Path) -> dict[str, list[str]]:
    """Columns of a CSV file by their names in its first line. Raises ArchiveError when it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = [row for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"{path}: the CSV cannot be read: {error}") from None
    ragged = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if ragged is not None:
        raise ArchiveError(f"{path}: row {ragged + 2} has {len(rows[ragged])} fields, the header {len(header)}")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def column_of(table: Mapping[str, list[str]], names: tuple[str, ...]) -> str | None:
    """The first of the names that the table has as a column."""
    return next((name for name in names if name in table), None)


def stem(name: object) -> str:
    """A slide's name without directory and without the suffix of its image or feature file."""
    path = Path(str(name))
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


PATH_COLUMNS = ("path", "image_path", "image", "file", "filename")
