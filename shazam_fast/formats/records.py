"""What an archive says of the teachers whose features it holds: with which weights and how they were made."""

import json
from collections.abc import Mapping

RECORDED = ("transform", "pooling", "revision")  # what must agree between training and scoring


def teacher_records(job: object) -> dict[str, dict[str, str]]:
    """What `extract` wrote into archive.json of every teacher, by name; {} for archives of other origin.

    >>> teacher_records({"teachers": {"uni": {"pooling": "cls", "hub": "MahmoodLab/UNI"}}})
    {'uni': {'pooling': 'cls'}}
    """
    teachers = job.get("teachers") if isinstance(job, Mapping) else None
    if not isinstance(teachers, Mapping):
        return {}
    return {
        str(name): {key: _text(record[key]) for key in RECORDED if record.get(key) is not None}
        for name, record in teachers.items()
        if isinstance(record, Mapping)
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
