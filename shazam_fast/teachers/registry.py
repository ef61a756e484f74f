"""Teachers by name: the table that comes with the package, and what users add to it."""

from difflib import get_close_matches

from ..errors import MismatchError, ShazamError
from .spec import TeacherSpec
from .table import BUILT_IN

_registry: dict[str, TeacherSpec] = {spec.name: spec for spec in BUILT_IN}


def get_teacher(name: str) -> TeacherSpec:
    """Look up a teacher by name.

    Args:
        name: as `list_teachers` has it.

    Returns its spec.

    Raises MismatchError, with the nearest names, when there is none.

    >>> get_teacher("uni").dim
    1024
    """
    if name in _registry:
        return _registry[name]
    folded = {known.replace("-", "").replace("_", ""): known for known in _registry}
    near = get_close_matches(name.lower().replace("-", "").replace("_", ""), folded, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(folded[n] for n in near)}? " if near else ""
    raise MismatchError(
        f"no teacher is called {name!r}; {meant}`shazam-fast teachers` lists them, sf.register_teacher adds one"
    )


def list_teachers() -> tuple[TeacherSpec, ...]:
    """All teachers: the package's own, in the order of its table, then those that were registered.

    >>> [spec.name for spec in list_teachers()][:3]
    ['uni', 'uni2', 'virchow']
    """
    return tuple(_registry.values())


def register_teacher(spec: TeacherSpec) -> None:
    """Add a teacher, or replace one that was added before.

    Args:
        spec: the teacher. Its name must not be one of the package's own table, which means the same everywhere;
            except conch-v1.5, whose model code is not part of this package and may be given here.

    Raises ShazamError when the name is taken.

    >>> register_teacher(TeacherSpec("vit-tiny", dim=192, arguments={"model_name": "vit_tiny_patch16_224"}))
    >>> get_teacher("vit-tiny").dim
    192
    """
    built_in = next((known for known in BUILT_IN if known.name == spec.name), None)
    if built_in is not None and (built_in.library != "torch" or "create" not in spec.arguments):
        raise ShazamError(f"{spec.name!r} is a teacher of shazam_fast; register yours under a name of its own")
    _registry[spec.name] = spec
