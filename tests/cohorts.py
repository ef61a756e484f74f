"""Whole slides that tests make for themselves, with a planted signal."""

import numpy as np

import shazam_fast as sf

TEACHERS = {"uni": 16, "virchow2": 24, "gigapath": 12}
SEEING = "virchow2"  # the one teacher to which the telling patches look different


def make_cohort(path, slides=60, per_patient=1, telling=0.03, sizes=(60, 140), seed=0, strength=4.0):
    """Slides of class "b" hold a few patches of a rare type, which one teacher alone sees; those of "a" hold none.

    The other patches are of six common types, in proportions that differ from slide to slide.

    Returns the archive, {slide: label}, and which rows are of the rare type.
    """
    rng = np.random.default_rng(seed)
    centres = {name: rng.normal(size=(6, dim)) for name, dim in TEACHERS.items()}
    rare = rng.normal(size=TEACHERS[SEEING])
    rare *= strength / np.linalg.norm(rare)
    features = {name: [] for name in TEACHERS}
    names, groups, rows, labels = [], [], [], {}
    for slide in range(slides):
        name, n = f"s{slide:03d}", int(rng.integers(*sizes))
        labels[name] = "ab"[slide // per_patient % 2]
        kinds = rng.choice(6, n, p=rng.dirichlet(np.ones(6)))
        is_rare = np.zeros(n, dtype=bool)
        if labels[name] == "b":
            is_rare[rng.choice(n, max(2, round(telling * n)), replace=False)] = True
        for teacher, dim in TEACHERS.items():
            x = centres[teacher][kinds] + 0.5 * rng.normal(size=(n, dim))
            if teacher == SEEING:
                x[is_rare] += rare
            features[teacher].append(x.astype(np.float32))
        names += [name] * n
        groups += [f"p{slide // per_patient:03d}"] * n
        rows.append(is_rare)
    written = sf.write_archive(
        path,
        {name: np.concatenate(blocks) for name, blocks in features.items()},
        slides=names,
        groups=groups,
        coords=np.stack([np.arange(len(names)) * 256, np.zeros(len(names), dtype=int)], axis=1),
        dtype="float32",
    )
    return sf.open(written), labels, np.concatenate(rows)


def make_survival(labels, seed=0, ratio=4.0):
    """Times and events of slides: those of class "b" have a hazard `ratio` times as large; a third are censored."""
    rng = np.random.default_rng(seed)
    hazard = np.array([ratio if label == "b" else 1.0 for label in labels.values()])
    times, censored = rng.exponential(24 / hazard), rng.exponential(40, len(labels))
    return {
        "slide_id": list(labels),
        "months": np.minimum(times, censored).round(3) + 0.001,
        "dead": (times <= censored).astype(int),
    }


def make_hazard(path, slides=120, log_ratio=2.6, seed=0):
    """Slides of which a fraction f of the patches is of the telling type; the log hazard is `log_ratio` * f.

    Returns the archive, the table of times and events (a fifth censored), and {slide: log hazard}.
    """
    rng = np.random.default_rng(seed)
    rare = rng.normal(size=TEACHERS[SEEING])
    rare *= 6 / np.linalg.norm(rare)
    features, names, hazard = {name: [] for name in TEACHERS}, [], {}
    for slide in range(slides):
        name, n, fraction = f"s{slide:03d}", int(rng.integers(30, 60)), rng.random()
        is_rare = np.arange(n) < round(fraction * n)
        for teacher, dim in TEACHERS.items():
            x = rng.normal(size=(n, dim))
            if teacher == SEEING:
                x[is_rare] += rare
            features[teacher].append(x.astype(np.float32))
        names += [name] * n
        hazard[name] = log_ratio * is_rare.mean()
    blocks = {name: np.concatenate(parts) for name, parts in features.items()}
    archive = sf.open(sf.write_archive(path, blocks, slides=names, dtype="float32"))
    times = rng.exponential(1 / np.exp(list(hazard.values())))
    censored = rng.exponential(2.0, slides)
    table = {
        "slide_id": list(hazard),
        "months": np.minimum(times, censored).round(4) + 0.0001,
        "dead": (times <= censored).astype(int),
    }
    return archive, table, hazard


def make_sites(path, sites=24, per_site=8, seed=2):
    """Slides without any sign of their class but the look of their site, most of whose slides are of one class.

    Each site shows in a column of its own, so what is learned of some sites says nothing of others.

    Returns the archive and the table of slide_id, label and site.
    """
    rng = np.random.default_rng(seed)
    features, names, table = {name: [] for name in TEACHERS}, [], {"slide_id": [], "label": [], "site": []}
    for site in range(sites):
        look = np.split(4.0 * np.eye(sum(TEACHERS.values()))[site], np.cumsum(list(TEACHERS.values()))[:-1])
        for number in range(per_site):
            name, n = f"h{site:02d}s{number}", int(rng.integers(10, 20))
            common = "ab"[site % 2]
            table["slide_id"].append(name)
            table["label"].append(common if number < per_site - 1 else "ba"[site % 2])
            table["site"].append(f"hospital {site}")
            for i, (teacher, dim) in enumerate(TEACHERS.items()):
                features[teacher].append((look[i] + rng.normal(size=(n, dim))).astype(np.float32))
            names += [name] * n
    blocks = {name: np.concatenate(parts) for name, parts in features.items()}
    return sf.open(sf.write_archive(path, blocks, slides=names, dtype="float32")), table
