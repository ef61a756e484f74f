"""Find the features at one path, or at one path per teacher, native archives among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..formats.native import is_native, read_contents
from ..formats.pieces import Source
from .directories import find_features
from .selection import require_teachers, sources_of, take_teacher


@dataclass(frozen=True)
class Found:
    """Sources of all teachers, and what native archives among them say: names of classes, records of teachers.

    `path` is what messages name. `trees` is the sources by the paths, other than native archives, below which they
    were found.
    """

    path: Path
    sources: Sequence[Source]
    trees: Mapping[Path, Sequence[Source]]
    classes: tuple[str, ...] = ()
    records: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def choose(self, teachers: Sequence[str] | None) -> Sequence[Source]:
        """The sources of these teachers, in this order; None for all.

        Raises MismatchError for a name that was not found, or that comes twice.
        """
        if teachers is None:
            return self.sources
        require_teachers(self.path, sorted({source.teacher for source in self.sources}), teachers)
        wanted = (source for source in self.sources if source.teacher in teachers)
        return sorted(wanted, key=lambda source: teachers.index(source.teacher))


def find_one(path: Path) -> Found:
    """All teachers' sources at a path that is no native archive. Raises what `find_features` raises."""
    sources = find_features(path)
    return Found(path, sources, {path: sources})


def find_all(paths: Mapping[str, Path]) -> Found:
    """The sources at {teacher: path}, at least one.

    Raises what `find_features` raises, and MismatchError for a native archive of other teachers.
    """
    natives = {
        teacher: take_teacher(read_contents(place), teacher) for teacher, place in paths.items() if is_native(place)
    }
    codes: dict[str, int] = {}
    for contents in natives.values():
        for name in contents.classes:
            codes.setdefault(name, len(codes))
    sources = []
    trees: dict[Path, list[Source]] = {}
    for teacher, place in paths.items():
        if teacher in natives:
            sources += sources_of(natives[teacher], codes)
        else:
            sources += (found := find_features(place, teacher))
            trees.setdefault(place, []).extend(found)
    records = {name.partition(":")[0]: r for c in natives.values() for name in c.teachers
               if (r := c.records.get(name.partition(":")[0]))}  # fmt: skip
    return Found(next(iter(paths.values())), sources, trees, tuple(codes), records)
