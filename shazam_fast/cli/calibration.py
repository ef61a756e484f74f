"""`shazam-fast calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.foreign import refuse_occupied
from .kinds import require_kind
from .options import Device, Features, StudentPath, opens_features
from .printing import say
from .words import SPLIT_NAMES, complete


@opens_features()
def calibrate(
    student: StudentPath,
    features: Features,
    out: Annotated[Path, typer.Option(help="Directory for the calibrated student.")],
    split: Annotated[
        str,
        typer.Option(
            help="Labelled patches that the student was not trained on.", autocompletion=complete(SPLIT_NAMES)
        ),
    ] = "val",
    device: Device = None,
) -> None:
    """Make a student's probabilities as sure as they are right.

    Temperature scaling: the logits are divided by a number fitted on the split.
    """
    from ..training.calibration import calibrate as run

    require_kind(student, "student")
    refuse_occupied(out)
    calibrated = run(student, features.open(), split, device=device)
    calibrated.save(out)
    record = calibrated.training_record["calibration"]
    before, after = record["calibration_error"]
    say(f"temperature {record['temperature']:.3f}: calibration error on {split} {before:.3f}, now {after:.3f}: {out}")
