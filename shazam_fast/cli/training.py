"""`shazam-fast train`, `evaluate` and `calibrate`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.jobs.foreign import refuse_occupied, require_kind, require_place_for
from ..runtime.summaries import counted
from ..student.config import BLOCKS
from ..training.choices import HUBERS, SCHEDULES, SELECTIONS, SHUFFLES, TARGETS
from ..training.config import PRESETS, TrainConfig
from .options import (
    AllowTrainedSlides,
    Device,
    Features,
    JudgedSplit,
    StudentPath,
    add_options,
    config_options,
    opens_features,
)
from .printing import print_table, require_file_place, say, write_json
from .words import SPLIT_NAMES, one_of, optional

if TYPE_CHECKING:
    from ..archive.archive import FeatureArchive
    from ..scoring.metrics import Metrics

HELP = {
    "epochs": "Passes over the training split, at most.",
    "batch_size": "Patches per step.",
    "shuffle": "Order of patches: full (any) or blocks (runs of neighbours mixed; for features larger than memory).",
    "lr": "Learning rate of AdamW.",
    "weight_decay": "Weight decay of AdamW.",
    "schedule": "Learning rate: constant, or one_cycle (rises for 30% of the steps, then falls to almost 0).",
    "lam": "Weight of the distillation losses (lambda).",
    "delta": "Residual at which the Huber loss becomes linear.",
    "huber": "Huber loss of: norm (the distance of student and teacher, as in the paper) or elementwise (each "
    "component, as in the authors' script).",
    "targets": "What to distil from: projected (the teachers' tokens), detached (the same without gradient) or frozen "
    "(fixed random maps of the features, as in the authors' script).",
    "balance": "How far classes count alike: 0 (patches count alike), 1 (as if all were equally frequent) or more.",
    "teacher_heads": "Weight of the loss of a linear head on each teacher's token.",
    "mixup": "Parameter of the Beta distribution by which patches are mixed in a training step; 0: not at all.",
    "dim": "Width of the student (D).",
    "depth": "Attention layers (K); of each level with --block levels.",
    "block": "bare (the paper), residual (the authors' script) or levels (low, mid and high features of each teacher).",
    "teacher_dropout": "Probability of withholding a teacher from a patch in training.",
    "feature_dropout": "Probability of leaving out a feature column in a training step.",
    "standardize": "Scale every feature to mean 0 and variance 1 of the training split.",
    "selection": "The epoch that is kept: best (by the validation score) or last.",
    "patience": "With selection best: stop after this many epochs without a better validation score.",
    "seed": "Random seed, also of --val and --test.",
    "device": "cpu, cuda or cuda:1. Default: a GPU if PyTorch finds one.",
    "threads": "Of the CPU. Default: as many as a step has work for, at most one per core. Changes the last bits only.",
    "backend": "auto, triton (an error where its kernels do not apply) or reference (plain PyTorch).",
    "precision": "Of matrix products on a GPU: ieee (float32), tf32, bf16 or fp16.",
    "checkpoint_seconds": "Seconds between two checkpoints.",
}


def _open_with_splits(features: Features, seed: int) -> "FeatureArchive":
    """The archive that is trained on. Where it has no splits and none were asked for, random ones are made, and said.

    Args:
        features: what was asked for.
        seed: of the random splits.
    """
    archive = features.open()
    if "splits" in features.given or not archive.classes or len(archive.split("none")) < archive.n_rows:
        return archive
    from ..annotation.splits import GroupedSplit
    from ..archive.opening import split_of

    split = GroupedSplit(seed=seed)
    options = f"--val {split.val} --test {split.test} --seed {seed}"
    say(f"no splits are given: made as by {options}; evaluate, score and report need these options too")
    return split_of(archive, split)


def _typed(context: typer.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user typed: one left at its default must not undo what the preset says."""
    sources = {name: context.get_parameter_source(name) for name in options}
    return {name: options[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


CHOICES = {  # option -> what its value can be, for completion in a shell
    "shuffle": SHUFFLES,
    "schedule": SCHEDULES,
    "huber": HUBERS,
    "targets": TARGETS,
    "selection": SELECTIONS,
    "block": BLOCKS,
    "device": ("cpu", "cuda"),
    "backend": ("auto", "triton", "reference"),
    "precision": ("ieee", "tf32", "bf16", "fp16"),
}


@opens_features(seeded=True)
@add_options(config_options(TrainConfig, HELP, CHOICES), "options", dict)
def train(
    context: typer.Context,
    features: Features,
    options: dict[str, Any],
    out: Annotated[Path, typer.Option(help="Directory for the student. Run the command again to resume it.")],
    preset: Annotated[
        str | None, optional(f"Values of options, by name: {', '.join(PRESETS)}.", words=tuple(PRESETS))
    ] = None,
) -> None:
    """Train a student. Ctrl-C keeps a checkpoint; the same command resumes from it.

    Without splits in the features, --splits, --val or --test, 15% of the patches, whole patients or slides, are for
    validation and 15% for the test.
    """
    from ..training.train import train as run

    require_place_for(out, "student")
    archive = _open_with_splits(features, options["seed"])
    result = run(archive, out=out, preset=preset, **_typed(context, options))
    kept = result.history[-1]
    if result.student.training_record["job"]["selection"] == "best":
        kept = max(result.history, key=lambda record: record["val_score"])
    say(f"student in {out}: of {counted(len(result.history), 'epoch')}, number {kept['epoch'] + 1} is kept")
    print_metrics(result.metrics)


@opens_features()
def evaluate(
    student: StudentPath,
    features: Features,
    split: JudgedSplit = "test",
    allow_trained_slides: AllowTrainedSlides = False,
    device: Device = None,
    out: Annotated[Path | None, optional("JSON file for the metrics.")] = None,
) -> None:
    """Print a student's metrics on a labelled split."""
    from ..scoring.evaluate import evaluate as run

    require_kind(student, "student")
    if out is not None:
        require_file_place(out, "--out")
    metrics = run(student, features.open(), split, allow_trained_slides=allow_trained_slides, device=device)
    print_metrics({split: metrics})
    if out is not None:
        write_json(out, {"split": split, **metrics.to_dict()})


@opens_features()
def calibrate(
    student: StudentPath,
    features: Features,
    out: Annotated[Path, typer.Option(help="Directory for the calibrated student.")],
    split: Annotated[
        str,
        one_of("Labelled patches that the student was not trained on.", SPLIT_NAMES),
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


def print_metrics(metrics: "dict[str, Metrics]") -> None:
    """Print one row of metrics per split, then per split its classes and the confusion matrix."""
    print_table(
        ["split", "patches", "balanced\naccuracy", "weighted\nF1", "accuracy", "AUROC", "MCC", "kappa", "ECE"],
        [
            (
                split,
                f"{m.n_rows:,}",
                *_numbers(m.balanced_accuracy, m.weighted_f1, m.accuracy, m.auroc, m.mcc, m.kappa, m.calibration_error),
            )
            for split, m in metrics.items()
        ],
    )
    for split, m in metrics.items():
        print_table(
            ["class", "patches", "precision", "recall", "F1", "AUROC"],
            [
                (name, f"{found.n_rows:,}", *_numbers(found.precision, found.recall, found.f1, found.auroc))
                for name, found in m.per_class.items()
            ],
            f"per class, {split}",
        )
        print_table(
            ["true \\ predicted", *m.classes],
            [(name, *(f"{n:,}" for n in row)) for name, row in zip(m.classes, m.confusion.tolist(), strict=True)],
            f"confusion, {split}",
        )
    say("MCC: Matthews' correlation; kappa: Cohen's; ECE: calibration error, in 15 bins; nan: not defined")


def _numbers(*values: float) -> Iterator[str]:
    return (f"{value:.3f}" for value in values)
