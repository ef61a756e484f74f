"""The slides of a training, kept with the student, so that figures on them do not pass for figures on new slides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import MismatchError

TRAINED = ("train", "val")  # splits that decide a student


def seen_slides(record: Mapping[str, Any], names: Iterable[str], splits: Sequence[str] = TRAINED) -> list[str]:
    """Those of some slides that a training read, in the order given.

    Args:
        record: a student's `training_record`; an ensemble's has those of its members.
        names: of slides, each once.
        splits: which of the training's splits count.
    """
    members = record.get("members", [])
    read: set[str] = set()
    for one in [record, *members]:
        by_split = one.get("slides", {})
        read.update(name for split in splits for name in by_split.get(split, []))
    return [name for name in names if name in read]


def require_unseen(record: Mapping[str, Any], names: Sequence[str], place: object, split: str) -> None:
    """Raise MismatchError when a student was trained on slides that it is to be judged on.

    Args:
        record: a student's `training_record`.
        names: of the slides that it is to be judged on.
        place: the archive, for the message.
        split: their split: "train" may be any, "val" none of the training's "train", others none that it read.
    """
    if split == "train":
        return
    seen = seen_slides(record, names, TRAINED[:1] if split == "val" else TRAINED)
    if seen:
        raise MismatchError(
            f"{place}: the student was trained on {len(seen):,} of the {len(names):,} slides that it is to be judged "
            f"on; the first is {seen[0]!r}. Judge it on others, as by the splits of the training (--splits FILE, or "
            "--val, --test and --seed as there); if these are other slides of the same names, "
            "allow_trained_slides=True (--allow-trained-slides)"
        )
