"""Scores: predictions of a student for patches, in memory or in Parquet parts on disk that are read when asked for."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, MismatchError
from ..formats.geometry import Geometry
from ..runtime.checks import require_path
from ..runtime.jobs.part_directory import Part
from ..runtime.summaries import counted, name_some, summary_html
from .manifest import ScoresManifest, read_manifest
from .slide_table import slide_table
from .tables import PartReader, require_pandas, write_csv

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Scores:
    """Predictions of a student for n patches; made by `shazam_fast.score` and `shazam_fast.open_scores`.

    Columns: `row` (int64, of the archive), `slide`, `x`, `y` (null where unknown), `prediction`, `probability_<class>`
    and `share_<teacher>` (float32), and `influence_<teacher>` (float32) and `fused` (lists of float32, length D) if
    they were asked for. What is stored as float16 (`score(dtype=)`) becomes float32 when it is read. A teacher's share
    is its exact part in the patch's fused feature, which residual students do not tell. It does not measure how useful
    the teacher is: a teacher of pure noise can have a large share. Its influence is how far the predicted class's
    probability lies above the one without this teacher, which can be trusted where the student was trained with teacher
    dropout.

    The properties read one column of all patches into memory on first use, read-only; `tables` goes part by part. A
    part on disk is compared with its checksum when it is first read.

    Attributes:
        path: directory of the scores; None in memory.
        classes, teachers: names in the order of `probabilities` and `shares`.
        influence_teachers: names in the order of `influence`; none where it was not asked for.
        missing_teachers: teachers of the student that the archive lacks.
        geometry: {slide: `Geometry`}, unit, patch size and resolution where the features' files tell them.
        dtype: "float32" or "float16", in which probabilities, shares and influence are stored.
        rounding_error: how far float16 changed one of them at most; 0 for float32.
        row_bytes: bytes of one patch's scores as stored, on average.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> folder = tempfile.mkdtemp()
    >>> archive = sf.write_archive(f"{folder}/patches", {"uni": np.ones((3, 8))}, slides=["s1", "s1", "s2"])
    >>> student = sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1)).eval()
    >>> scores = sf.score(student, archive, device="cpu")
    >>> scores.slides, scores.of_slide("s1").num_rows
    (('s1', 's2'), 2)
    """

    def __init__(self, manifest: ScoresManifest, parts: Sequence["pa.Table | Part"], path: Path | None = None) -> None:
        self.path = path
        self.classes = tuple(manifest.classes)
        self.teachers = tuple(manifest.teachers)
        self.influence_teachers = tuple(manifest.influence)
        self.missing_teachers = tuple(manifest.missing_teachers)
        self.geometry: Mapping[str, Geometry] = manifest.geometry
        self.dtype, self.rounding_error = manifest.dtype, manifest.rounding_error
        self._rows = manifest.rows
        self._has_shares = manifest.shares or bool(manifest.weights)
        self._parts = parts
        self._reader = PartReader(manifest, path)

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        place = "in memory" if self.path is None else repr(str(self.path))
        names = f"classes: {name_some(self.classes)}; teachers: {name_some(self.teachers)}"
        return f"Scores({place}, {counted(self._rows, 'patch')}; {names})"

    def _repr_html_(self) -> str:
        facts = {
            "path": "in memory" if self.path is None else self.path,
            "patches": f"{self._rows:,}",
            "slides": f"{len(self.slides):,}",
            "teachers": name_some(self.teachers, 20),
            "missing teachers": name_some(self.missing_teachers, 20),
        }
        counts = np.bincount(self.prediction, minlength=len(self.classes)).tolist()
        rows = ((name, f"{n:,}", f"{n / max(1, self._rows):.1%}") for name, n in zip(self.classes, counts, strict=True))
        return summary_html("Scores", facts, ("predicted class", "patches", "fraction"), rows)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator["pa.Table"]:
        """An Arrow table of every part in turn, with these columns; all by default.

        Raises MismatchError when there is no such column; ArchiveError, kind "missing" or "checksum", when a part is
        missing or damaged.
        """
        return (self._reader.read(part, columns) for part in self._parts)

    def read(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """All patches as one Arrow table; `.to_pandas()` makes a data frame of it. Raises as `tables` does."""
        import pyarrow as pa

        return pa.concat_tables(list(self.tables(columns))).unify_dictionaries()

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """All patches as a DataFrame, one row per patch, with these columns; all by default.

        Raises ShazamError where pandas is not installed; otherwise as `tables`.
        """
        require_pandas("scores.to_pandas()")
        return self.read(columns).to_pandas()

    def to_csv(self, path: str | Path, columns: Sequence[str] | None = None) -> None:
        """Write a CSV table with a header and one row per patch, part by part; complete or not at all.

        Args:
            path: the file.
            columns: names of columns; all but "fused" by default, which a CSV table cannot hold.

        Raises ShazamError when it cannot be written; MismatchError when there is no such column, or it is "fused";
        otherwise as `tables`.

        >>> import numpy as np, tempfile, shazam_fast as sf
        >>> archive = sf.write_archive(f"{(folder := tempfile.mkdtemp())}/patches", {"uni": np.ones((3, 8))})
        >>> student = sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1)).eval()
        >>> sf.score(student, archive, device="cpu").to_csv(f"{folder}/scores.csv", ["row", "prediction"])
        >>> open(f"{folder}/scores.csv").readline()
        '"row","prediction"\\n'
        """
        write_csv(self.tables(columns), require_path("path", path), given=columns is not None)

    def by_slide(self) -> "pa.Table":
        """One row per slide, in the order of `slides`; `.to_pandas()` makes a data frame of it.

        Columns: `slide`, `patches` (their number), `probability_<class>` (mean over the patches), `fraction_<class>`
        (of the patches, predicted to be of that class), and `area_mm2` and `area_mm2_<class>`, which are null where
        the positions, the size of the patches or the micrometres per pixel are not known (see `geometry`). Where
        patches overlap, an area counts once, in equal parts for the patches that cover it.

        Raises MismatchError when no patch is of a slide; otherwise as `tables`.

        >>> import numpy as np, tempfile, shazam_fast as sf
        >>> folder = tempfile.mkdtemp()
        >>> archive = sf.write_archive(f"{folder}/patches", {"uni": np.ones((3, 8))}, slides=["s1", "s1", "s2"])
        >>> student = sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1)).eval()
        >>> sf.score(student, archive, device="cpu").by_slide()["patches"].to_pylist()
        [2, 1]
        """
        return slide_table(self)

    def of_slide(self, name: str) -> "pa.Table":
        """All columns of one slide's patches. Raises MismatchError when no patch is of that slide."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = []
        for part, slides in zip(self._parts, self._slides_of_parts, strict=True):
            if name in slides:
                table = self._reader.read(part)
                found.append(table.filter(pc.equal(table["slide"].cast(pa.string()), name)))
        if not found:
            raise MismatchError(f"{self!r}: no patch of slide {name!r}; slides are {list(self.slides)[:5]}")
        return pa.concat_tables(found).unify_dictionaries()

    @property
    def row_bytes(self) -> float:
        """Bytes of one patch's scores as stored, on average."""
        return sum(part.bytes if isinstance(part, Part) else part.nbytes for part in self._parts) / max(1, self._rows)

    @property
    def slides(self) -> tuple[str, ...]:
        """Names of the slides that patches are of, in the order of the parts."""
        return tuple(dict.fromkeys(name for names in self._slides_of_parts for name in names))

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Row in the archive of every patch. int64 [n]."""
        return self._numbers(["row"])[:, 0]

    @cached_property
    def slide_index(self) -> NDArray[np.int64]:
        """Index into `slides` of every patch, int64 [n], -1 unknown."""
        return self._codes("slide", self.slides)

    @cached_property
    def coords(self) -> NDArray[Any]:
        """x and y of every patch as the features' files have them (unit: see `geometry`), -1 where unknown. [n, 2]."""
        return self._numbers(["x", "y"], unknown=-1)

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """The most probable class of every patch, an index into `classes`. int64 [n]."""
        return self._codes("prediction", self.classes)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Probability of each class for every patch, rows summing to 1. float32 [n, C]."""
        return self._numbers([f"probability_{name}" for name in self.classes])

    @cached_property
    def shares(self) -> NDArray[np.float32] | None:
        """Exact share of each teacher in the patch's fused feature, float32 [n, N], rows summing to 1.

        None for residual students, which have no such shares.
        """
        return self._numbers([f"share_{name}" for name in self.teachers]) if self._has_shares else None

    @cached_property
    def influence(self) -> NDArray[np.float32]:
        """How far the predicted class's probability lies above the one without each teacher, float32 [n, E].

        Above 0, the teacher speaks for the predicted class; below 0, against it. Teachers are `influence_teachers`.
        Raises MismatchError unless it was asked for.
        """
        if not self.influence_teachers:
            raise MismatchError("these scores hold no influence; score with influence=True (--influence)")
        return self._numbers([f"influence_{name}" for name in self.influence_teachers])

    @cached_property
    def fused(self) -> NDArray[np.float32]:
        """The fused feature of every patch, float32 [n, D]. Raises MismatchError unless it was asked for."""
        import pyarrow.compute as pc

        chunks = [table["fused"] for table in self.tables(["fused"])]
        return _frozen(np.concatenate([pc.list_flatten(c).to_numpy().reshape(len(c), -1) for c in chunks]))

    @cached_property
    def _slides_of_parts(self) -> list[list[str]]:
        found = [table["slide"].unique().to_pylist() for table in self.tables(["slide"])]
        return [[name for name in names if name is not None] for names in found]

    def _numbers(self, columns: list[str], unknown: int | None = None) -> NDArray[Any]:
        import pyarrow.compute as pc

        parts = []
        for table in self.tables(columns):
            arrays = [table[c] if unknown is None else pc.fill_null(table[c], unknown) for c in columns]
            parts.append(np.stack([array.to_numpy() for array in arrays], axis=1))
        return _frozen(np.concatenate(parts))

    def _codes(self, column: str, names: Sequence[str]) -> NDArray[np.int64]:
        """Index into `names` of a column of names, int64 [n], -1 where there is none."""
        import pyarrow.compute as pc

        code, found = {name: index for index, name in enumerate(names)}, [np.empty(0, np.int64)]
        for table in self.tables([column]):
            for chunk in table[column].chunks:
                codes = np.array([*(code[name] for name in chunk.dictionary.to_pylist()), -1], np.int64)
                found.append(codes[pc.fill_null(chunk.indices, -1).to_numpy()])
        return _frozen(np.concatenate(found))


def open_scores(path: str | Path) -> Scores:
    """Open what `score` wrote into a directory; nothing but the manifest is read.

    Args:
        path: the directory.

    Returns the scores; a part is read, and compared with its checksum, when it is asked for.

    Raises ArchiveError when there are none, the scoring was interrupted, the directory holds something else, or a part
    is missing or has another size than was written.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> folder = tempfile.mkdtemp()
    >>> archive = sf.write_archive(f"{folder}/patches", {"uni": np.ones((3, 8))}, slides=["s1", "s1", "s2"])
    >>> student = sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1)).eval()
    >>> _ = sf.score(student, archive, f"{folder}/scores", device="cpu")
    >>> len(sf.open_scores(f"{folder}/scores"))
    3
    """
    path = require_path("scores", path)
    manifest = read_manifest(path)
    for part in manifest.parts:
        file = path / part.file
        size = file.stat().st_size if file.is_file() else None
        if size != part.bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise ArchiveError(
                f"{file}: {part.bytes} bytes were written, {found} found; score into another directory",
                "missing" if size is None else "truncated" if size < part.bytes else "changed",
            )
    return Scores(manifest, manifest.parts, path)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The array, read-only: `Scores` keeps it and gives it out again."""
    array.flags.writeable = False
    return array
