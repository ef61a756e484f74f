"""Confounding check: can slide, patient, site or magnification be predicted from the fused feature?

A patch's attribute is predicted from its nearest neighbours among the other patches: no fitting, no option to tune, and
a thousand shuffles take little time. Where patches of one slide (or patient) share the attribute, none of them is among
the neighbours. Chance is what remains after shuffling the attribute among patches, or among whole slides or patients,
of the same class: what the class alone reveals counts as chance. A model with more parameters may predict more: the
figures are a lower limit.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...annotation.columns import names_of
from ...archive.archive import FeatureArchive
from ...errors import MismatchError
from ...tables.slide_names import match_slides
from .evidence import Evidence
from .page import Block, Section, Table, Text, cells, number, span

MOST_ROWS = 2000  # patches in the check
FEWEST_ROWS = 10  # patches of an attribute's value that is kept
NEIGHBOURS = 10
SHUFFLES = 199
TCGA = re.compile(r"TCGA-([A-Z0-9]{2})-")  # barcode; the two characters are the tissue source site

Codes = NDArray[np.int64]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Attribute:
    """What is predicted: a `value` [n] per patch, -1 unknown; patches with the same `unit` [n] exclude one another."""

    name: str
    values: Codes
    units: Codes | None = None
    note: str = ""


@dataclass(frozen=True)
class Told:
    """How well an attribute is predicted: balanced accuracy `found`; of shuffles the mean `chance` and its limits."""

    name: str
    n_values: int
    n_rows: int
    found: float
    chance: float
    low: float
    high: float
    p: float
    note: str


def tell(fused: NDArray[np.floating], attribute: Attribute, classes: Codes, seed: int) -> Told | str:
    """Predict an attribute from the fused features [n, D]; or the reason why that is not possible.

    Args:
        fused: [n, D].
        attribute: what to predict.
        classes: [n] class of every patch, within which the attribute is shuffled.
        seed: of the shuffles.
    """
    kept = _enough(attribute)
    values, n = np.unique(attribute.values[kept], return_inverse=True)[1], len(kept)
    if len(np.unique(values)) < 2:
        what = "" if attribute.units is None else " in two slides or patients"
        return f"{attribute.name}: fewer than two values with {FEWEST_ROWS} patches{what}"
    units = np.arange(n) if attribute.units is None else np.unique(attribute.units[kept], return_inverse=True)[1]
    neighbours = _neighbours(fused[kept], units)
    found = _accuracy(values, neighbours)
    rng = np.random.default_rng(seed)
    shuffled = np.array([_accuracy(_shuffle(values, units, classes[kept], rng), neighbours) for _ in range(SHUFFLES)])
    low, high = np.quantile(shuffled, [0.025, 0.975])
    p = (1 + int((shuffled >= found).sum())) / (1 + SHUFFLES)
    return Told(
        attribute.name, int(values.max()) + 1, n, found, float(shuffled.mean()), float(low), float(high), p,
        attribute.note,
    )  # fmt: skip


def _enough(attribute: Attribute) -> Codes:
    """Places of patches whose attribute's value has enough patches, and lies in two units at least."""
    kept = np.flatnonzero(attribute.values >= 0)
    known, codes, counts = np.unique(attribute.values[kept], return_inverse=True, return_counts=True)
    usable = counts >= FEWEST_ROWS
    if attribute.units is not None:
        pairs = np.unique(np.stack([codes, attribute.units[kept]]), axis=1)[0]
        usable &= np.bincount(pairs, minlength=len(known)) >= 2
    return kept[usable[codes]]


def _neighbours(fused: NDArray[np.floating], units: Codes) -> Codes:
    """The most similar patches of other units, by cosine of the standardised features, -1 where too few. [n, k]."""
    x = fused.astype(np.float64)
    scale = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    similar = x @ x.T
    similar[units[:, None] == units[None, :]] = -np.inf
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :NEIGHBOURS]
    return np.where(np.isfinite(np.take_along_axis(similar, nearest, axis=1)), nearest, -1)


def _accuracy(values: Codes, neighbours: Codes) -> float:
    """Balanced accuracy of the neighbours' vote, each weighted by the inverse of its value's frequency."""
    V, counts = int(values.max()) + 1, np.bincount(values)
    place, which = np.nonzero(neighbours >= 0)
    voted = values[neighbours[place, which]]
    votes = np.bincount(place * V + voted, 1 / counts[voted], minlength=len(values) * V).reshape(-1, V)
    right = (votes.argmax(axis=1) == values) & (votes.sum(axis=1) > 0)
    return float((np.bincount(values, right) / counts).mean())


def _shuffle(values: Codes, units: Codes, classes: Codes, rng: np.random.Generator) -> Codes:
    """The values shuffled within classes: whole units where a unit has one value, else patches."""
    _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    by_unit = bool((values[first][inverse] == values).all())
    strata = classes
    if by_unit:
        C = int(classes.max()) + 2
        counts = np.bincount(inverse * C + classes + 1, minlength=len(first) * C).reshape(-1, C)
        strata = counts.argmax(axis=1)  # the class that most of the unit's patches have
    shuffled = values[first].copy() if by_unit else values.copy()
    for stratum in np.unique(strata):
        places = np.flatnonzero(strata == stratum)
        shuffled[places] = shuffled[rng.permutation(places)]
    return shuffled[inverse] if by_unit else shuffled


def known_attributes(archive: FeatureArchive, rows: Codes, groups: Codes, given: Attributes) -> list[Attribute]:
    """What the archive, and the caller, know of the patches `rows` [n]; `groups` [n] are their patients or slides."""
    slides, patients = archive.slide_index[rows].astype(np.int64), archive.group_index[rows].astype(np.int64)
    within = "from other patches, those of the same slide too"
    found = [Attribute("slide", slides, None, within)] if (slides >= 0).any() else []
    if (patients >= 0).any() and (slides >= 0).any():
        found.append(Attribute("patient", patients, slides, "from the patient's other slides"))
    elif (patients >= 0).any():
        found.append(Attribute("patient", patients, None, "from other patches (slides are not known)"))
    other = "from other patients" if (patients >= 0).all() else "from other patients, slides or patches"
    for name, values in (*_derived(archive, rows), *((n, _codes(archive, n, v)[rows]) for n, v in given.items())):
        found.append(Attribute(name, values, groups, other))
    return found


def _derived(archive: FeatureArchive, rows: Codes) -> list[tuple[str, Codes]]:
    """Site and resolution, where slides' names and geometry tell them."""
    slides = archive.slide_index[rows].astype(np.int64)
    matches = [TCGA.match(name) for name in archive.slides]
    sites = [match[1] if match else "" for match in matches]
    sizes = []
    for name in archive.slides:
        g = archive.geometry.get(name)
        sizes.append("" if g is None or g.mpp is None else f"{g.mpp:.3g} {g.patch_size} {g.unit}")
    found = []
    for name, texts in (("site (TCGA barcode)", sites), ("resolution and patch size", sizes)):
        if len(set(texts) - {""}) > 1:
            codes = np.unique(np.array(texts), return_inverse=True)[1] - int("" in texts)
            found.append((name, np.where(slides >= 0, codes[slides], -1)))
    return found


def _codes(archive: FeatureArchive, name: str, given: Any) -> Codes:
    """Codes of an attribute as a caller gives it: one value per patch of the archive, or {slide: value}."""
    if isinstance(given, Mapping):
        where, names = f"attributes[{name!r}]", names_of(list(given), name).tolist()
        slides = match_slides(names, archive.slides, where, str(archive.path))
        if not (slides >= 0).any():
            raise MismatchError(
                f"{where}: none of its slides {names[:3]} is in {archive.path}, whose slides are {archive.slides[:3]}"
            )
        of_slide = np.full(len(archive.slides) + 1, "", dtype=object)  # the last for patches of no slide
        of_slide[slides] = names_of(list(given.values()), name)
        of_slide[-1] = ""
        texts = of_slide[archive.slide_index].astype(np.str_)
    else:
        texts = names_of(given, name)
    if len(texts) != len(archive):
        raise MismatchError(
            f"attributes: {name!r}: one value per patch ({len(archive):,}) or {{slide: value}} expected, found "
            f"{len(texts):,} values"
        )
    names, codes = np.unique(texts, return_inverse=True)
    return np.where(names == "", -1, np.arange(len(names)))[codes]


def confounding_section(evidence: Evidence, given: Attributes) -> Section | str:
    """The check for every attribute that is known; or why there is none."""
    places = evidence.sample(MOST_ROWS)
    rows = evidence.rows[places]
    attributes = known_attributes(evidence.archive, rows, evidence.groups[places], given)
    if not attributes:
        return "no slide, patient, site or magnification is known (attributes= takes more)"
    fused, classes = evidence.fused(places), evidence.labels[places]
    classes = np.where(classes >= 0, classes, evidence.prediction[places])
    results = [tell(fused, attribute, classes, evidence.seed) for attribute in attributes]
    told = [result for result in results if isinstance(result, Told)]
    untold = [result for result in results if isinstance(result, str)]
    if not told:
        return "; ".join(untold)
    blocks: list[Block] = [_table(told), *(Text(f"Not checked: {reason}.", "note") for reason in untold)]
    return Section("confounding", "Confounding check", blocks, [_finding(one) for one in told])


def _table(told: Sequence[Told]) -> Table:
    rows = []
    for one in told:
        counts = (f"{one.n_values:,}", f"{one.n_rows:,}")
        figures = (number(one.found), number(one.chance), span(one.low, one.high), f"{one.p:.3f}")
        rows.append(cells((one.name, one.note, *counts, *figures)))
    return Table(
        "How well an attribute is told from the fused feature: balanced accuracy of a vote of the "
        f"{NEIGHBOURS} nearest patches. Chance: the same after shuffling the attribute within each class, mean and 95% "
        f"range of {SHUFFLES} shuffles, and how often a shuffle does as well (p). It is a lower limit: a larger model "
        "may tell more.",
        ("attribute", "how", "values", "patches", "balanced accuracy", "chance", "95% range", "p"),
        rows,
        names=2,
    )  # fmt: skip


def _finding(one: Told) -> str:
    figures = (
        f"balanced accuracy {one.found:.2f} over {one.n_values:,} values, {one.low:.2f} to {one.high:.2f} by chance"
    )
    if one.found > one.high:
        return (
            f"The {one.name} can be told from the fused feature ({figures}). If it goes along with the class, part "
            "of the "
            "performance may come from it."
        )
    return f"The {one.name} is not told from the fused feature better than by chance ({figures})."
