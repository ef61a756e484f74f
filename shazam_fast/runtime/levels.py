"""How a teacher's features of three depths are spelt as names of teachers, wherever features are read or written.

low     CLS token of an early block     "uni:low"
mid     CLS token of a middle block     "uni:mid"
high    the teacher's own feature       "uni", as without levels; "uni:high" (version 0.1) means the same
"""

from collections.abc import Iterable

from ..errors import MismatchError

LEVELS = ("low", "mid", "high")
MARK = ":"  # between teacher and level; no teacher's own name has one


def name_level(teacher: str, level: str) -> str:
    """The name, in archives and students, of a teacher's feature of a level.

    >>> name_level("uni", "low"), name_level("uni", "high")
    ('uni:low', 'uni')
    """
    return teacher if level == "high" else f"{teacher}{MARK}{level}"


def split_level(name: str) -> tuple[str, str]:
    """The teacher and the level that a name stands for.

    >>> split_level("uni:mid"), split_level("uni"), split_level("uni:high")
    (('uni', 'mid'), ('uni', 'high'), ('uni', 'high'))
    """
    teacher, mark, level = name.rpartition(MARK)
    return (teacher, level) if mark and teacher and level in LEVELS else (name, "high")


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
