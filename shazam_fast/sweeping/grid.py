"""Which students a sweep trains: a grid or a list of options, and which of them can be trained together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import product
from typing import Any

from ..errors import ShazamError
from ..training.config import TrainConfig

# Options in which students that are trained together may differ; students that differ in others are trained apart.
OWN = ("seed", "lr", "weight_decay", "lam", "delta", "balance", "teacher_heads", "patience", "selection")
OFFERED = {"backend": ("auto",), "precision": ("ieee",), "block": ("bare", "residual")}  # of options with more values

Options = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]


def list_options(students: Options) -> list[dict[str, Any]]:
    """The options of every student.

    Args:
        students: a grid {option: values}, of which every combination is taken, the last option changing fastest; or a
            list of {option: value}, one per student.

    Raises ShazamError when there is no student, an option is unknown, or `students` is something else.

    >>> list_options({"lam": [0.0, 0.5], "seed": [1, 2]})[1]
    {'lam': 0.0, 'seed': 2}
    """
    if isinstance(students, Mapping):
        for name, values in students.items():
            if isinstance(values, str) or not hasattr(values, "__iter__"):
                raise ShazamError(f"sweep: a list of values of {name!r} expected, found {values!r}; write [{values!r}]")
        columns = [list(values) for values in students.values()]
        found = [dict(zip(students, values, strict=True)) for values in product(*columns)] if students else []
    elif isinstance(students, Sequence) and all(isinstance(options, Mapping) for options in students):
        found = [dict(options) for options in students]
    else:
        raise ShazamError(
            "sweep: a grid {option: [values]} or a list of {option: value} expected, "
            f"found {type(students).__name__}"
        )
    if not found:
        raise ShazamError("sweep: at least one student expected, found none; write for example {'seed': [0, 1, 2]}")
    _require_known(found)
    return found


def _require_known(found: list[dict[str, Any]]) -> None:
    known = [field.name for field in fields(TrainConfig)]
    for index, options in enumerate(found):
        if unknown := [name for name in options if name not in known]:
            raise ShazamError(
                f"sweep: student {index}: there is no option {unknown[0]!r}; options are {', '.join(known)}"
            )


def require_sweepable(config: TrainConfig) -> None:
    """Raise ShazamError when a configuration asks for what a sweep does not offer."""
    for name, offered in OFFERED.items():
        if getattr(config, name) not in offered:
            raise ShazamError(
                f"{name}={getattr(config, name)!r}: a sweep offers {' and '.join(map(repr, offered))} alone; "
                "train this student with train()"
            )


def group(configs: Sequence[TrainConfig]) -> list[list[int]]:
    """Numbers of the configurations that can be trained together, group after group.

    >>> group([TrainConfig(seed=1), TrainConfig(depth=3), TrainConfig(lr=0.01)])
    [[0, 2], [1]]
    """
    found: dict[tuple[Any, ...], list[int]] = {}
    for index, config in enumerate(configs):
        values = asdict(config)
        shared = tuple(value for name, value in values.items() if name not in OWN)
        found.setdefault((*shared, config.teacher_heads > 0), []).append(index)
    return list(found.values())
