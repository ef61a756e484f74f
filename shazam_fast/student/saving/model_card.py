"""The model card of a student: `README.md` as the Hugging Face Hub reads it. What is not known is called unknown."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.files import write_durably
from ...teachers.licences import UNKNOWN, find_licence
from ..config import StudentConfig

README = "README.md"
MARK = "# written by shazam_fast: delete this line to keep your own changes when the student is saved again"
TAGS = ("pathology", "histopathology", "feature-fusion", "knowledge-distillation", "shazam")
FEATURES = ("transform", "pooling", "revision")  # what decides a teacher's features beside its name
METRICS = ("balanced_accuracy", "weighted_f1", "accuracy", "auroc", "calibration_error")
HEAD_BYTES = 4096  # within which the mark is looked for
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")  # characters that Markdown reads


def write_model_card(path: Path, config: StudentConfig, record: Mapping[str, Any], members: int) -> None:
    """Write `README.md` into the directory `path`, unless someone else wrote one there.

    Args:
        path: the directory.
        config: the student's shape.
        record: how it was trained.
        members: number of students of an ensemble; 0 for a single student.

    Raises OSError when it cannot be written.
    """
    file = path / README
    if file.exists() and MARK.encode() not in file.read_bytes()[:HEAD_BYTES]:
        return
    write_durably(file, model_card(config, record, members).encode("utf-8", "replace"))


def model_card(config: StudentConfig, record: Mapping[str, Any], members: int = 0) -> str:
    """The card as Markdown with a YAML head; all names in it are escaped.

    Args: as for `write_model_card`.

    >>> print(model_card(StudentConfig({"uni": 8}, ("normal", "tumour")), {}).splitlines()[2])
    library_name: shazam_fast
    """
    what = f"an ensemble of {members} students" if members else "a student"
    sections = [
        _head(record),
        f"# Student of {len(config.teachers)} pathology foundation models\n",
        f"{what.capitalize()} of shazam_fast: it fuses the features that frozen foundation models (teachers) give for "
        f"a tissue patch, and classifies the patch. Block {config.block}, width {config.dim}, {config.depth} attention "
        f"layers, teacher dropout {config.teacher_dropout}.\n",
        "## Intended use\n",
        "For research on patches of the tissue that it was trained on. It is no medical device and was not tested for "
        "diagnosis. It needs features of the teachers below, made in the same way; a teacher may be missing only if "
        "the teacher dropout is above 0.\n",
        f"Classes: {', '.join(map(_plain, config.classes))}.\n",
        *_teachers(config, record),
        *_data(record),
        *_results(record),
        *_usage(config),
    ]
    return "\n".join(sections)


def _head(record: Mapping[str, Any]) -> str:
    lines = ["---", MARK, "library_name: shazam_fast", "license: other", "license_name: licences-of-the-teachers"]
    lines += ["license_link: '#teachers'", "tags:", *(f"- {tag}" for tag in TAGS)]
    if test := _part(_part(record, "metrics"), "test"):
        values = [f"    - type: {n}\n      value: {test[n]:.4f}" for n in METRICS if isinstance(test.get(n), float)]
        lines += ["model-index:", "- name: shazam_fast student", "  results:", "  - task:"]
        lines += ["      type: image-classification", "    dataset:", "      type: patch-features"]
        lines += [f"      name: {json.dumps(str(_known(record, 'archive')))}", "    metrics:", *values]
    return "\n".join([*lines, "---\n"])


def _teachers(config: StudentConfig, record: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, dim in config.teachers.items():
        licence = find_licence(name)
        derived = {True: "yes", False: "no such clause known", None: UNKNOWN}[licence.covers_derivatives]
        made = _part(_part(record, "teachers"), name)
        rows.append((name, dim, licence.licence, derived, *(_known(made, k) for k in FEATURES)))
    head = ("teacher", "columns", "licence of its weights", "covers models trained on its features")
    return [
        "## Teachers\n",
        "The terms of the teachers' licences may extend to this student.\n",
        *_table((*head, *FEATURES), rows),
    ]


def _data(record: Mapping[str, Any]) -> list[str]:
    lines = ["## Data\n", f"Archive: {_plain(_known(record, 'archive'))}.\n"]
    data = _part(record, "data")
    if not data:
        return [*lines, "Numbers of patches, slides and patients: unknown.\n"]
    rows = [(split, *(_known(_part(data, split), k) for k in ("patches", "slides", "groups"))) for split in data]
    return [*lines, *_table(("split", "patches", "slides", "groups (patients)"), rows)]


def _results(record: Mapping[str, Any]) -> list[str]:
    found = {split: metrics for split in _part(record, "metrics") if (metrics := _part(record["metrics"], split))}
    if not found:
        return ["## Results\n", "Unknown: the student was not evaluated when it was saved.\n"]
    limits = _part(record, "intervals")
    rows = [
        (split, _known(m, "n_rows"), *(_with_limits(m, _part(limits, split), name) for name in METRICS))
        for split, m in found.items()
    ]
    head = ("split", "patches", *(name.replace("_", " ") for name in METRICS))
    return ["## Results\n", *_table(head, rows), _about_intervals(limits), _calibration(_part(record, "calibration"))]


def _with_limits(metrics: Mapping[str, Any], limits: Mapping[str, Any], name: str) -> str:
    """A metric, with its interval where that is recorded."""
    pair = limits.get(name)
    known = f" ({_number(pair[0])} to {_number(pair[1])})" if isinstance(pair, list) and len(pair) == 2 else ""
    return _number(metrics.get(name)) + known


def _about_intervals(limits: Mapping[str, Any]) -> str:
    """How the intervals were made, or that there are none."""
    drawn = {split: _known(_part(limits, split), "groups") for split in limits if len(_part(limits, split)) > 1}
    if not drawn:
        return "Intervals: unknown here; `shazam-fast report` gives them, by bootstrap over patients.\n"
    counts = ", ".join(f"{n} in {_plain(split)}" for split, n in drawn.items())
    return (
        "In brackets: 95% intervals by bootstrap over groups (patients, else slides, else single patches), of which "
        f"there are {counts}. They cover the choice of groups, not another training; from fewer than about ten groups "
        "they are too narrow.\n"
    )


def _calibration(found: Mapping[str, Any]) -> str:
    if not found:
        return "Not calibrated by temperature scaling.\n"
    errors = found.get("calibration_error")
    before, after = map(_number, errors if isinstance(errors, list) and len(errors) == 2 else (None, None))
    return (
        f"Calibrated afterwards on {_plain(_known(found, 'split'))} by temperature scaling, temperature "
        f"{_number(found.get('temperature'))}: calibration error there {before}, now {after}. The table is of the "
        "student before.\n"
    )


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the record; empty where there is none, or something else: users may write records."""
    part = record.get(name)
    return part if isinstance(part, Mapping) else {}


def _known(record: Mapping[str, Any], name: str) -> object:
    return UNKNOWN if record.get(name) is None else record[name]


def _usage(config: StudentConfig) -> list[str]:
    return [
        "## How to use it\n",
        "```python\nimport shazam_fast as sf\n\nstudent = sf.load(\"path/to/this/directory\")\n"
        f"scores = sf.score(student, \"features\")  # features of {len(config.teachers)} teachers, see above\n```\n",
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines, ""]


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else UNKNOWN


def _plain(value: object) -> str:
    """Text that neither Markdown nor HTML reads as more than text."""
    return SPECIAL.sub(r"\\\1", html.escape(" ".join(str(value).split()), quote=False))
