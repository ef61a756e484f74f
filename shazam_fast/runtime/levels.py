"""How a teacher's features of three depths are spelt as names of teachers, wherever features are read or written.

low     CLS token of an early block     "uni:low"
mid     CLS token of a middle block     "uni:mid"
high    the teacher's own feature       "uni", as without levels; "uni:high" (version 0.1) means the same
"""

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
