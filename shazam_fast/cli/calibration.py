"""`shazam-fast calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.foreign import refuse_occupied
from .kinds import require_kind
from .options import Device, Features, StudentPath, opens_features
from .printing import say


@opens_features()
def calibrate(
    student: StudentPath,
    features: Features,
    out: Annotated[Path, typer.Option(help="Directory for the calibrated student.")],
    split: Annotated[str, typer.Option(help="Labelled patches that the student was not trained on.")] = "val",
    device: Device = None,
) -> None:
    """Make probabilities as sure as they are right (temperature)."""
    from ..training.calibration import calibrate as run

    require_kind(student, "student")
    refuse_occupied(out)
    calibrated = run(student, features.open(), split, device=device)
    calibrated.save(out)
    record = calibrated.training_record["calibration"]
    before, after = record["calibration_error"]
    say(f"temperature {record['temperature']:.3f}: calibration error on {split} {before:.3f}, now {after:.3f}: {out}")
