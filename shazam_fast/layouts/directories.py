"""Which tool wrote a directory, and with it the teachers and slides that it holds.

TRIDENT     {job}/features_{encoder}/{slide}.h5, .pt or .npy; torchmil likewise, with coords/ beside
CLAM        h5_files/{slide}.h5; pt_files/{slide}.pt, written last; patches/{slide}.h5 with the geometry
slide2vec   tile_embeddings/[{class}/]{slide}.pt and .meta.json; tiles/[{class}/]{slide}.coordinates.npz (hs2p)
STAMP       {extractor}-{hash}/{slide}.h5
AtlasPatch  patches/{slide}.h5 with all encoders
any other   one file per slide, all of one kind, in folders of any names
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path

from msgspec.structs import replace

from ..errors import ArchiveError, MismatchError, NotInPlaceError
from ..formats import hdf5, npy, torch_zip
from ..formats import safetensors as safetensors_file
from ..formats.pieces import Piece, Source
from ..tables.slide_names import name_slides, show
from . import beside, tools
from .discovery import KINDS, MAPPED_KINDS, File, Listing, kind_of, walk
from .several import select_teacher, split_teachers
from .unmapped import read_unmapped

logger = logging.getLogger("shazam_fast")

READERS: Mapping[str, Callable[[Path], Piece]] = {
    ".h5": hdf5.read_piece,
    ".pt": torch_zip.read_piece,
    ".npy": npy.read_piece,
    ".safetensors": safetensors_file.read_piece,
}
INDEXED = (".h5",)  # kinds that are slow to read; the headers of others are read as fast as an index
CONTAINERS = ("h5_files", "pt_files", "tile_embeddings")  # folders of one teacher, which is the folder above them
FEATURES = "features_"  # prefix of TRIDENT's and torchmil's folders
OTHER_FOLDERS = frozenset({
    "patches", "coords", "labels", "patch_labels", "tiles", "slide_embeddings", "slide_latents", "patient_embeddings",
    "hierarchical_embeddings", "patient_features", "image_embeddings", "dense_embeddings", "masks", "stitches",
    "preview",
})  # of the same tools, without patch features  # fmt: skip


def find_features(path: Path, teacher: str | None = None) -> list[Source]:
    """The feature files at a path: a file, or a directory in any tool's layout.

    Args:
        path: what was given to `shazam_fast.open` or `shazam_fast.convert`.
        teacher: which teacher to take, or the name of the only one; None for all under their own names.

    Returns one source per teacher, slide and part. Raises ArchiveError when nothing there looks like features.
    """
    if not path.exists():
        raise ArchiveError(f"{path}: no such file or directory", "missing")
    if path.is_dir():
        sources = tools.find_stores(path, [path]) if path.suffix.lower() == ".zarr" else _find_in(walk(path))
    else:
        sources = _find_file(path)
    return select_teacher(path, sources, teacher)


def _find_file(path: Path) -> list[Source]:
    kind = kind_of(path.name)
    if not kind:
        raise ArchiveError(f"{path}: features are read from {', '.join(KINDS)}, not from {path.suffix or 'this'}")
    file = File("", path.name, kind, os.fspath(path))
    if kind == ".h5":
        return _find_hdf5([file], {os.fspath(path): ""}, path.stem)
    return split_teachers([_source(path.stem, "", file)])


def _find_in(listing: Listing) -> list[Source]:
    """The sources of a directory."""
    if listing.archives:
        raise MismatchError(
            f"{listing.root}: it holds native archives ({show([a.name for a in listing.archives])}); open one of them, "
            "or several as {teacher: path}"
        )
    sources = tools.find_tool(listing) or _find_named_folders(listing) or _find_folder(listing)
    listing.report()
    return sources


# Folders that name a teacher
def _find_named_folders(listing: Listing) -> list[Source]:
    """CLAM, slide2vec, TRIDENT and torchmil, one or several teachers; nothing when there is none of their folders."""
    homes: dict[Path, list[tuple[str, str, File]]] = {}
    others = []
    for folder, files in groupby(listing.files, attrgetter("folder")):
        if place := _home_of(listing.root, folder):
            home, container, inner = place
            homes.setdefault(home, []).extend((container, inner, file) for file in files)
        elif not _is_other(folder):
            others += [file for file in files if file.kind in MAPPED_KINDS]
    homes = {home: found for home, found in homes.items() if any(f.kind in (*MAPPED_KINDS, ".npz") for *_, f in found)}
    jobs = sorted({home.parent for home in homes if home.name.startswith(FEATURES)})
    if len(jobs) > 1:
        raise ArchiveError(
            f"{listing.root}: several jobs of TRIDENT; open one of them, or several teachers as {{teacher: path}}: "
            f"{show([os.path.relpath(job, listing.root) for job in jobs])}"
        )
    if homes:
        for file in others:
            listing.pass_over(file.place, "outside the teachers' folders")
    for job in jobs:
        for folder in sorted(job.glob(f"{FEATURES}*")):
            if folder not in homes and folder.is_dir():
                listing.pass_over(os.fspath(folder), "of the teachers' folders, without features")
    return _join_homes({home: _find_teacher(home, found) for home, found in sorted(homes.items())})


def _join_homes(homes: Mapping[Path, list[Source]]) -> list[Source]:
    """The sources of all teachers' folders, which must have different teachers."""
    owner: dict[str, Path] = {}
    for home, sources in homes.items():
        for name in {source.teacher for source in sources}:
            if owner.setdefault(name, home) != home:
                raise MismatchError(f"{owner[name]} and {home} both hold {name!r}; open them as {{teacher: path}}")
    return [source for sources in homes.values() for source in sources]


def _is_other(folder: str) -> bool:
    return any(name in OTHER_FOLDERS or name.startswith("slide_features_") for name in folder.split("/"))


def _home_of(root: Path, folder: str) -> tuple[Path, str, str] | None:
    """(the teacher's folder, the folder in it that holds the features, the rest) of a folder below `root`."""
    parts = folder.split("/") if folder else []
    base = Path(os.path.abspath(root))  # "." has no name
    above = [base.name] if base.name in CONTAINERS or base.name.startswith(FEATURES) else []
    if above:
        root, parts = root.parent if root.name == base.name else base.parent, above + parts
    for last in range(len(parts) - 1, -1, -1):
        if parts[last] in CONTAINERS:
            return root.joinpath(*parts[:last]), parts[last], "/".join(parts[last + 1 :])
        if parts[last].startswith(FEATURES):
            return root.joinpath(*parts[: last + 1]), "", "/".join(parts[last + 1 :])
    return None


def _find_teacher(home: Path, found: Sequence[tuple[str, str, File]]) -> list[Source]:
    """The sources of one teacher's folder; `found` is (container, folders in it, file)."""
    containers = {container for container, _, _ in found}
    if len(others := sorted(containers - {"pt_files" if "h5_files" in containers else ""})) > 1:
        names = ", ".join(name or home.name for name in others)
        raise ArchiveError(f"{home}: features in several folders ({names}); open one of them")
    name = Path(os.path.realpath(home)).name.removeprefix(FEATURES)
    container = next(c for c in ("h5_files", "tile_embeddings", "pt_files", "") if c in containers)
    files = [(inner, file) for here, inner, file in found if here == container]
    if container == "tile_embeddings":
        return beside.find_slide2vec(home, files, name, _source)
    sources = _find_kind(home / container, [file for _, file in files], name)
    return beside.add_clam(sources, home) if container == "h5_files" else beside.add_torchmil(sources, home)


# Folders of any name
def _find_folder(listing: Listing) -> list[Source]:
    """One file per slide in folders of any name: one teacher, or STAMP's several, or AtlasPatch."""
    patches = [file for file in listing.files if file.folder.split("/")[0] == "patches" and file.kind == ".h5"]
    name = Path(os.path.realpath(listing.root)).name  # of the folder itself, not of a link to it
    sources = _find_kind(listing.root, patches or listing.files, name)
    if len({source.teacher for source in sources}) == 1:
        _warn_of_teachers(listing)
    return sources


def _warn_of_teachers(listing: Listing) -> None:
    """Log a warning where the folders may be teachers: each has a file of every name."""
    if listing.files[0].folder == listing.files[-1].folder:  # sorted: there is one folder
        return
    names: dict[str, set[str]] = {}
    for file in listing.files:
        first, _, inner = file.folder.partition("/")
        names.setdefault(first, set()).add(f"{inner}/{file.name}")
    folders = list(names)
    if len(folders) > 1 and all(names[folder] == names[folders[0]] for folder in folders):
        logger.warning(
            "%s: its folders %s hold files of the same names, and are read as slides of one teacher; if each is a "
            "teacher, open them as {teacher: path} (--teacher NAME=PATH)", listing.root, show(folders),
        )  # fmt: skip


def _find_kind(root: Path, files: Sequence[File], teacher: str) -> list[Source]:
    """One file per slide, all of one kind."""
    kinds = sorted({file.kind for file in files if file.kind in MAPPED_KINDS})
    if not kinds:
        kinds = [kind for kind in (".npz", ".txt") if any(file.kind == kind for file in files)][:1]
    if len(kinds) != 1:
        what = f"files of several kinds ({', '.join(kinds)})" if kinds else "none of its files"
        raise ArchiveError(
            f"{root}: {what} could be features; a native archive or files in one of {', '.join(KINDS)} expected"
        )
    files = [file for file in files if file.kind == kinds[0]]
    places = [file.place for file in files]
    named = dict(zip(places, name_slides(places, root), strict=True))
    if kinds[0] == ".h5":
        return _find_hdf5(files, named, teacher)
    return split_teachers(_in_order([_source(teacher, named[file.place], file) for file in files]))


def _find_hdf5(files: Sequence[File], slides: Mapping[str, str], teacher: str) -> list[Source]:
    """AtlasPatch, STAMP's extractors, or one teacher, by what the first file of each folder says of itself.

    `slides` maps the paths of files to slides.
    """
    first = _probe(files)
    if first.encoders:
        ordered = sorted(((slides[file.place], file) for file in files), key=itemgetter(0))
        return [_atlaspatch(slide, file, name, first.encoders) for name in first.encoders for slide, file in ordered]
    if not first.encoder:
        return _in_order([_source(teacher, slides[file.place], file) for file in files])
    homes: dict[str, list[File]] = {}
    for file in files:
        homes.setdefault(file.folder.split("/")[0], []).append(file)
    by_encoder: dict[str, list[File]] = {}
    run_of: dict[str, str] = {}  # STAMP's folder {extractor}-{hash} of an encoder
    for home, found in homes.items():
        encoder = _probe(found).encoder or teacher
        if home.startswith(encoder) and run_of.setdefault(encoder, home) != home:
            raise MismatchError(
                f"the folders {run_of[encoder]} and {home} both hold {encoder!r}; open them as {{teacher: path}}"
            )
        by_encoder.setdefault(encoder, []).extend(found)
    sources = []
    for encoder, found in sorted(by_encoder.items()):
        names = slides if len(by_encoder) == 1 else _own_names(found)
        sources += _in_order([_source(encoder, names[file.place], file) for file in found])
    return sources


def _atlaspatch(slide: str, file: File, encoder: str, encoders: tuple[str, ...]) -> Source:
    read = partial(_read_encoder, file.place, encoder, encoders)
    source = _source(encoder, slide, file)
    return replace(source, read=_read_of(file, read), asks=source.asks and json.dumps([encoder, *encoders]))


def _own_names(files: Sequence[File]) -> dict[str, str]:
    """Names of slides among the files of one of several teachers."""
    places = [file.place for file in files]
    return dict(zip(places, name_slides(places, os.path.commonpath(map(os.path.dirname, places))), strict=True))


def _probe(files: Sequence[File]) -> hdf5.Probe:
    """What the first readable one of a few files says; nothing when none can be read."""
    for file in files[:3]:
        try:
            return hdf5.probe(file.path)
        except ArchiveError:
            continue  # reading it will refuse it, or leave it out
    return hdf5.Probe()


def _in_order(sources: list[Source]) -> list[Source]:
    return sorted(sources, key=attrgetter("slide", "part"))


# One file
def _source(teacher: str, slide: str, file: File, part: str = "") -> Source:
    load = partial(_load, file.place, teacher)
    asks = "features" if file.kind in INDEXED and not file.locked else None
    return Source(teacher, slide, file.place, _read_of(file, partial(_read, file.place, file.kind)), part, load, asks)


def _read_of(file: File, read: Callable[[], Piece]) -> Callable[[], Piece]:
    return partial(_refuse_locked, file.path) if file.locked else read


def _read(place: str, kind: str) -> Piece:
    return READERS.get(kind, _refuse_mapping)(Path(place))


def _read_encoder(place: str, encoder: str, encoders: tuple[str, ...]) -> Piece:
    return hdf5.read_encoder(Path(place), encoder, encoders)


def _load(place: str, teacher: str) -> Piece:
    return read_unmapped(Path(place), teacher)


def _refuse_locked(path: Path) -> Piece:
    raise ArchiveError(
        f"{path}: the slide is still being written ({path.name}.lock is beside it); wait until it is done, or, if the "
        "extraction was killed, delete the lock and the slide and extract it again"
    )


def _refuse_mapping(path: Path) -> Piece:
    raise NotInPlaceError(f"{path}: {path.suffix} files are not opened in place, but shazam_fast.convert can read them")
