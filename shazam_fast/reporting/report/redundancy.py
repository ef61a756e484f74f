"""How similar the teachers are, and which of them is right where others fail.

Similarity of features is linear CKA (Kornblith et al. 2019) with the unbiased estimate of HSIC (Song et al. 2012): the
plain estimate tends to 1 where features have more columns than there are patches, whatever they hold. Errors are those
of logistic regressions on single teachers, as in `shazam_fast.compare`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...archive.archive import FeatureArchive
from ...comparison.fold import Fold
from ...comparison.products import single_probes
from ...errors import MismatchError
from ...formats.pieces import SPLITS
from ...scoring.intervals import Tally, bootstrap_groups, bootstrap_metrics, interval
from ...scoring.metrics import compute_metrics
from .evidence import Evidence, sample
from .page import Beside, Block, Cell, Section, Table, cells, minus, number, number_columns

SIMILARITY_ROWS = 1000  # patches that CKA is computed on
FEWEST_ROWS = 20  # for CKA and for the correlation of errors
PROBE_ROWS = {"train": 5000, "val": 2000, "test": 5000}  # patches that the probes are fitted on, chosen and judged by
MOST_BESIDE = 8  # teachers in two matrices side by side
KEPT_PER_CLASS = 20  # patches of each class that a sample keeps at least
ALIKE, DIFFERENT = 0.9, 0.5  # CKA that is called alike, and different

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Probed:
    """What single-teacher probes say of k test patches.

    Attributes:
        rows: int64 [k], rows of the archive.
        labels: int64 [k].
        predicted: int64 [N, k], class that a teacher's probe predicts.
        accuracy: [N] balanced accuracy.
        chosen: the teacher with the best score on val.
        n_train: number of patches that the probes were fitted on.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    accuracy: list[float]
    chosen: int
    n_train: int

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether a teacher's probe is wrong, bool [N, k]."""
        wrong: NDArray[np.bool_] = self.predicted != self.labels
        return wrong


def linear_cka(features: Sequence[NDArray[np.floating]]) -> Array:
    """Linear CKA of every pair of features [n, d_i] of the same n >= 4 patches, unbiased; [N, N], may be below 0.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> linear_cka([x, 2 * x]).round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    centred = np.stack([_centred_gram(x).reshape(-1) for x in features])
    products = centred @ centred.T
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        cka: Array = products / np.outer(norms, norms)
    return cka


def _centred_gram(x: NDArray[np.floating]) -> Array:
    """The Gram matrix without its diagonal, centred so that products of two are unbiased (U-centring). [n, n]."""
    x = x.astype(np.float64)
    scale = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    gram, n = x @ x.T, len(x)
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=1)
    gram -= (sums[:, None] + sums[None, :]) / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def similarity(archive: FeatureArchive, rows: NDArray[np.int64], seed: int) -> tuple[Array, int]:
    """CKA [N, N] of the teachers' features on a sample of `rows`, and the size of the sample."""
    chosen = rows[sample(len(rows), SIMILARITY_ROWS, seed)]
    gathered = archive.gather(chosen)
    archive.require_finite(chosen, gathered)
    return linear_cka([gathered[:, archive.columns_of(name)] for name in archive.teachers]), len(chosen)


def probe_teachers(archive: FeatureArchive, seed: int) -> Probed:
    """Fit a probe per teacher on train, choose its regularisation on val, and judge it on test.

    Raises MismatchError where one of the splits is empty or has no label of some class.
    """
    codes = np.full(len(archive), SPLITS["none"], np.uint8)
    for split, most in PROBE_ROWS.items():
        rows = archive.split(split)
        rows = rows[archive.labels[rows] >= 0]
        codes[rows[_keep_classes(archive.labels[rows], most, seed)]] = SPLITS[split]
    fold = Fold(archive.with_splits(codes), seed)
    probes = single_probes(fold, balanced=True)
    labels = fold.labels("test")
    found = [probes[name].probabilities["test"] for name in fold.teachers]
    return Probed(
        fold.archive.split("test"),
        labels,
        np.stack([p.argmax(axis=1) for p in found]),
        [compute_metrics(p, labels, archive.classes).balanced_accuracy for p in found],
        int(np.argmax([probes[name].score for name in fold.teachers])),
        len(fold.labels("train")),
    )


def _keep_classes(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """A sample of `most` places, ascending, that keeps some patches of every class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if len(labels) <= most:
        return np.sort(order)
    kept = [order[labels[order] == c][:KEPT_PER_CLASS] for c in np.unique(labels)]
    rest = order[~np.isin(order, np.concatenate(kept))]
    return np.sort(np.concatenate([*kept, rest])[:most])


def redundancy_section(archive: FeatureArchive, rows: NDArray[np.int64], seed: int) -> Section | str:
    """How alike the teachers' features are on the patches `rows`; or why that cannot be said."""
    teachers = list(archive.teachers)
    if len(teachers) < 2:
        return "the archive has one teacher"
    if len(rows) < FEWEST_ROWS:
        return f"{FEWEST_ROWS} patches needed, the split has {len(rows)}"
    cka, n = similarity(archive, rows, seed)
    table = _matrix(
        f"Linear CKA of the teachers' features on {n:,} patches, unbiased: 1 means the same but for rotation and "
        "scale, "
        "0 unrelated. Features are standardised.",
        teachers,
        cka,
        "teacher",
    )
    pairs = [(float(cka[i, j]), teachers[i], teachers[j]) for i in range(len(teachers)) for j in range(i)]
    (high, *alike), (low, *unlike) = max(pairs), min(pairs)
    word = "nearly the same" if high > ALIKE else "partly the same" if high > DIFFERENT else "mostly different"
    finding = f"The features of the two most similar teachers, {alike[1]} and {alike[0]}, are {word} (CKA {high:.2f})"
    finding += f"; the least similar are {unlike[1]} and {unlike[0]} ({low:.2f})." if len(pairs) > 1 else "."
    return Section("redundancy", "How similar the teachers are", [table], [finding])


def rescue_section(archive: FeatureArchive, evidence: Evidence | None, seed: int) -> Section | str:
    """Which teacher is right where others fail; or why that cannot be said."""
    if len(archive.teachers) < 2:
        return "the archive has one teacher"
    if not archive.classes or (archive.labels < 0).all():
        return "the archive has no labels"
    try:
        found = probe_teachers(archive, seed)
    except MismatchError as error:
        return str(error).removeprefix(f"{archive.path}: ")
    if len(found.rows) < FEWEST_ROWS:
        return f"{FEWEST_ROWS} labelled test patches needed, there are {len(found.rows)}"
    student = _student_says(found, evidence)
    teachers = list(archive.teachers)
    correlation = _matrix(
        "Correlation of errors of the single-teacher models (phi coefficient): 1 where two fail on the same patches, 0 "
        "where they fail independently of one another. Low values leave room for fusion.",
        teachers,
        error_correlation(found.wrong),
        "teacher",
    )
    rescue = _matrix(
        "Of the patches that the model of the column's teacher gets wrong, the part that the row's teacher gets right.",
        teachers,
        rescued(found.wrong),
        "wrong",
        "right",
    )
    matrices: list[Block] = [correlation, rescue]
    if len(teachers) <= MOST_BESIDE:
        matrices = [Beside(matrices)]
    findings = _rescue_findings(teachers, found)
    if student is not None:
        findings.insert(0, _gain_finding(teachers, found, student, archive, seed))
    blocks = [_alone_table(teachers, found, None if student is None else student != found.labels), *matrices]
    return Section("rescue", "Which teacher is right where others fail", blocks, findings)


def error_correlation(wrong: NDArray[np.bool_]) -> Array:
    """Pearson correlation of errors [N, k]; NaN for a teacher that is never, or always, wrong. [N, N]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(wrong.astype(np.float64)))


def rescued(wrong: NDArray[np.bool_]) -> Array:
    """Entry (i, j): the part of j's errors that i gets right; NaN where j makes none. [N, N]."""
    right, counts = (~wrong).astype(np.float64), wrong.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((right @ wrong.T.astype(np.float64)) / counts)


def _student_says(found: Probed, evidence: Evidence | None) -> NDArray[np.int64] | None:
    """The class that the student predicts of every probed patch; None where it was scored on other patches."""
    if evidence is None or not np.isin(found.rows, evidence.rows).all():
        return None
    return evidence.prediction[np.searchsorted(evidence.rows, found.rows)]


def _alone_table(teachers: Sequence[str], found: Probed, student: NDArray[np.bool_] | None) -> Table:
    others_wrong = found.wrong.sum(axis=0)
    rows = []
    for i, name in enumerate(teachers):
        wrong = found.wrong[i]
        only_right, only_wrong = (~wrong) & (others_wrong == len(teachers) - 1), wrong & (others_wrong == 1)
        row = [name, number(found.accuracy[i]), f"{wrong.sum():,}", f"{only_right.sum():,}", f"{only_wrong.sum():,}"]
        if student is not None:
            row += [f"{(student & ~wrong).sum():,}", f"{(wrong & ~student).sum():,}"]
        rows.append(cells(row))
    headings = ["teacher", "balanced accuracy", "wrong", "alone right", "alone wrong"]
    if student is not None:
        headings += ["right, student wrong", "wrong, student right"]
    everyone = int((others_wrong == len(teachers)).sum())
    return Table(
        f"Logistic regression on each teacher alone (balanced class weights, fitted on {found.n_train:,} training "
        f"patches, regularisation chosen on val): number of {len(found.rows):,} test patches. Alone right: all other "
        f"teachers are wrong. On {everyone:,} patches all are wrong.",
        headings,
        rows,
    )


def _matrix(caption: str, names: Sequence[str], values: Array, across: str, down: str = "teacher") -> Table:
    names, headings = number_columns(names)
    rows = [
        [Cell(name), *(Cell("", None) if i == j else Cell(number(float(v), 2), float(v)) for j, v in enumerate(row))]
        for i, (name, row) in enumerate(zip(names, values, strict=True))
    ]
    return Table(caption, (down, *headings), rows, corner=across, style="grid narrow")


def _gain_finding(
    teachers: Sequence[str], found: Probed, student: NDArray[np.int64], archive: FeatureArchive, seed: int
) -> str:
    """The student against the single teacher that validation would have chosen, on the same patches."""
    groups = bootstrap_groups(archive, found.rows)
    said = {"student": student, "teacher": found.predicted[found.chosen]}
    tallies = {name: [Tally(found.labels, predicted, groups)] for name, predicted in said.items()}
    accuracy, _ = bootstrap_metrics(tallies, len(archive.classes), seed)
    gain = interval(accuracy["student"] - accuracy["teacher"])
    verdict = "is better than" if gain.low > 0 else "is worse than" if gain.high < 0 else "is not told apart from"
    points = minus(f"{100 * gain.value:+.1f} points of balanced accuracy, 95% interval {100 * gain.low:+.1f} to ")
    points += minus(f"{100 * gain.high:+.1f}")
    return (
        f"On these patches the student {verdict} a logistic regression on the single teacher that was best on val, "
        f"{teachers[found.chosen]}: {points}."
    )


def _rescue_findings(teachers: Sequence[str], found: Probed) -> list[str]:
    n = len(found.rows)
    best = int(np.argmax(found.accuracy))
    everyone, someone = int(found.wrong.all(axis=0).sum()), int((~found.wrong).any(axis=0).sum())
    right = int((~found.wrong[best]).sum())
    return [
        f"Of the teachers alone, {teachers[best]} is the best on these patches (balanced accuracy "
        f"{found.accuracy[best]:.2f}, chosen in hindsight): right on {right:,} of {n:,}. On {someone:,} at least one "
        f"teacher is right, more than a fusion can hope for; on {everyone:,} none is."
    ]
