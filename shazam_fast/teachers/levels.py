"""The levels of each teacher among the names of an archive."""

from collections.abc import Iterable

from ..errors import MismatchError
from ..runtime.levels import LEVELS, name_level, split_level


def group_levels(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Group the names of an archive's teachers into teachers that have features of all three levels.

    Args:
        names: "<teacher>:low", "<teacher>:mid", and "<teacher>" (or "<teacher>:high"), in any order.

    Returns the names of the low, mid and high feature of each teacher, teachers in order of first appearance.

    Raises MismatchError naming the levels that a teacher lacks, or two names that mean the same level.

    >>> group_levels(["uni:low", "uni:mid", "uni"])
    {'uni': ('uni:low', 'uni:mid', 'uni')}
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        teacher, level = split_level(name)
        other = found.setdefault(teacher, {}).setdefault(level, name)
        if other != name:
            raise MismatchError(f"{other!r} and {name!r} both are the level {level} of teacher {teacher!r}; choose one")
    lacking = {
        teacher: [f"{level} ({name_level(teacher, level)!r})" for level in LEVELS if level not in levels]
        for teacher, levels in found.items()
        if len(levels) < len(LEVELS)
    }
    if lacking:
        missing = "; ".join(f"{teacher!r} lacks {', '.join(names)}" for teacher, names in lacking.items())
        raise MismatchError(
            f"features of three levels of every teacher expected: {missing}; extract them with levels={LEVELS} "
            f"(--levels {','.join(LEVELS)}), or choose teachers that have all three"
        )
    return {teacher: (levels["low"], levels["mid"], levels["high"]) for teacher, levels in found.items()}
