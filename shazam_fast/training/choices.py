"""The options of an objective and their checks. Imports no torch, so that the command line starts fast."""

from typing import Any

from ..runtime.checks import require_choice, require_number

TARGETS = ("projected", "detached", "frozen")
HUBERS = ("norm", "elementwise")
SCHEDULES = ("constant", "one_cycle")
SHUFFLES = ("full", "blocks")
SELECTIONS = ("best", "last")


def check_objective(
    lam: object, delta: object, huber: object, targets: object, teacher_heads: object = 0.0
) -> dict[str, Any]:
    """The options of an objective as plain values. Raises ShazamError naming the first that is wrong."""
    return {
        "lam": require_number("lam", lam, 0.0),
        "delta": require_number("delta", delta, above=0.0),
        "huber": require_choice("huber", huber, HUBERS),
        "targets": require_choice("targets", targets, TARGETS),
        "teacher_heads": require_number("teacher_heads", teacher_heads, 0.0),
    }
