"""Whether a decoder's options, an encoder and a dataset fit each other; what the training targets are like."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dinov2.data.batch import Batch
from dinov2.models.dense import Pyramid
from dinov2.sensors import suggest
from eval.datasets import EvalDataset
from eval.datasets.base import IGNORE
from eval.decoders import DECODERS, NECKS, PER_IMAGE, PYRAMIDAL
from eval.features import Trial
from eval.joining import WHOLE
from eval.losses import OF_KIND
from eval.reading import TARGET, targets
from eval.tasks.crops import CROPS, labelled
from eval.tasks.heads import OPTIMIZERS, SCHEDULES

if TYPE_CHECKING:
    from eval.tasks.decoder import Options

TRAINED = ("frozen", "finetune", "patch_embed", "scratch")
OF_PAIRS = ("difference", "concat")  # necks


def check(trial: Trial, options: Options) -> None:
    """ValueError, in one sentence, where the options fit neither each other nor the dataset."""
    dataset = trial.dataset
    dense = dataset.splits["train"].dense
    known("decoder", options.decoder, DECODERS)
    known("neck", options.neck, ("none", *NECKS))
    known("train", options.train, TRAINED)
    known("crop", options.crop, ("none", *CROPS))
    known("loss", options.loss or OF_KIND[dataset.kind][0], OF_KIND[dataset.kind])
    known("optimizer", options.optimizer, OPTIMIZERS)
    known("schedule", options.schedule, SCHEDULES)
    weights = options.class_weights
    if weights is not None and (options.loss != "weighted_cross_entropy" or len(weights) != len(dataset.classes)):
        raise ValueError(
            f"task.class_weights are {len(weights)}: give one for each of the {len(dataset.classes)} classes of "
            f"dataset {dataset.name}, with task.loss=weighted_cross_entropy"
        )
    if dense == (options.decoder in PER_IMAGE):
        has = "a map per image" if dense else f"one target per image: set task.decoder={PER_IMAGE[0]}"
        raise ValueError(f"task.decoder={options.decoder} does not fit dataset {dataset.name}, which has {has}")
    if (options.neck == "none") != (dataset.frames == 1) or (options.neck in OF_PAIRS and not dataset.pair):
        what = "pairs" if dataset.pair else f"{dataset.frames} dates" if dataset.frames > 1 else "one date"
        fits = [n for n in NECKS if dataset.pair or n not in OF_PAIRS] if dataset.frames > 1 else ["none"]
        raise ValueError(
            f"task.neck={options.neck} does not fit dataset {dataset.name}, which has {what}: {', '.join(fits)} would"
        )
    if options.decoder in PYRAMIDAL and not trial.model.pyramid:
        check_pyramid(trial, options.decoder)
    if options.loss == "bce" and dataset.kind == "segmentation" and len(dataset.classes) != 2:
        raise ValueError(f"task.loss=bce separates two classes; dataset {dataset.name} has {len(dataset.classes)}")
    if options.crop == "none":
        return
    if options.crop != "random" and not (dense and (options.crop == "focus" or dataset.kind == "segmentation")):
        raise ValueError(f"task.crop={options.crop} needs a map of {'classes' if dense else 'labels'} per image")
    if trial.joined.size and dense:
        raise ValueError(
            f"task.crop={options.crop} cuts images that are resized to {trial.joined.size}: set model.size=tile (or "
            "interpolate), or task.crop=none"
        )
    if not (options.crop_size or trial.joined.window or trial.joined.sizing == WHOLE):
        raise ValueError(f"task.crop={options.crop}: say how large, as task.crop_size=224")


@torch.no_grad()
def check_pyramid(trial: Trial, decoder: str) -> None:
    """ValueError where the pyramid made of a model's one map would have as many pixels as the image, or more."""
    maps, side = trial.model.maps(trial.example), trial.example["imgs"].shape[-1]
    if len(maps) == 1 and max(Pyramid.SCALES) * maps[0].shape[-1] >= side:
        raise ValueError(
            f"task.decoder={decoder} would make the one map of {trial.model.name} as fine as the pixels or finer, "
            "which seldom fits into memory: set task.decoder to linear, mlp or fcn"
        )


def known(option: str, name: str, names: Collection[str]) -> None:
    """ValueError unless ``name`` is one of the ``names``."""
    if name not in names:
        raise ValueError(f"task.{option} {name!r} is not one of {', '.join(names)}{suggest(name, list(names))}")


def check_batch(batch: Batch, dataset: EvalDataset, neck: str) -> None:
    """ValueError, naming the sample, for a class that the dataset does not have and a series without dates for LTAE."""
    target = batch.labels[TARGET]
    if dataset.kind == "segmentation":
        wrong = (target < IGNORE) | (target >= len(dataset.classes))
        if wrong.any():
            i = int(wrong.flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"dataset {dataset.name}: the map of sample {batch.keys[i]!r} holds {int(target[i][wrong[i]][0])}, but "
                f"there are {len(dataset.classes)} classes; correct dataset.classes or what is ignored"
            )
    if neck == "ltae":
        unknown = (batch.meta["days"].isnan() & ~batch.meta["padding"]).any(1)
        if unknown.any():
            key = batch.keys[int(unknown.nonzero()[0])]
            raise ValueError(f"task.neck=ltae needs dates, but sample {key!r} of {dataset.name} has none; neck=linear")


def class_shares(dataset: EvalDataset, rows: Sequence[int]) -> Tensor:
    """Shares ``[K]`` of the classes among the labelled pixels of these training images."""
    counts = torch.zeros(len(dataset.classes), dtype=torch.float64)
    for target in targets(dataset.splits["train"], rows):
        counts += torch.bincount(target[labelled(target)].flatten(), minlength=len(counts))[: len(counts)]
    if not counts.sum():
        raise ValueError(f"dataset {dataset.name}: no pixel of its {len(rows)} training maps has a label")
    return (counts / counts.sum()).float()


def moments(dataset: EvalDataset, rows: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of the values of these training images."""
    n, total, squares = 0, 0.0, 0.0
    for target in targets(dataset.splits["train"], rows):
        values = target[labelled(target)].double()
        n, total, squares = n + values.numel(), total + values.sum().item(), squares + values.square().sum().item()
    if not n:
        raise ValueError(f"dataset {dataset.name}: no pixel of its {len(rows)} training maps has a value")
    mean = total / n
    return mean, max(squares / n - mean**2, 0.0) ** 0.5 or 1.0
