"""Where the patches of a slide lie: unit of their positions, size, level, resolution, and the reader of the slide."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Unit = Literal["pixels", "micrometres"]
UNITS: Mapping[str, Unit] = {
    "px": "pixels", "pixel": "pixels", "pixels": "pixels",
    "um": "micrometres", "\u00b5m": "micrometres", "\u03bcm": "micrometres", "micron": "micrometres",
    "microns": "micrometres", "micrometre": "micrometres", "micrometres": "micrometres", "micrometer": "micrometres",
    "micrometers": "micrometres",
}  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Size, level and resolution of the patches of one slide. None means not known; nothing is guessed.

    Args:
        unit: of positions and of `patch_size`: "pixels" of level 0, or "micrometres".
        patch_size: side of a patch in that unit.
        level: pyramid level that the patches were read from.
        mpp: micrometres per pixel of level 0.
        reader: library that read the slide, with its version, such as "openslide 4.0.0".

    Raises ValueError for another unit, or numbers that are not positive.

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


NOT_KNOWN = Geometry()


def unit_of(text: object) -> Unit:
    """The unit that a file's attribute names. Raises ValueError for one that is not known: it is never guessed.

    >>> unit_of("um")
    'micrometres'
    """
    unit = UNITS.get(text.strip().lower()) if isinstance(text, str) else None
    if unit is None:
        raise ValueError(
            f"unit {text!r:.50} is not known; 'um' (micrometres) or 'px' (pixels of level 0) expected: write the "
            "positions in one of them, and name it"
        )
    return unit


def geometry_of(attributes: Mapping[str, object]) -> Geometry:
    """What the attributes of coordinates say, as TRIDENT, CLAM and AtlasPatch write them.

    The size at level 0 is `patch_size_level0`, or `patch_size` x the downsample of `patch_level` x `custom_downsample`
    (older CLAM, Fishing-Rod), or unknown where the downsample of a level above 0 is not given.

    Args:
        attributes: name -> number, or array of equal numbers.

    Raises ValueError when one is not a positive number.

    >>> geometry_of({"patch_size": 256, "patch_level": 0, "custom_downsample": 2}).patch_size
    512.0
    """
    level, size = _number(attributes, "patch_level"), _number(attributes, "patch_size_level0")
    if size is None and level is not None:
        read = _number(attributes, "patch_size")
        downsample = 1.0 if level == 0 else _number(attributes, "downsample")
        custom = _number(attributes, "custom_downsample")
        if read is not None and downsample is not None:
            size = read * downsample * (1.0 if custom is None else custom)
    if size is None and level is None:
        return NOT_KNOWN
    if level is not None and not level.is_integer():
        raise ValueError(f"patch_level is {level}, a whole number was expected")
    return Geometry("pixels", size, None if level is None else int(level))


def _number(attributes: Mapping[str, object], name: str) -> float | None:
    if name not in attributes:
        return None
    try:
        numbers = np.asarray(attributes[name]).astype(np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([])
    if not numbers.size or not np.isfinite(numbers).all() or numbers.min() < 0:
        raise ValueError(f"{name} is {attributes[name]!r:.50}, a number was expected")
    return float(numbers[0])


def merge_geometry(known: Geometry, other: Geometry) -> Geometry | str:
    """The geometry of one slide from two teachers' files; text that names the difference if they contradict each other.

    Unit, patch size and level must agree where both are known, and the resolution to 1 %. Two readers are both named.

    >>> merge_geometry(Geometry("pixels", 256), Geometry("pixels", 1024))
    'patch_size 256 and 1024 pixels'
    >>> merge_geometry(Geometry("pixels", 256), Geometry(level=0))
    Geometry(unit='pixels', patch_size=256, level=0, mpp=None, reader=None)
    """
    if other in (known, NOT_KNOWN):
        return known
    merged = dict(vars(known))
    for name, value in vars(other).items():
        mine = merged[name]
        if mine is None:
            merged[name] = value
        elif value is not None and value != mine:
            if name == "reader":
                merged[name] = ", ".join(sorted({*mine.split(", "), *value.split(", ")}))
            elif name != "mpp" or not math.isclose(mine, value, rel_tol=0.01):
                unit = f" {known.unit}" if name == "patch_size" and known.unit else ""
                return f"{name} {mine} and {value}{unit}".replace(".0 ", " ")
    return Geometry(**merged)


def describe_geometry(geometry: Mapping[str, Geometry]) -> dict[str, dict[str, Any]]:
    """The geometry as archive.json holds it: {slide: {field: value}}, without the fields that are not known.

    >>> describe_geometry({"s1": Geometry("pixels", 256)})
    {'s1': {'unit': 'pixels', 'patch_size': 256}}
    """
    known = {slide: {k: v for k, v in asdict(one).items() if v is not None} for slide, one in geometry.items()}
    return {slide: fields for slide, fields in known.items() if fields}
