"""Predictions for features in memory, the same for students, ensembles and their folded forms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..errors import MismatchError, NonFiniteError
from ..runtime.summaries import name_some, summary_html
from .config import StudentConfig
from .matching import TeacherMatch

ROWS = 4096  # patches per forward pass
HERE = "features"  # what messages call features in memory

Features = ArrayLike | Tensor | Sequence[Any] | Mapping[str, Any]


class Predictor(nn.Module):
    """A network with a `StudentConfig` that classifies patches."""

    config: StudentConfig

    def predict(self, features: Features, *, allow_missing_teachers: bool = False) -> NDArray[np.str_]:
        """The most probable class of every patch, by name. [n].

        Args and Raises as for `predict_proba`.

        >>> import numpy as np, shazam_fast as sf
        >>> student = sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1))
        >>> student.predict(np.ones((3, 8))).shape
        (3,)
        """
        names = np.array(self.config.classes)
        chosen: NDArray[np.str_] = names[
            self.predict_proba(features, allow_missing_teachers=allow_missing_teachers).argmax(axis=1)
        ]
        return chosen

    @torch.inference_mode()
    def predict_proba(self, features: Features, *, allow_missing_teachers: bool = False) -> NDArray[np.float32]:
        """Probability of each class for features in memory. float32 [n, C].

        Args:
            features: arrays or tensors of any float type, as the teachers gave them (not standardised): one [n, sum of
                dims] with the teachers side by side in the order of `config.teachers`; or one [n, dim] per teacher in
                that order; or {teacher: [n, dim]}, from which teachers may be missing if the student was trained with
                teacher dropout.
            allow_missing_teachers: predict even if teachers are missing and the student was trained without teacher
                dropout; results may be unreliable.

        Raises:
            MismatchError: teachers, widths or numbers of rows differ from what is expected.
            NonFiniteError: a NaN or infinite feature; names the teacher and the row.

        >>> import numpy as np, shazam_fast as sf
        >>> student = sf.Student(sf.StudentConfig({"uni": 8, "gigapath": 6}, ("normal", "tumour"), dim=8, depth=1))
        >>> student.predict_proba({"uni": np.ones((3, 8)), "gigapath": np.ones((3, 6))}).shape
        (3, 2)
        """
        blocks = _blocks(self.config, features)
        match = TeacherMatch(HERE, {n: b.shape[1] for n, b in blocks.items()}, self.config, allow_missing_teachers)
        like = next(tensor for tensor in self.state_dict().values() if tensor.is_floating_point())
        whole = torch.cat([block.to(like.device, like.dtype) for block in blocks.values()], dim=1)
        found = [self(*match(part)).logits.softmax(dim=1).float().cpu() for part in whole.split(ROWS)]
        result: NDArray[np.float32] = torch.cat(found).numpy()
        if not np.isfinite(result).all():
            raise _not_finite(blocks, result)
        return result

    @property
    def parameter_count(self) -> int:
        """How many numbers the network holds."""
        return sum(tensor.numel() for tensor in self.state_dict().values())

    def __repr__(self) -> str:
        config = self.config
        teachers = name_some(f"{name} {dim}" for name, dim in config.teachers.items())
        shape = f"block={config.block!r}, dim={config.dim}, depth={config.depth}"
        return (
            f"{type(self).__name__}(teachers: {teachers}; classes: {name_some(config.classes)}; {shape}; "
            f"{self.parameter_count:,} numbers)"
        )

    def _repr_html_(self) -> str:
        """For notebooks."""
        config = self.config
        facts = {
            "classes": name_some(config.classes, 20),
            "block": config.block,
            "width D": config.dim,
            "layers K": config.depth,
            "teacher dropout": config.teacher_dropout,
            "numbers": f"{self.parameter_count:,}",
        }
        return summary_html(type(self).__name__, facts, ("teacher", "columns"), config.teachers.items())


def _blocks(config: StudentConfig, features: Features) -> dict[str, Tensor]:
    """{teacher: [n, dim]}, all with the same n."""
    if isinstance(features, Mapping):
        blocks = {str(name): _matrix(block, f"features of {name!r}") for name, block in features.items()}
    elif isinstance(features, list | tuple) and any(np.ndim(block) == 2 for block in features):
        if len(features) != len(config.teachers):
            raise MismatchError(
                f"features: one array per teacher expected, {len(config.teachers)} in the order "
                f"{', '.join(config.teachers)}; found {len(features)}; give {{teacher: array}} where some are missing"
            )
        pairs = zip(config.teachers, features, strict=True)
        blocks = {name: _matrix(block, f"features of {name!r}") for name, block in pairs}
    else:
        whole = _matrix(features, "features")
        dims = list(config.teachers.values())
        if whole.shape[1] != sum(dims):
            raise MismatchError(
                f"features: [n, {sum(dims)}] expected, the teachers {dict(config.teachers)} side by side; found "
                f"{list(whole.shape)}. Give one array per teacher, or {{teacher: array}}, where they are apart"
            )
        blocks = dict(zip(config.teachers, whole.split(dims, dim=1), strict=True))
    counts = {name: len(block) for name, block in blocks.items()}
    if not counts or len(set(counts.values())) > 1:
        raise MismatchError(f"features: the same number of rows for every teacher expected, found {counts}")
    return blocks


def _matrix(features: Any, what: str) -> Tensor:
    try:
        matrix = features.detach() if isinstance(features, Tensor) else torch.from_numpy(_numbers(features))
    except (TypeError, ValueError) as error:
        raise MismatchError(f"{what}: an array of numbers [n, columns] expected: {error}") from None
    if matrix.ndim != 2:
        hint = "; for one patch give features[None]" if matrix.ndim == 1 else ""
        raise MismatchError(f"{what}: an array [n, columns] expected, found shape {list(matrix.shape)}{hint}")
    return matrix


def _numbers(features: Any) -> NDArray[Any]:
    array = np.asarray(features)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"found values of type {array.dtype}")
    return array.astype(array.dtype.newbyteorder("=") if array.dtype.kind == "f" else np.float64)


def _not_finite(blocks: Mapping[str, Tensor], result: NDArray[np.float32]) -> NonFiniteError:
    """Which feature it is; or that the network's numbers grew too large."""
    for name, block in blocks.items():
        if (bad := ~torch.isfinite(block)).any():
            row, column = bad.nonzero()[0].tolist()
            return NonFiniteError(
                f"features of {name!r}, row {row}, column {column}: {block[row, column].item()} is not finite; leave "
                "the patch out, or extract its features again"
            )
    row = int(np.argmin(np.isfinite(result).all(axis=1)))
    return NonFiniteError(f"features, row {row}: gives non-finite logits; predict with student.double()")
