"""`shazam-fast finetune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..comparison.finetuning.config import FinetuneConfig
from ..runtime.jobs.foreign import require_place_for
from ..runtime.summaries import counted
from .options import Dataset, DatasetSplit, add_options, config_options
from .printing import say
from .training import print_metrics
from .words import teacher_name

HELP = {
    "epochs": "Passes over the training images, at most.",
    "batch_size": "Images per step.",
    "backbone_lr": "Learning rate of the teacher.",
    "head_lr": "Learning rate of the head.",
    "weight_decay": "Weight decay of AdamW.",
    "patience": "Stop after this many epochs without a better validation score.",
    "seed": "Random seed.",
    "device": "cpu, cuda or cuda:1. Default: a GPU if PyTorch finds one.",
    "workers": "Image-decoding threads.",
    "checkpoint_seconds": "Seconds between two checkpoints; one is also written after every epoch.",
}


# Over 40 lines: every option is declared here.
@add_options(config_options(FinetuneConfig, HELP), "options", dict)
def finetune(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV with columns path, label and split, or folder with train, val and test, and one folder per class "
            "in each.",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
    teacher: Annotated[str, teacher_name("Name of the teacher (shazam-fast teachers lists them).")],
    options: dict[str, Any],
    out: Annotated[
        Path, typer.Option(help="Directory for the fine-tuned teacher. Run the command again to resume it.")
    ],
    dataset: Dataset = None,
    split: DatasetSplit = "by_slide",
    weights: Annotated[
        str, typer.Option(help="File of the teacher's weights, hub (downloads them) or random.", metavar="PATH")
    ] = "hub",
    transform: Annotated[
        str, typer.Option(help="own, or imagenet (every image as the authors' scripts prepare it).")
    ] = "own",
) -> None:
    """Fine-tune one teacher on images, the paper's baseline. Ctrl-C keeps a checkpoint."""
    from ..comparison.finetuning.run import finetune as run
    from ..images.datasets import load_dataset

    require_place_for(out, "finetuned")
    images = source if dataset is None else load_dataset(dataset, source, split)
    result = run(images, teacher, FinetuneConfig(**options), out=out, weights=weights, transform=transform)
    best = max(result.history, key=lambda record: record["val_score"])
    epochs = counted(len(result.history), "epoch")
    say(f"fine-tuned {teacher} in {out}: the best of {epochs} is number {best['epoch'] + 1}")
    print_metrics(result.metrics)
