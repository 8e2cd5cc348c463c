"""Scores of maps and of several labels per image, from one small additive state per image.

Summed over images a state gives the score; summed over resampled images its interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from eval.metrics import confusion_matrix


def bootstrap(
    states: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of ``score`` over resampled images (Efron 1979).

    ``states`` ``[N, *shape]``; ``score`` maps their sums ``[R, *shape]`` to ``[R]``.
    """
    flat = states.double().cpu().flatten(1)
    # one resample at a time: memory is O(N)
    sums = [times @ flat for times in resampled(len(states), seed, resamples)]
    return interval(score(torch.stack(sums).view(-1, *states.shape[1:])) if sums else torch.empty(0), level)


def resampled(images: int, seed: int, resamples: int) -> Iterator[Tensor]:
    """How often each image is drawn, ``[N]`` float64, resample after resample."""
    draw = np.random.default_rng(seed)
    for _ in range(resamples):
        yield torch.from_numpy(np.bincount(draw.integers(0, images, images), minlength=images)).double()


def interval(scores: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The quantiles between which ``level`` of the ``scores`` ``[R]`` lie; NaN without any."""
    if not len(scores):
        return math.nan, math.nan
    low, high = np.nanquantile(scores.numpy(), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---- segmentation and change


def predicted_classes(logits: Tensor) -> Tensor:
    """``[B, K, ...] -> [B, ...]`` classes; one logit is the score of class 1 against class 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def confusions(predicted: Tensor, target: Tensor, classes: int, ignore_index: int | None = None) -> Tensor:
    """The state of a segmentation: pixel counts ``[B, K, K]`` per image, row = true class, column = predicted class.

    ``predicted`` and ``target`` ``[B, ...]`` classes; pixels whose target is ``ignore_index`` do not count.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"prediction of shape {tuple(predicted.shape)} for a mask of shape {tuple(target.shape)}")
    labelled = target != ignore_index if ignore_index is not None else torch.ones_like(target, dtype=torch.bool)
    return torch.stack(
        [confusion_matrix(p[k], t[k], classes) for p, t, k in zip(predicted, target, labelled, strict=True)]
    )


def segmentation_scores(confusion: Tensor, ignore_index: int | None = None) -> dict[str, Tensor]:
    """Scores of summed confusion matrices ``[..., K, K]``, row = true class; fractions, not percent.

    Per class ``[..., K]``: iou, f1, precision (right among the predicted), recall (found among the true), support. NaN
    marks what is undefined: of a class neither predicted nor true everything, of one never predicted its precision,
    of one never true its recall; and all of class ``ignore_index``. Means ``[...]`` leave NaN out: miou, mean_f1,
    mean_accuracy (mean recall). overall_accuracy: right among all pixels.
    """
    confusion = confusion.double()
    hits, true, guessed = confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)
    per_class = {
        "iou": hits / (true + guessed - hits),
        "f1": 2 * hits / (true + guessed),
        "precision": hits / guessed,
        "recall": hits / true,
        "support": true.clone(),
    }
    if ignore_index is not None and 0 <= ignore_index < confusion.shape[-1]:
        for values in per_class.values():
            values[..., ignore_index] = torch.nan
    means = {"miou": "iou", "mean_f1": "f1", "mean_accuracy": "recall"}
    overall = {"overall_accuracy": hits.sum(-1) / true.sum(-1)}
    return {**per_class, **{name: per_class[of].nanmean(-1) for name, of in means.items()}, **overall}


# ---- regression


def residuals(predicted: Tensor, target: Tensor, threshold: float | None = None) -> Tensor:
    """The state of a regression ``[B, 7]``: pixels, sums of squared and absolute errors, of targets, of their squares;
    the absolute difference of the image's means, and 1 for an image that has one. With a ``threshold`` ``[B, 10]``:
    pixels rightly, wrongly, and wrongly not predicted to exceed it.

    ``predicted`` and ``target`` ``[B, ...]`` in one unit; pixels whose target is NaN do not count.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"prediction of shape {tuple(predicted.shape)} for a target of shape {tuple(target.shape)}")
    known = target.isfinite()
    t = torch.where(known, target, 0.0).double()
    error = torch.where(known, predicted - target, 0.0).double()
    sums = [x.flatten(1).sum(1) for x in (known.double(), error.square(), error.abs(), t, t.square())]
    of_means = error.flatten(1).sum(1).abs() / sums[0].clamp_min(1)
    state = [*sums, of_means, (sums[0] > 0).double()]
    if threshold is not None:
        true, guessed = target > threshold, known & (predicted > threshold)  # NaN exceeds nothing
        state += [x.flatten(1).sum(1).double() for x in (true & guessed, guessed & ~true, true & ~guessed)]
    return torch.stack(state, 1)


def regression_scores(state: Tensor) -> dict[str, Tensor]:
    """``{mse, rmse, mae, r2, zero_mse, image_mae}`` ``[...]`` of summed states ``[..., 7 or 10]``.

    r2 is NaN where the target never varies. zero_mse: the error of the answer 0 everywhere. image_mae: the mean over
    images of how far their mean is off. With a threshold also precision, recall and f1 of exceeding it.
    """
    n, squared, absolute, total, total_squares, of_means, images, *counts = state.unbind(-1)
    spread = total_squares - total.square() / n
    mse = squared / n
    r2 = torch.where(spread > 1e-12 * total_squares, 1 - squared / spread, torch.nan)
    scores = {"mse": mse, "rmse": mse.sqrt(), "mae": absolute / n, "r2": r2}
    scores |= {"zero_mse": total_squares / n, "image_mae": of_means / images}
    if counts:
        hits, wrong, missed = counts
        scores |= {"precision": hits / (hits + wrong), "recall": hits / (hits + missed)}
        scores["f1"] = 2 * hits / (2 * hits + wrong + missed)
    return scores


# ---- labels of images


def top_k_accuracy(scores: Tensor, target: Tensor, k: int) -> float:
    """Share of images whose class ``target`` ``[N]`` is among the k highest ``scores`` ``[N, K]``."""
    return (scores.topk(k, 1).indices == target[:, None]).any(1).double().mean().item()


def multilabel_scores(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Several labels per image: logits ``[N, K]`` (label predicted above 0), target ``[N, K]`` of 0 and 1.

    map: mean over the labels that occur of the average precision; micro_f1 over all labels and images; macro_f1 over
    the labels that occur or are predicted; exact_match: share of images with every label right.
    """
    predicted, true, labels = logits > 0, target.bool(), label_scores(logits, target)
    hits, sizes = (predicted & true).sum().double(), (predicted.sum() + true.sum()).double()
    return {
        "map": float(np.nanmean(labels["average_precision"])),
        "micro_f1": (2 * hits / sizes).item(),
        "macro_f1": float(np.nanmean(labels["f1"])),
        "exact_match": (predicted == true).all(1).double().mean().item(),
    }


def label_scores(logits: Tensor, target: Tensor) -> dict[str, list[float]]:
    """Per label average precision, F1 and support; NaN for what is undefined. See :func:`multilabel_scores`."""
    from sklearn.metrics import average_precision_score  # slow to import

    predicted, true = logits > 0, target.bool()
    hits, sizes = (predicted & true).sum(0).double(), (predicted.sum(0) + true.sum(0)).double()  # [K]
    scores = logits.float().cpu().numpy()
    precision = [
        float(average_precision_score(t, scores[:, k])) if t.any() else math.nan
        for k, t in enumerate(true.cpu().numpy().T)
    ]
    return {
        "average_precision": precision,
        "f1": (2 * hits / sizes).tolist(),
        "support": true.sum(0).double().tolist(),
    }


def bootstrap_precision(
    logits: Tensor, target: Tensor, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean average precision over resampled images; arguments as above.

    An image drawn w times counts w times: with the images in falling order of a label's score, average precision is
    sum_i w_i t_i P_i / sum_i w_i t_i, P_i the share of true ones up to i. Equal scores count in the order of images.
    """
    order = logits.argsort(stable=True, dim=0, descending=True)  # [N, K]
    true = target.gather(0, order).double()
    scores = []
    for times in resampled(len(logits), seed, resamples):
        weight = times[order]  # [N, K]
        right = (weight * true).cumsum(0)
        precision = right / weight.cumsum(0).clamp_min(1)
        scores.append(((weight * true * precision).sum(0) / right[-1]).nanmean())
    return interval(torch.stack(scores) if scores else torch.empty(0), level)
