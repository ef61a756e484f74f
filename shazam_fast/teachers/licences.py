"""Licences of teachers under the names that the field's tools give them in their files.

Sources: TRIDENT's README (encoders with licences), STAMP's `ExtractorName`, slide2vec's encoders and AtlasPatch's
dataset names, the models' cards. A student's card lists the licence of every teacher, "unknown" where the name is not
known.
"""

import re
from typing import NamedTuple

from .registry import get_teacher, list_teachers

UNKNOWN = "unknown"


class Licence(NamedTuple):
    """Licence of a teacher's weights, and whether its terms cover models trained on the outputs; None: not known."""

    licence: str
    covers_derivatives: bool | None


_NC_ND, _NC = "CC-BY-NC-ND-4.0", "CC-BY-NC-4.0"

# Models of this package's table: its name -> other names, written without case, hyphens, underscores and dots.
_ALIASES = {
    "uni": ("univ1", "uni1", "mahmooduni", "uniold", "univitl16"),
    "uni2": ("univ2", "uni2h", "univ2h", "mahmooduni2", "mahmooduni2h"),
    "virchow": ("virchowv1", "virchow1", "virchowfull"),
    "virchow2": ("virchowv2", "virchow2full"),
    "virchow-cls": ("virchow1cls",),
    "virchow2-cls": ("virchowv2cls",),
    "phikon-v2": ("phikon2", "owkinphikonv2"),
    "gigapath": ("provgigapath", "provgigapathtile", "gigapathtile"),
    "h-optimus-0": ("hoptimus0", "hoptimus", "optimus0"),
    "h-optimus-1": ("hoptimus1", "optimus1"),
    "conch-v1.5": ("conchv15", "conch15", "mahmoodconch15", "mahmoodconchv15"),
    "gpfm": (),
}

# Other models, in the same spelling. False: no clause on models trained on the outputs is known.
_OTHERS = {
    **dict.fromkeys(("conch", "conchv1", "mahmoodconch", "titan", "madeleinetitan"), Licence(_NC_ND, True)),
    **dict.fromkeys(("musk", "h0mini", "hoptimus0mini", "prism", "prism2", "feather"), Licence(_NC_ND, False)),
    **dict.fromkeys(("phikon", "phikonv1", "owkinphikon"), Licence("Owkin non-commercial", False)),
    **dict.fromkeys(("midnight", "midnight12k", "kaikomidnight", "keep"), Licence("MIT", False)),
    **dict.fromkeys(("hibou", "hiboul", "hiboub", "openmidnight", "gigapathflash"), Licence("Apache-2.0", False)),
    **dict.fromkeys(("gigapathslide", "provgigapathslide"), Licence("Apache-2.0", False)),
    **dict.fromkeys(
        ("kaikovits8", "kaikovits16", "kaikovitb8", "kaikovitb16", "kaikovitl14"),
        Licence("Kaiko non-commercial", False),
    ),
    **dict.fromkeys(("lunit", "lunitvits8", "lunitvits16"), Licence("Lunit non-commercial", False)),
    **dict.fromkeys(("ctranspath", "ctp", "transpath"), Licence("GPL-3.0", False)),
    **dict.fromkeys(("chief", "chiefctranspath", "chiefctp"), Licence("AGPL-3.0", False)),
    **dict.fromkeys(("phaet", "mascaret"), Licence("Waiv non-commercial", False)),
    **dict.fromkeys(("digepath",), Licence(_NC, False)),
    **dict.fromkeys(("genbiopathfm",), Licence("GenBio AI Community", False)),
    **dict.fromkeys(("resnet50", "resnet50trunc"), Licence("BSD-3-Clause", False)),
}

_HASH = re.compile(r"-[0-9a-f]{8}$")  # STAMP appends a hash of its code: uni2-49b04e14


def known_as(name: str) -> str | None:
    """The name that this package has for a teacher; None where it does not know it.

    Args:
        name: as archives have it: a name of this package's or registered, TRIDENT's "uni_v1", STAMP's "uni2-49b04e14",
            with or without a level ("gigapath:low").

    >>> known_as("uni_v1"), known_as("my own encoder")
    ('uni', None)
    """
    base = name.partition(":")[0]
    if base in {spec.name for spec in list_teachers()}:
        return base
    names = {_plain(alias): own for own, aliases in _ALIASES.items() for alias in (own, *aliases)}
    return names.get(_plain_base(base))


def find_licence(name: str) -> Licence:
    """The licence of a teacher under any tool's name for it.

    Args:
        name: as for `known_as`.

    Returns licence "unknown" when the name is not known.

    >>> find_licence("uni_v1")
    Licence(licence='CC-BY-NC-ND-4.0', covers_derivatives=True)
    >>> find_licence("my own encoder").licence
    'unknown'
    """
    if (own := known_as(name)) is not None:
        spec = get_teacher(own)
        return Licence(spec.licence, spec.covers_derivatives)
    return _OTHERS.get(_plain_base(name.partition(":")[0]), Licence(UNKNOWN, None))


def _plain_base(base: str) -> str:
    return _plain(_HASH.sub("", base.lower()).removeprefix("features_"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
