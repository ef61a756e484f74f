"""Patches that tests make for themselves."""

import numpy as np

TEACHERS = {"uni": 12, "phikon-v2": 7, "virchow": 20}
CLASSES = ("normal", "adenoma", "carcinoma")


def make_patches(rows=300, teachers=TEACHERS, classes=CLASSES, seed=0, scales=(1.0, 30.0, 0.01)):
    """Features that carry the label, at scales that differ by orders of magnitude as foundation models' do."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), rows)
    labels[: len(classes)] = np.arange(len(classes))
    features = {}
    for index, (name, dim) in enumerate(teachers.items()):
        centres = rng.normal(size=(len(classes), dim))
        noise = rng.normal(size=(rows, dim)) * (1.0 + index)
        features[name] = ((centres[labels] + noise + 3.0) * scales[index % len(scales)]).astype(np.float32)
    splits = np.repeat(["train", "val", "test"], [rows - 2 * (rows // 4), rows // 4, rows // 4])
    return {
        "features": features,
        "labels": labels,
        "splits": splits,
        "slides": np.array([f"slide-{i // 25:03d}" for i in range(rows)]),
        "groups": np.array([f"{split}-patient-{i // 25}" for i, split in enumerate(splits)]),
        "coords": np.stack([np.arange(rows) * 256, np.arange(rows) % 17 * 256], axis=1),
        "classes": list(classes),
    }
