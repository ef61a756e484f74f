"""Single files that a command writes beside what it prints: JSON and CSV."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShazamError
from ..runtime.files import unfinished_path, write_durably
from ..runtime.locks import make_directory, require_writable

if TYPE_CHECKING:
    import pyarrow as pa


def require_file_place(path: Path, option: str) -> None:
    """Check, before anything is computed, that a file can be written there.

    Args:
        path: the file; its directory need not exist yet.
        option: the option that names it, for messages.

    Raises ShazamError when `path` is a directory, or its directory cannot be made or written to.
    """
    if path.is_dir():
        raise ShazamError(f"{option} {path}: a file expected, there is a directory; give the name of a file in it")
    require_writable(path.absolute().parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON; the directory is made where it is missing."""
    make_directory(path.absolute().parent)
    write_durably(path, json.dumps(values, indent=1, allow_nan=False).encode())


def write_csv(path: Path, tables: Iterable["pa.Table"]) -> None:
    """Write Arrow tables with the same columns one below the other, without holding more than one in memory."""
    import pyarrow as pa
    import pyarrow.csv

    make_directory(path.absolute().parent)
    unfinished, writer = unfinished_path(path), None
    try:
        for table in tables:
            texts = [pa.string() if pa.types.is_dictionary(field.type) else field.type for field in table.schema]
            plain = table.cast(pa.schema(list(zip(table.column_names, texts, strict=True))))
            writer = writer or pyarrow.csv.CSVWriter(unfinished, plain.schema)
            writer.write_table(plain)
        if writer is not None:
            writer.close()
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
