"""Where the patches of a slide lie: the unit of their positions, their size, level and resolution, and who read them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Unit = Literal["pixels", "micrometres"]


@dataclass(frozen=True)
class Geometry:
    """What is known of the patches of one slide. None means not known; nothing is guessed.

    Args:
        unit: of positions and of `patch_size`: "pixels" of level 0, or "micrometres".
        patch_size: side of a patch in that unit.
        level: pyramid level that the patches were read from.
        mpp: micrometres per pixel of level 0.
        reader: library that read the slide, with its version, such as "openslide 4.0.0".

    >>> Geometry("pixels", patch_size=512, mpp=0.25)
    Geometry(unit='pixels', patch_size=512, level=None, mpp=0.25, reader=None)
    """

    unit: Unit | None = None
    patch_size: float | None = None
    level: int | None = None
    mpp: float | None = None
    reader: str | None = None

    def __post_init__(self) -> None:
        if self.unit not in (None, "pixels", "micrometres"):
            raise ValueError(f"unit is 'pixels' or 'micrometres', not {self.unit!r}")
        for name in ("patch_size", "mpp"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name} is a positive number, not {value!r}")
        if self.level is not None and self.level < 0:
            raise ValueError(f"level is 0 or more, not {self.level!r}")


def describe_geometry(geometry: Mapping[str, Geometry]) -> dict[str, dict[str, Any]]:
    """What archive.json and other documents hold: {slide: {field: value}}, without the fields that are not known.

    >>> describe_geometry({"s1": Geometry("pixels", 256)})
    {'s1': {'unit': 'pixels', 'patch_size': 256}}
    """
    known = {slide: {k: v for k, v in asdict(one).items() if v is not None} for slide, one in geometry.items()}
    return {slide: fields for slide, fields in known.items() if fields}


def parse_geometry(document: object) -> dict[str, Geometry]:
    """The mapping that `describe_geometry` wrote. Raises ValueError, which `msgspec.ValidationError` is, for another.

    >>> parse_geometry({"s1": {"unit": "pixels", "patch_size": 256}})["s1"].patch_size
    256.0
    """
    import msgspec

    return msgspec.convert(document, dict[str, Geometry])
