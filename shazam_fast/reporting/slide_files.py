"""File names for slides: what a reader recognises, inside the output directory, one per slide."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST = 180  # bytes of a file name without suffix; most file systems allow 255 with it
HASH_DIGITS = 10
HASHED = re.compile(rf"-[0-9a-f]{{{HASH_DIGITS}}}$")  # a name that ends like this gets a hash of its own
REPLACED = set('/\\:*?"<>|')  # besides control characters and half characters: what file systems refuse


def file_stems(slides: Sequence[str]) -> dict[str, str]:
    """A file name without suffix for every slide.

    A name that is a file name is kept, whatever its script. In others, characters that a file name cannot hold become
    "_", more than 180 bytes are cut off, and a hash of the full name is added. So it is for names that differ only in
    case or in the way accents are encoded, which some file systems do not tell apart.

    Args:
        slides: names of slides, all different.

    Returns:
        {slide: file name}, all different.

    >>> file_stems(["Pr\u00e4parat 1", ".."])
    {'Pr\u00e4parat 1': 'Pr\u00e4parat 1', '..': '_-5ec1f7e700'}
    """
    stems = {slide: _as_file_name(slide) for slide in slides}
    counts = Counter(map(_fold, stems.values()))
    for slide, stem in stems.items():
        if stem != slide or counts[_fold(stem)] > 1 or HASHED.search(_fold(stem)):
            digest = hashlib.sha256(slide.encode("utf-8", "surrogatepass")).hexdigest()
            stems[slide] = f"{stem}-{digest[:HASH_DIGITS]}"
    return stems


def _as_file_name(slide: str) -> str:
    """The slide's name, changed where it is no file name."""
    kept = "".join("_" if c in REPLACED or unicodedata.category(c) in ("Cc", "Cs") else c for c in slide)
    kept = kept.strip(" ").rstrip(".")
    if kept.startswith("."):  # would be hidden
        kept = "_" + kept[1:]
    while len(kept.encode()) > LONGEST:
        kept = kept[:-1]
    return kept or "_"


def _fold(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
