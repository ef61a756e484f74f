"""The baseline of linear classification: logistic regression on the features of some teachers."""

import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..scoring.metrics import Metrics, compute_metrics

REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the linear baselines, chosen on val


def linear_probe(archive: FeatureArchive, teachers: list[str]) -> Metrics:
    """Fit standardised logistic regression to the train split, its regularisation chosen on val.

    Args:
        archive: labelled features with the splits train, val and test.
        teachers: whose features are used, side by side.

    Returns the metrics on the test split.

    Raises MismatchError when the test or val split is empty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(split: str) -> NDArray[np.float32]:
        everything = archive.gather(archive.split(split))
        return np.concatenate([everything[:, archive.columns_of(name)] for name in teachers], axis=1)

    x = {split: features(split) for split in ("train", "val", "test")}
    y = {split: archive.labels[archive.split(split)] for split in x}
    probes = []
    for C in REGULARISATIONS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(x["train"], y["train"])
        chosen_by = compute_metrics(probe.predict_proba(x["val"]), y["val"], archive.classes)
        probes.append((chosen_by.balanced_accuracy, -C, probe))
    best = max(probes, key=lambda entry: entry[:2])[2]
    return compute_metrics(best.predict_proba(x["test"]), y["test"], archive.classes)
