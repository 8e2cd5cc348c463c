"""From predictions and targets of a split to the metric fields of a row, by the kind of the dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval import dense_metrics as dense
from eval import metrics
from eval.datasets import EvalDataset
from eval.datasets.base import IGNORE
from eval.reading import targets

if TYPE_CHECKING:
    from eval.networks import Model
    from eval.tasks.heads import Head

HEADLINE = {"classification": "accuracy", "multilabel": "map", "segmentation": "miou", "regression": "rmse"}
LOWER = ("rmse",)  # metrics of which less is better, in the target's unit; all others are fractions


@dataclass(frozen=True)
class Outcome:
    """What a task leaves: logits of the test images in their order, batch by batch, and what validation has chosen.

    ``curve`` is the course of validation of what was chosen.
    """

    logits: Iterable[Tensor]
    chosen: dict[str, Any]
    curve: dict[str, Any] = field(default_factory=dict)
    trained: tuple[Model, Head] | None = None  # of tasks whose heads can be kept


def states_of(dataset: EvalDataset, split: str, logits: Iterable[Tensor]) -> Tensor:
    """States ``[N, ...]`` of predictions of a split in its order; AssertionError where an image is lost or twice."""
    owner, at, found = dataset.splits[split], 0, []
    for batch in logits:
        rows = range(at, at + len(batch))
        at += len(batch)
        target = torch.stack(list(targets(owner, rows)))
        found.append(state(dataset.kind, batch, target.to(batch.device), len(dataset.classes), dataset.threshold))
    assert at == len(owner), f"{at} of {len(owner)} images were predicted"
    states = torch.cat(found)
    check_labelled(dataset, split, bool(states.any()))
    return states


def check_labelled(dataset: EvalDataset, split: str, some: bool) -> None:
    """ValueError unless ``some`` pixel of the split's maps has a label."""
    if dataset.splits[split].dense and not some:
        raise ValueError(
            f"dataset {dataset.name}: no pixel of its {split} maps has a label; correct what is ignored, or the masks"
        )


def score(kind: str, states: Tensor, classes: int, *, resamples: int = 0, seed: int = 0) -> dict[str, Any]:
    """The metric fields of a row: headline metric as the value, its 95 % interval over images, and the details.

    ``states`` ``[N, ...]`` of all images (:func:`state`); without ``resamples`` there is no interval.
    """
    return SCORES[kind](states, classes, resamples, seed)


def merit(kind: str, states: Tensor, classes: int) -> float:
    """The headline metric, negative where less is better: what validation maximises."""
    found = score(kind, states, classes)
    return -found["value"] if found["metric"] in LOWER else found["value"]


def state(kind: str, logits: Tensor, target: Tensor, classes: int, threshold: float | None = None) -> Tensor:
    """What the score needs to know of each image, ``[B, ...]`` on the CPU; ``threshold``: of a regression's values."""
    if kind == "segmentation":
        return dense.confusions(dense.predicted_classes(logits), target, classes, IGNORE).cpu()
    if kind == "regression":
        return dense.residuals(logits.reshape(len(target), -1), target.reshape(len(target), -1), threshold).cpu()
    return torch.cat([logits.double(), target.double().view(len(target), -1)], 1).cpu()


def segmentation(states: Tensor, classes: int, resamples: int, seed: int) -> dict[str, Any]:
    """Mean IoU over all pixels of the split; ``states`` confusion matrices ``[N, K, K]``."""
    found = dense.segmentation_scores(states.sum(0))
    interval = dense.bootstrap(states, lambda s: dense.segmentation_scores(s)["miou"], seed=seed, resamples=resamples)
    means = {name: x.item() for name, x in found.items() if x.ndim == 0}
    per_class = {name: x.tolist() for name, x in found.items() if x.ndim == 1}
    return fields("miou", means, interval, len(states), per_class, states.sum(0).long())


def regression(states: Tensor, classes: int, resamples: int, seed: int) -> dict[str, Any]:
    """Root mean squared error over all pixels, or images with a value each; ``states``: residuals ``[N, 7 or 10]``."""
    means = {name: x.item() for name, x in dense.regression_scores(states.sum(0)).items()}
    interval = dense.bootstrap(states, lambda s: dense.regression_scores(s)["rmse"], seed=seed, resamples=resamples)
    return fields("rmse", means, interval, len(states))


def classification(states: Tensor, classes: int, resamples: int, seed: int) -> dict[str, Any]:
    """Overall accuracy, of more than five classes top-5 too; ``states`` logits and class ``[N, K + 1]``."""
    logits, target = states[:, :-1], states[:, -1].long()
    predicted = logits.argmax(1)
    confusion = metrics.confusion_matrix(predicted, target, classes)
    hits = torch.stack([predicted == target, torch.ones_like(target)], 1)  # [N, 2]
    interval = dense.bootstrap(hits, lambda s: s[:, 0] / s[:, 1], seed=seed, resamples=resamples)
    means = metrics.summarise(confusion)
    if classes > 5:
        means["top5_accuracy"] = dense.top_k_accuracy(logits, target, 5)
    return fields("accuracy", means, interval, len(target), metrics.class_scores(confusion), confusion)


def multilabel(states: Tensor, classes: int, resamples: int, seed: int) -> dict[str, Any]:
    """Mean average precision over the labels that occur; ``states`` logits and labels ``[N, 2 K]``."""
    logits, target = states.split(classes, 1)
    interval = dense.bootstrap_precision(logits, target, seed=seed, resamples=resamples)
    means = dense.multilabel_scores(logits, target)
    return fields("map", means, interval, len(target), dense.label_scores(logits, target))


def fields(
    metric: str,
    means: dict[str, float],
    interval: tuple[float, float],
    n: int,
    per_class: dict[str, list[float]] | None = None,
    confusion: Tensor | None = None,
) -> dict[str, Any]:
    """See :func:`score`; ``confusion`` ``[K, K]``, row = true class, where a prediction is one of K classes."""
    return {
        "metric": metric,
        "value": means[metric],
        "ci_low": interval[0],
        "ci_high": interval[1],
        "n": n,
        "metrics": means,
        "per_class": per_class or {},
        "confusion": [] if confusion is None else confusion.tolist(),
    }


SCORES: Mapping[str, Callable[[Tensor, int, int, int], dict[str, Any]]] = {
    "classification": classification,
    "multilabel": multilabel,
    "segmentation": segmentation,
    "regression": regression,
}
