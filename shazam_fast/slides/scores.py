"""Scores of slides: a table with a row per slide or patient, and the attention of every patch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..archive.archive import FeatureArchive
from ..errors import ArchiveError
from ..formats.geometry import Geometry
from ..runtime.checks import require_path
from ..runtime.documents import Json
from .bags import Bags
from .losses import read_outputs
from .models.inference import Group
from .options import value_columns
from .students import SlideStudent

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TABLE = "slides.parquet"  # one row per slide; the patches are in parts beside it
METADATA_KEY = b"shazam_fast slide scores"


@dataclass(frozen=True)
class SlideScores:
    """Scores of slides (or patients).

    Attributes:
        names: [n] of the slides, or of the patients.
        patients: [n].
        n_patches: int64 [n].
        classes: names of the classes; none for other tasks.
        values: probabilities [n, C], those of several columns one after another; numbers [n, T]; or risks [n, 1],
            larger for an earlier event.
        teachers: names of the teachers.
        shares: share of each teacher in the slide, float32 [n, N]; None for models without shares.
        folds: int64 [n], in which fold each was tested, by a model that has not seen it; None outside training.
        patches: columns row, slide, x, y, attention and share_<teacher> of every patch; None where not asked for.
        targets: columns that are predicted together, with their classes (of numbers none); none for other tasks.
        geometry: {slide: `Geometry`}, unit, patch size and resolution where the features' files tell them.

    >>> values = np.array([[0.2, 0.8]])
    >>> scores = SlideScores(("s1",), ("p1",), np.array([9]), ("luad", "lusc"), values, ("uni",))
    >>> scores.columns()["prediction"], scores.columns()["probability_lusc"]
    (['lusc'], [0.8])
    """

    names: tuple[str, ...]
    patients: tuple[str, ...]
    n_patches: NDArray[np.int64]
    classes: tuple[str, ...]
    values: NDArray[np.float64]
    teachers: tuple[str, ...]
    shares: NDArray[np.float32] | None = None
    folds: NDArray[np.int64] | None = None
    patches: "pa.Table | None" = None
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    geometry: Mapping[str, Geometry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def columns(self) -> dict[str, list[Any]]:
        """The table: name, patient, patches, fold; prediction and probability_<class>, value_<column>, or risk; shares.

        With several columns of classes: prediction_<column> and probability_<column>_<class>.
        """
        found: dict[str, list[Any]] = {
            "name": list(self.names),
            "patient": list(self.patients),
            "patches": self.n_patches.tolist(),
        }
        if self.folds is not None:
            found["fold"] = self.folds.tolist()
        if self.classes:
            found["prediction"] = [self.classes[code] for code in self.values.argmax(axis=1)]
        start = 0
        for column, names in self.targets.items():
            if names:
                codes = self.values[:, start : start + len(names)].argmax(axis=1)
                found[f"prediction_{column}"] = [names[code] for code in codes.tolist()]
            start += len(names)
        columns = value_columns(self.classes, self.targets)
        found |= {name: self.values[:, i].tolist() for i, name in enumerate(columns)}
        if self.shares is not None:
            found |= {f"share_{name}": self.shares[:, i].tolist() for i, name in enumerate(self.teachers)}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return self.columns()

    def to_pandas(self) -> "pd.DataFrame":
        """The table as a DataFrame, one row per slide."""
        import pandas as pd

        return pd.DataFrame(self.columns())


def score_group(student: SlideStudent, archive: FeatureArchive, bags: Bags, group: Group) -> SlideScores:
    """Scores of the bags of a group, with all their patches; members are averaged."""
    import pyarrow as pa

    values = torch.stack([read_outputs(student.config, output.outputs) for output in group.outputs]).mean(dim=0)
    attention = torch.stack([output.attention for output in group.outputs]).mean(dim=0)  # [P]
    slides = archive.slide_index[group.rows]
    coords = archive.coords[group.rows]
    unknown = (coords == -1).all(axis=1)
    patches: dict[str, Any] = {
        "row": group.rows,
        "slide": pa.array([archive.slides[slide] for slide in slides.tolist()]).dictionary_encode(),
        "x": pa.array(coords[:, 0], mask=unknown),
        "y": pa.array(coords[:, 1], mask=unknown),
        "attention": attention.float().cpu().numpy(),
    }
    if (parts := _patch_shares(group, attention)) is not None:
        patches |= {f"share_{name}": parts[:, i] for i, name in enumerate(student.config.teachers)}
    numbers = group.bags.tolist()
    found = [output.shares for output in group.outputs if output.shares is not None]
    return SlideScores(
        names=tuple(bags.names[bag] for bag in numbers),
        patients=tuple(bags.patients[bag] for bag in numbers),
        n_patches=bags.sizes[group.bags],
        classes=tuple(student.config.classes),
        values=values.double().cpu().numpy(),
        teachers=tuple(student.config.teachers),
        shares=torch.stack(found).mean(dim=0).cpu().numpy() if found else None,
        patches=pa.table(patches),
        targets=student.config.targets,
        geometry=dict(archive.geometry),
    )


def _patch_shares(group: Group, attention: Tensor) -> NDArray[np.float32] | None:
    """Teacher shares of every patch, float32 [P, N], or None: means over the members, weighted by their attention.

    So the sum over a slide's patches of attention times share is the slide's share, of the averaged student too.
    """
    weighted = [o.attention[:, None] * o.patch_shares for o in group.outputs if o.patch_shares is not None]
    if not weighted:
        return None
    total = torch.stack(weighted).mean(dim=0)
    plain = torch.stack([o.patch_shares for o in group.outputs if o.patch_shares is not None]).mean(dim=0)
    shares = torch.where(attention[:, None] > 0, total / attention[:, None], plain)
    return shares.float().cpu().numpy()


def join_scores(pieces: Sequence[SlideScores]) -> SlideScores:
    """Scores of several groups, one after another, without their patches."""
    first = pieces[0]
    return replace(
        first,
        names=sum((piece.names for piece in pieces), ()),
        patients=sum((piece.patients for piece in pieces), ()),
        n_patches=np.concatenate([piece.n_patches for piece in pieces]),
        values=np.concatenate([piece.values for piece in pieces]),
        shares=None if first.shares is None else np.concatenate([p.shares for p in pieces if p.shares is not None]),
        patches=None,
    )


def scores_parquet(scores: SlideScores, job: Mapping[str, Json]) -> bytes:
    """The table of slides as a Parquet file, with what made it in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about: dict[str, Any] = {"job": dict(job), "classes": scores.classes, "teachers": scores.teachers}
    about["targets"] = dict(scores.targets)
    about["geometry"] = {name: asdict(one) for name, one in scores.geometry.items()}
    table = pa.table(scores.columns()).replace_schema_metadata({METADATA_KEY: msgspec.json.encode(about)})
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    return bytes(stream.getvalue())


def read_scores(path: str | Path) -> tuple[SlideScores, dict[str, Json]]:
    """The scores in a directory that `sf.slides.score` wrote, without their patches, and the job that made them.

    Raises ArchiveError when the table is missing, damaged or another program's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = require_path("scores", path) / TABLE
    try:
        table = pq.read_table(file)
        about = msgspec.json.decode((table.schema.metadata or {})[METADATA_KEY])
        columns = table.to_pydict()
        targets = {name: tuple(classes) for name, classes in about["targets"].items()}
        shares = [f"share_{name}" for name in about["teachers"]]
        scores = SlideScores(
            names=tuple(columns["name"]),
            patients=tuple(columns["patient"]),
            n_patches=np.array(columns["patches"], dtype=np.int64),
            classes=tuple(about["classes"]),
            values=np.array([columns[n] for n in value_columns(about["classes"], targets)], dtype=np.float64).T,
            teachers=tuple(about["teachers"]),
            shares=np.array([columns[n] for n in shares], dtype=np.float32).T if shares[0] in columns else None,
            targets=targets,
            geometry=msgspec.convert(about["geometry"], dict[str, Geometry]),
        )
        return scores, dict(about["job"])
    except FileNotFoundError:
        raise ArchiveError(
            f"{file}: file not found; expected a directory that sf.slides.score wrote", "missing"
        ) from None
    except (OSError, pa.ArrowException, msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{file}: corrupt, or not a table of slides: {error!r}") from None


def open_scores(path: str | Path) -> SlideScores:
    """The scores in a directory that `sf.slides.score` wrote, with the attention of all patches.

    Args:
        path: the directory.

    Raises ArchiveError when a file is missing or damaged.

    >>> open_scores("/nowhere")
    Traceback (most recent call last):
    ...
    shazam_fast.errors.ArchiveError: /nowhere/slides.parquet: file not found; ...
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    scores, _ = read_scores(path)
    try:
        tables = [pq.read_table(file) for file in sorted(Path(path).glob("part-*.parquet"))]
        patches = pa.concat_tables(tables).unify_dictionaries()
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: the parts cannot be read: {error}") from None
    if patches.num_rows != int(scores.n_patches.sum()):
        raise ArchiveError(f"{path}: {int(scores.n_patches.sum())} patches stated, the parts hold {patches.num_rows}")
    return replace(scores, patches=patches)
