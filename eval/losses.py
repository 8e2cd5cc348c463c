"""What a decoder is trained on: pure functions of logits and targets, labelled pixels only.

Where nothing in a batch is labelled a loss is 0 and so is its gradient: a crop without labels must not end a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.sensors import suggest

EPS = 1e-6  # makes the dice of a class that is neither there nor predicted 1


def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = -1, weight: Tensor | None = None) -> Tensor:
    """Mean over labelled pixels, or with ``weight`` ``[K]`` per class the weighted mean.

    Logits ``[B, K, ...]``, target ``[B, ...]`` classes.
    """
    weight = logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits)
    labelled = target != ignore_index
    total = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="sum")
    return total / (weight[target.where(labelled, 0)] * labelled).sum().clamp_min(EPS)


def dice(logits: Tensor, target: Tensor, *, ignore_index: int = -1) -> Tensor:
    """One minus the mean over images and classes of 2 |P and T| / (|P| + |T|) (Milletari et al. 2016, 1606.04797).

    Logits ``[B, K, ...]``, target ``[B, ...]`` classes; one logit is the score of class 1. Images without a labelled
    pixel do not count.
    """
    labelled = (target != ignore_index)[:, None]  # [B, 1, ...]
    if logits.shape[1] == 1:
        chance, truth = logits.sigmoid(), (target == 1)[:, None]
    else:
        chance = logits.softmax(1)
        classes = torch.arange(logits.shape[1], device=target.device).view(-1, *[1] * (target.ndim - 1))
        truth = target[:, None] == classes  # [B, K, ...]
    chance, truth = ((x * labelled).flatten(2) for x in (chance, truth))
    overlap, size = (chance * truth).sum(2), (chance + truth).sum(2)  # [B, K]
    score = ((2 * overlap + EPS) / (size + EPS)).mean(1)  # [B]
    images = labelled.flatten(1).any(1).sum()  # one without labels scores 1 and so adds nothing to the sum
    return (1 - score).sum() / images.clamp_min(1)


def binary_cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = -1) -> Tensor:
    """Mean over labelled entries; logits ``[B, 1, ...]`` for a target ``[B, ...]`` of 0 and 1, or both of one shape."""
    logits = logits.view_as(target)
    labelled = target != ignore_index
    per_entry = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    return (per_entry * labelled).sum() / labelled.sum().clamp_min(1)


def mean_squared_error(values: Tensor, target: Tensor) -> Tensor:
    """Mean over the pixels whose target is a number; values ``[B, 1, ...]``, target ``[B, ...]`` with NaN for none."""
    values = values.view_as(target)
    known = target.isfinite()
    return torch.where(known, values - target, 0.0).square().sum() / known.sum().clamp_min(1)


def class_weights(distribution: Sequence[float]) -> Tensor:
    """Inverse frequencies ``[K]`` of a training set's class shares. Raises ValueError for a class that never occurs."""
    never = [i for i, share in enumerate(distribution) if share <= 0]
    if never:
        raise ValueError(
            f"weighted_cross_entropy: no training pixel of class {never}; leave it out or use another loss"
        )
    return 1 / torch.tensor(distribution)


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "weighted_cross_entropy": cross_entropy,
    "dice": dice,
    "bce": binary_cross_entropy,
    "mse": mean_squared_error,
}

OF_KIND: Mapping[str, tuple[str, ...]] = {  # what a dataset of each kind can be trained with, the default first
    "classification": ("cross_entropy",),
    "multilabel": ("bce",),
    "segmentation": ("cross_entropy", "weighted_cross_entropy", "dice", "bce"),
    "regression": ("mse",),
}


def build_loss(
    name: str,
    *,
    ignore_index: int = -1,
    distribution: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss ``name`` of (logits, target); the weighted one by ``weights`` ``[K]`` or class shares, ``distribution``."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}{suggest(name, list(LOSSES))}")
    if name == "mse":
        return mean_squared_error
    if name == "weighted_cross_entropy":
        if weights is None and distribution is None:
            raise ValueError("weighted_cross_entropy needs the class shares of the training set; the dataset has none")
        weight = torch.tensor(weights) if weights is not None else class_weights(distribution or ())
        return partial(cross_entropy, ignore_index=ignore_index, weight=weight)
    return partial(LOSSES[name], ignore_index=ignore_index)
