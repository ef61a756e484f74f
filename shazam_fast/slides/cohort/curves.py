"""Survival of groups of patients by their predicted risk: Kaplan-Meier curves and the log-rank test.

Both come from statsmodels (BSD licence), an optional extra. Of the packages that fit: lifelines needs pandas below 3,
scikit-survival is under the GPL and bound to one release of scikit-learn, torchsurv has no log-rank test.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError, ShazamError
from ...runtime.checks import require_count
from .targets import SurvivalTargets

Z = 1.959964  # of a 95% interval
NAMES = {2: ("low risk", "high risk"), 3: ("low risk", "middle risk", "high risk")}


@dataclass(frozen=True)
class SurvivalCurve:
    """Kaplan-Meier estimate of one group.

    Attributes:
        name: of the group.
        n_patients, n_events: its patients, and how many events were observed.
        times: times of events, ascending, [k].
        survival: fraction alive (without the event) after each of them, [k].
        low, high: its 95% interval at each of them (Greenwood's variance of log(-log S)), [k].
        at_risk: patients at risk just before each of them, [k].
        events: events at each of them, [k].
        censored: times of censoring, ascending.

    >>> SurvivalCurve("all", 1, 1, [2.0], [0.0], [0.0], [1.0], [1], [1], []).to_dict()["times"]
    [2.0]
    """

    name: str
    n_patients: int
    n_events: int
    times: Sequence[float]
    survival: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    at_risk: Sequence[int]
    events: Sequence[int]
    censored: Sequence[float]

    def at_risk_at(self, time: float) -> int:
        """Patients without the event who are still observed just before a time."""
        gone = sum(count for t, count in zip(self.times, self.events, strict=True) if t < time)
        return self.n_patients - gone - sum(t < time for t in self.censored)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SurvivalCurves:
    """Survival of groups of patients by their predicted risk.

    Attributes:
        curves: one per group, the lowest risk first.
        chi2, p_value: of the log-rank test of equal survival in all groups.

    >>> SurvivalCurves((), 3.8, 0.05).to_dict()["p_value"]
    0.05
    """

    curves: tuple[SurvivalCurve, ...]
    chi2: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return asdict(self)


# Over 40 lines: every option is documented here.
def survival_curves(
    risks: NDArray[np.float64],
    folds: NDArray[np.int64],
    patients: Sequence[str],
    targets: SurvivalTargets,
    groups: int = 2,
) -> SurvivalCurves:
    """Kaplan-Meier curves of patients grouped by risk, with the log-rank test between them.

    Args:
        risks: predicted for each of n slides by a model that has not seen it, [n]; a patient has the mean.
        folds: int64 [n], in which fold each slide was tested.
        patients: [n].
        targets: times and events of the slides, all known.
        groups: number of groups, of equal size within every fold (each fold has a model of its own).

    Returns the curves. The test takes the groups as given; that they come from models which were trained on the other
    patients makes its p-value somewhat too small.

    Raises ShazamError when statsmodels is missing, MismatchError when there are fewer than two patients per group.

    >>> times, events = np.arange(1.0, 9.0), np.ones(8, dtype=bool)
    >>> found = survival_curves(
    ...     -times, np.zeros(8, dtype=np.int64), list("abcdefgh"), SurvivalTargets(times, events)
    ... )
    >>> [(curve.name, curve.times[0]) for curve in found.curves], round(found.p_value, 3)
    ([('low risk', 5.0), ('high risk', 1.0)], 0.007)
    """
    groups = require_count("groups", groups, 2, 10)
    try:
        from statsmodels.duration.survfunc import survdiff
    except ImportError as error:
        raise ShazamError("survival curves need statsmodels: pip install 'shazam_fast[survival]'") from error
    _, first, codes = np.unique(np.array(patients), return_index=True, return_inverse=True)
    risk = np.bincount(codes, risks) / np.bincount(codes)
    times, events = targets.times[first], targets.events[first]
    group = _cut(risk, folds[first], groups)
    if (np.bincount(group, minlength=groups) < 2).any():
        raise MismatchError(f"{len(risk)} patients are too few for {groups} groups by risk; give fewer groups")
    names = NAMES.get(groups, tuple(f"risk group {i + 1} of {groups}" for i in range(groups)))
    curves = tuple(_curve(names[i], times[group == i], events[group == i]) for i in range(groups))
    chi2, p_value = survdiff(times, events.astype(np.int64), group)
    return SurvivalCurves(curves, float(chi2), float(p_value))


def _cut(risk: NDArray[np.float64], folds: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """The group of each patient, 0 for the lowest risks of his fold."""
    group = np.zeros(len(risk), dtype=np.int64)
    for fold in np.unique(folds).tolist():
        inside = np.flatnonzero(folds == fold)
        limits = np.quantile(risk[inside], np.linspace(0, 1, groups + 1)[1:-1])
        group[inside] = np.searchsorted(limits, risk[inside], side="left")
    return group


def _curve(name: str, times: NDArray[np.float64], events: NDArray[np.bool_]) -> SurvivalCurve:
    from statsmodels.duration.survfunc import SurvfuncRight

    found = SurvfuncRight(times, events.astype(np.int64))
    S = np.asarray(found.surv_prob, dtype=np.float64)
    inner = (S > 0) & (S < 1)
    width = np.zeros(len(S))
    width[inner] = Z * np.asarray(found.surv_prob_se)[inner] / (S[inner] * -np.log(S[inner]))
    low, high = (np.where(inner, S ** np.exp(sign * width), S) for sign in (1, -1))
    return SurvivalCurve(
        name=name,
        n_patients=len(times),
        n_events=int(events.sum()),
        times=np.asarray(found.surv_times, dtype=np.float64).tolist(),
        survival=S.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        at_risk=np.asarray(found.n_risk).astype(np.int64).tolist(),
        events=np.asarray(found.n_events).astype(np.int64).tolist(),
        censored=np.sort(times[~events]).tolist(),
    )
