"""Scores from one summed confusion matrix, and their uncertainty over test images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """``[K, K]`` int64 counts, row = true class, column = predicted class, of ``[N]`` integer classes."""
    # imported here because it takes as long as torch itself, which nobody who asks for --help should wait for
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(f"labels run from {int(target.min())} to {int(target.max())}, but there are {classes} classes")
    return multiclass_confusion_matrix(predicted, target, num_classes=classes, validate_args=False)


def summarise(confusion: Tensor) -> dict[str, float]:
    """Overall accuracy, mean accuracy (mean recall) and mean F1; classes absent from the truth are left out."""
    per_class = class_scores(confusion)
    return {
        "accuracy": int(confusion.diagonal().sum()) / int(confusion.sum()),
        "mean_accuracy": float(np.nanmean(per_class["recall"])),
        "mean_f1": float(np.nanmean(per_class["f1"])),
    }


def class_scores(confusion: Tensor) -> dict[str, list[float]]:
    """Recall, precision, F1 and support per class; NaN for classes that the truth does not hold."""
    hits, truth, guesses = (x.double() for x in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    absent = torch.where(truth == 0, torch.nan, 0.0).double()
    return {
        "recall": (hits / truth + absent).tolist(),
        "precision": (hits / guesses.clamp(min=1) + absent).tolist(),
        "f1": (2 * hits / (truth + guesses) + absent).tolist(),
        "support": truth.tolist(),
    }


def bootstrap(values: np.ndarray, *, seed: int = 0, resamples: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of ``values [N]`` over resampled images (Efron 1979)."""
    draw = np.random.default_rng(seed)
    n = len(values)
    means = [values[draw.integers(0, n, n)].mean() for _ in range(resamples)]  # one resample at a time: memory is O(N)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def score(predicted: Tensor, target: Tensor, classes: int, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """The metric fields of a result row: overall accuracy as the value, its 95 % interval, and the details."""
    assert predicted.shape == target.shape, f"{tuple(predicted.shape)} predictions for {tuple(target.shape)} labels"
    confusion = confusion_matrix(predicted, target, classes)
    assert int(confusion.sum()) == len(target), "a test image was lost or counted twice"
    low, high = bootstrap((predicted == target).double().cpu().numpy(), seed=seed, resamples=resamples)
    summary = summarise(confusion)
    return {
        "metric": "accuracy",
        "value": summary["accuracy"],
        "ci_low": low,
        "ci_high": high,
        "n": len(target),
        "metrics": summary,
        "per_class": class_scores(confusion),
        "confusion": confusion.tolist(),
    }
