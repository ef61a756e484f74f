"""Options that several commands share, and how they are added to a command."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import ArchiveError
from ..runtime.jobs.foreign import require_kind
from .words import SPLIT_NAMES, complete, one_of, optional

if TYPE_CHECKING:
    from ..archive.archive import FeatureArchive

Command = Callable[..., None]
StudentPath = Annotated[Path, typer.Argument(help="Directory of a student.", metavar="STUDENT", show_default=False)]
Device = Annotated[
    str | None, optional("cpu, cuda or cuda:1. Default: a GPU if PyTorch finds one.", words=("cpu", "cuda"))
]
Dataset = Annotated[
    str | None,
    optional("unitopatho or huncrc: SOURCE is that dataset as published.", words=("unitopatho", "huncrc")),
]
Dtype = Annotated[str, one_of("float16 or float32.", ("float16", "float32"))]
DatasetSplit = Annotated[str, one_of("With --dataset: by_slide or as_published.", ("by_slide", "as_published"))]
JudgedSplit = Annotated[str, one_of("Patches to judge by: train, val, test or none.", SPLIT_NAMES)]
AllowTrainedSlides = Annotated[
    bool,
    typer.Option("--allow-trained-slides", help="Take slides that the student was trained on for new ones."),
]
Split = Annotated[str | None, optional("train, val, test or none. Default: all patches.", words=SPLIT_NAMES)]
PatchSize = Annotated[
    float | None,
    optional("Side of a patch in level-0 pixels. Default: as recorded for each slide by the tool that cut it."),
]
Mpp = Annotated[
    float | None,
    optional("Micrometres per level-0 pixel, for positions in micrometres (STAMP). Default: as recorded."),
]


@dataclass(frozen=True)
class Features:
    """The features that a command reads.

    Args:
        source: a path, or {teacher: path}.
        given: what else `shazam_fast.open` and `shazam_fast.convert` are to be told, by the names of their arguments.
    """

    source: Path | Mapping[str, str]
    given: Mapping[str, Any]

    def open(self) -> "FeatureArchive":
        """Open them in place."""
        from ..archive.opening import open_archive

        return open_archive(self.source, **self.given)


def _option(name: str, kind: Any, help: str, metavar: str | None = None) -> inspect.Parameter:
    annotation = Annotated[kind | None, optional(help, metavar)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


FEATURE_OPTIONS = (
    inspect.Parameter(
        "archive",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None,
            typer.Argument(
                metavar="ARCHIVE",
                show_default=False,
                help="An archive, or a folder or file of features (TRIDENT, CLAM, STAMP, ...). "
                "Leave it out with --teacher NAME=PATH.",
            ),
        ],
    ),
    _option(
        "labels",
        str,
        "CSV with columns slide_id and label (optionally x and y), or the word folder: the name of the folder that a "
        "slide's file is in.",
        "CSV",
    ),
    _option(
        "splits",
        str,
        "CSV with columns slide_id and split (train, val, test), CLAM's splits_*.csv, or FILE:COLUMN.",
        "CSV",
    ),
    _option("groups", str, "CSV with columns slide_id and patient. A patient stays in one split.", "CSV"),
    _option("label_column", str, "Column of the labels' CSV that holds the label.", "NAME"),
    _option("classes", list[str], "A class; repeat for all, in label order. Default: natural order.", "NAME"),
    _option(
        "teacher",
        list[str],
        "Use this teacher only; repeat for more. NAME=PATH for each teacher in place of ARCHIVE joins features "
        "from several places.",
        "NAME|NAME=PATH",
    ),
    _option(
        "slides",
        list[str],
        "Use this slide only; repeat for more. Or a .txt or .csv file of slide names, one per line.",
        "NAME|FILE",
    ),
    _option(
        "on_error",
        str,
        "At a slide that cannot be read or that a teacher lacks: raise, or skip to leave it out for all teachers. "
        "Default: raise.",
    ),
    _option(
        "val",
        float,
        "Make splits: fraction of the patches for validation, whole patients (or slides). Default, with --test: 0.15.",
    ),
    _option("test", float, "Make splits: fraction of the patches for the test. Default, with --val: 0.15; 0 for none."),
    _option("seed", int, "Random seed of --val and --test. Default: 0."),
)
SPLIT_OPTIONS = ("val", "test", "seed")


def add_options(
    options: Sequence[inspect.Parameter], into: str, collect: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Command], Command]:
    """A decorator that gives a command more options and hands them over as one argument.

    Args:
        options: as keyword-only parameters, annotated for typer; those that the command has are not added again.
        into: the command's parameter that takes what `collect` makes of {name: value}.
        collect: called with the value of every option.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters
        added = [option for option in options if option.name not in own]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own.values() if p.name != into] + added

        def run(**values: Any) -> None:
            collected = collect({option.name: values[option.name] for option in options})
            command(**{name: value for name, value in values.items() if name in own}, **{into: collected})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def config_options(
    config: type[Any], help: Mapping[str, str], words: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> list[inspect.Parameter]:
    """One option per field of a dataclass, with its type and default, for `add_options`.

    Args:
        config: the dataclass; every field has a default.
        help: field -> its help; fields that are annotated for typer need none.
        words: field -> what a shell completes its value to.
    """
    found, kinds = [], get_type_hints(config, include_extras=True)
    for field in fields(config):
        kind = kinds[field.name]
        if field.name in help:
            completion = complete(words[field.name]) if field.name in words else None
            shown = field.default is not None
            kind = Annotated[kind, typer.Option(help=help[field.name], show_default=shown, autocompletion=completion)]
        found.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind)
        )
    return found


# Keyword-only parameters, of which only the annotations are used.
def _sheet(
    *,
    images: Annotated[Path, typer.Option(help="Folder of whole-slide images, or one image.")],
    out: Annotated[Path, typer.Option(help="File for the sheet, .png, .svg or .pdf.")],
    count: Annotated[int, typer.Option(help="Patches per class.")] = 8,
    per_slide: Annotated[int, typer.Option(help="Most patches of one slide.")] = 2,
    patch_size: PatchSize = None,
    mpp: Mpp = None,
) -> None:
    """Options of the commands that write a sheet of patches, under the names of the functions' arguments."""


takes_sheet = add_options(list(inspect.signature(_sheet, eval_str=True).parameters.values()), "sheet", dict)


def parse_pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """{name: path} of what was given for an option, NAME=PATH each.

    >>> parse_pairs(["uni=a.h5"], "--teacher")
    {'uni': 'a.h5'}
    """
    pairs = [pair.partition("=") for pair in given]
    if not all(name and path for name, _, path in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter(f"{option} NAME=PATH, each name once, expected; found {', '.join(given)}")
    return {name: path for name, _, path in pairs}


def _collect_features(values: Mapping[str, Any], *, seeded: bool) -> Features:
    """The features that were asked for; `seeded`: the command has a --seed of its own that is also the splits'."""
    teachers = values["teacher"] or []
    given: dict[str, Any] = {
        name: values[name] for name in ("labels", "groups", "label_column", "classes", "on_error") if values[name]
    }
    if splits := _splits(values, seeded):
        given["splits"] = splits
    if values["slides"]:
        given["slides"] = [slide for value in values["slides"] for slide in _slides(value)]
    source: Path | dict[str, str] | None = values["archive"]
    if any("=" in teacher for teacher in teachers):
        if source is not None:
            raise typer.BadParameter("give ARCHIVE, or --teacher NAME=PATH for each teacher, not both")
        source = parse_pairs(teachers, "--teacher")
    elif teachers:
        given["teachers"] = teachers
    if source is None:
        raise typer.BadParameter("ARCHIVE is missing (or give --teacher NAME=PATH for each teacher)")
    for path in source.values() if isinstance(source, dict) else [source]:
        require_kind(Path(path), "archive")
    return Features(source, given)


def _splits(values: Mapping[str, Any], seeded: bool) -> Any:
    wanted = {name: values[name] for name in ("val", "test") if values[name] is not None}
    if wanted and values["splits"]:
        raise typer.BadParameter("give --splits, or --val and --test, not both")
    if not wanted:
        if values["seed"] is not None and not seeded:
            raise typer.BadParameter("--seed is the seed of --val and --test; give one of them")
        return values["splits"]
    from ..annotation.splits import GroupedSplit

    return GroupedSplit(**wanted, seed=values["seed"] or 0)


def _slides(value: str) -> list[str]:
    """Names of slides: the value itself, or what a .txt or .csv file holds."""
    path = Path(value)
    if path.suffix.lower() not in (".txt", ".csv"):
        return [value]
    if path.suffix.lower() == ".csv":
        return _slides_of_table(path)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ArchiveError(f"--slides {path}: cannot be read: {error}") from None
    if not any(names):
        raise ArchiveError(f"--slides {path}: one slide name per line expected, found none")
    return [name for name in names if name]


def _slides_of_table(path: Path) -> list[str]:
    from ..tables.reader import read_table

    table = read_table(path)
    column = table.find("slide")
    if column is None:
        raise ArchiveError(
            f"--slides {path}: a column slide_id (or slide, filename, ...) expected, found {table.headers}"
        )
    return list(dict.fromkeys(name for name in table.texts(column).tolist() if name))


def opens_features(*, seeded: bool = False, splits_itself: bool = False) -> Callable[[Command], Command]:
    """Give a command ARCHIVE and all options that say which features, labels and splits; it gets a `Features`.

    Args:
        seeded: the command has a --seed of its own, which makes the splits too.
        splits_itself: the command has --val, --test and --seed of its own, for splits that it makes itself.
    """
    own = SPLIT_OPTIONS if splits_itself else ()
    options = [option for option in FEATURE_OPTIONS if option.name not in own]
    unset = dict.fromkeys(own)
    return add_options(options, "features", lambda values: _collect_features({**values, **unset}, seeded=seeded))
