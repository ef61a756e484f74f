"""Fitting one model: packs of training slides, the best epoch by the loss of validation slides."""

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import NonFiniteError
from ..runtime.progress import Progress
from ..training.feed import feature_statistics
from .bags import Bags
from .cohort.folds import Fold
from .cohort.targets import Targets, take
from .losses import TaskLoss
from .models.inference import predict
from .models.mixed import multiplying
from .models.packs import Pack, Packs
from .models.pooling import SlideModel
from .options import FitOptions, SlideConfig
from .slide_teachers.distillation import Distiller, slide_statistics
from .students import build_model

STATISTICS_ROWS = 50_000  # patches from which means and scales are taken


# Over 40 lines: every option is documented here.
def fit(
    bags: Bags,
    targets: Targets,
    fold: Fold,
    config: SlideConfig,
    options: FitOptions,
    device: torch.device,
    name: str,
) -> tuple[SlideModel, list[dict[str, Any]]]:
    """Fit a model on a fold's training bags. Its test bags are not read.

    Args:
        bags, targets: all bags and their targets.
        fold: bags to train on and to choose the epoch by, with known targets.
        config: shape of the model.
        options: how it is fitted; `seed` must differ between folds.
        device: where it computes.
        name: of the fold, for the progress line.

    Returns the model of the epoch with the smallest validation loss, on the CPU, and one record per epoch: "epoch",
    "loss" and "val_loss" per slide, "seconds".

    Raises NonFiniteError, naming teacher and row, for NaN or infinity.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        model = build_model(config).to(device)
        of_teachers = None if bags.slide_features is None else slide_statistics(bags.slide_features[fold.train])
        if model.reads_patches:
            mean, scale = feature_statistics(bags.archive, _some_rows(bags, fold.train))
        else:
            assert of_teachers is not None
            mean, scale = of_teachers
        model.feature_mean.copy_(mean)
        model.feature_scale.copy_(scale)
        distiller = None
        if of_teachers is not None and model.reads_patches and options.distillation > 0:
            widths = [len(classes) for classes in config.targets.values()]
            D = model.head.in_features
            distiller = Distiller(bags.slide_teachers, D, config.task, options, of_teachers, widths).to(device)
        with Progress(name, options.epochs, "epochs") as progress:
            history = _train(model, distiller, bags, targets, fold, config.task, options, progress)
    return model.cpu().eval(), history


def _train(
    model: SlideModel,
    distiller: Distiller | None,
    bags: Bags,
    targets: Targets,
    fold: Fold,
    task: str,
    options: FitOptions,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train, and leave the model as it was after the best epoch. Returns one record per epoch."""
    device, training = model.feature_mean.device, take(targets, fold.train)
    loss = TaskLoss(task, targets, training, device)
    standard = (model.feature_mean.cpu(), model.feature_scale.cpu()) if options.precision == "bf16" else None
    packs = Packs(
        bags, fold.train, options.batch_size, options.patches, model.needs_regions, model.reads_patches,
        standard=standard,
    )  # fmt: skip
    parameters = [*model.parameters(), *(distiller.parameters() if distiller else ())]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
    history: list[dict[str, Any]] = []
    best, lowest, best_epoch = {}, math.inf, 0
    for epoch in range(options.epochs):
        started, total = time.monotonic(), 0.0
        model.train()
        with multiplying(options.precision):
            for pack in packs.epoch(np.random.default_rng([options.seed, epoch]), epoch):
                total += _step(model, distiller, optimizer, loss, pack, packs.places, options.batch_size, bags)
        outputs = predict([model.eval()], bags, fold.val, device)[0]
        val_loss = float(loss(outputs, torch.from_numpy(fold.val).to(device))) / len(fold.val)
        if not math.isfinite(val_loss):
            raise NonFiniteError(f"{bags.archive.path}: the validation loss became {val_loss}; give a smaller lr")
        if val_loss < lowest:
            best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            lowest, best_epoch = val_loss, epoch
        history.append({"epoch": epoch, "loss": total / len(fold.train), "val_loss": val_loss})
        history[-1]["seconds"] = time.monotonic() - started
        progress.advance(1, f"validation loss {lowest:.4f}")
        if epoch - best_epoch >= options.patience:
            break
    model.load_state_dict(best)
    loss.restore_scale(model.head)
    return history


def _step(
    model: SlideModel,
    distiller: Distiller | None,
    optimizer: torch.optim.Optimizer,
    loss: TaskLoss,
    pack: Pack,
    places: int,
    batch_size: int,
    bags: Bags,
) -> float:
    """One step on a pack; its task's loss, summed over its slides. Divided by `batch_size`, all weigh the same."""
    device = model.feature_mean.device
    members = torch.from_numpy(pack.bags[pack.bags >= 0]).to(device)
    of_slides = _slide_features(bags, pack.bags, places + 1, device)
    labels = loss.labels(torch.from_numpy(pack.bags).to(device))
    features, segments, regions = pack.on(device)
    read = model(features, segments, places + 1, regions, of_slides, labels)
    outputs = read.outputs[: len(members)]
    summed = loss(outputs, members)
    value = summed.item()
    if distiller is not None:
        assert of_slides is not None
        summed = distiller(outputs, of_slides[: len(members)], model.head, loss, members)
    if read.own_loss is not None:
        summed = summed + read.own_loss
    if not math.isfinite(value):
        bags.archive.require_finite(pack.rows, pack.features[: len(pack.rows)].float().numpy())
        raise NonFiniteError(f"{bags.archive.path}: the loss became {value}; give a smaller lr")
    optimizer.zero_grad(set_to_none=True)
    (summed / batch_size).backward()
    optimizer.step()
    return value


def _slide_features(bags: Bags, members: NDArray[np.int64], count: int, device: torch.device) -> Tensor | None:
    """Features of slide-level teachers of the bags in a pack's places, [count, W]; NaN in places without a bag."""
    if bags.slide_features is None:
        return None
    found = np.full((count, bags.slide_features.shape[1]), np.nan, dtype=np.float32)
    found[: len(members)][members >= 0] = bags.slide_features[members[members >= 0]]
    return torch.from_numpy(found).to(device)


def _some_rows(bags: Bags, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the chosen bags; of very many, evenly spaced ones."""
    rows = np.concatenate([bags.rows_of(bag) for bag in chosen.tolist()])
    return rows[:: max(1, len(rows) // STATISTICS_ROWS)]
