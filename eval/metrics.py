"""Scores of a classification from one summed confusion matrix."""

from __future__ import annotations

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
