"""What a frozen encoder's features are worth: the data of a probe, and the linear probe.

The grid of learning rates x poolings (DINOv2, section 7.1) is trained in one pass: the heads of one pooling are a
batched matrix, and the gradient of the cross entropy is written down, so a step costs one product per pooling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOMENTUM = 0.9
INIT_STD = 0.01


@dataclass(frozen=True)
class ProbeData:
    """Features ``{pooling: [N, D]}`` of the three splits, and labels ``[N]`` of the two that may be looked at.

    Test labels are not here: whatever a probe chooses, it cannot choose by them.
    """

    train: Mapping[str, Tensor]
    val: Mapping[str, Tensor]
    test: Mapping[str, Tensor]
    train_labels: Tensor
    val_labels: Tensor
    classes: int

    def poolings(self, wanted: Sequence[str]) -> list[str]:
        """The wanted poolings; a model that offers a single feature vector has no choice to make."""
        known = list(self.train)
        if len(known) == 1:
            return known
        unknown = [p for p in wanted if p not in known]
        if unknown or not wanted:
            raise ValueError(f"task.poolings {unknown}: this model offers {', '.join(known)}")
        return list(wanted)


@dataclass(frozen=True)
class Outcome:
    """Predicted classes of the test images ``[N]`` and what was chosen by validation."""

    predicted: Tensor
    chosen: dict[str, Any]


def standardise(data: ProbeData, pooling: str) -> tuple[Tensor, Tensor, Tensor]:
    """Train, val and test features with the training split's mean 0 and deviation 1 per dimension."""
    x = data.train[pooling]  # [N, D]
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)  # a dimension that never varies carries nothing: leave it at 0
    return (x - mean) / std, (data.val[pooling] - mean) / std, (data.test[pooling] - mean) / std


def train_heads(
    x: Tensor, y: Tensor, rates: Sequence[float], classes: int, *, epochs: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """One linear head per learning rate on features ``x [N, D]``, labels ``y [N]``; returns ``[G, D, K]``, ``[G, K]``.

    Stochastic gradient descent on the cross entropy with momentum 0.9 and a cosine to zero; the rates are scaled by
    ``batch_size / 256``. All heads start from the same numbers and see the same batches.
    """
    draw = torch.Generator().manual_seed(seed)
    (n, d), g = x.shape, len(rates)
    batch_size = min(batch_size, n)
    start = (INIT_STD * torch.randn(d, classes, generator=draw)).to(x)  # [D, K]
    weight = start.repeat(1, g)  # [D, G*K]: all heads side by side, so a step is two matrix products
    bias = x.new_zeros(g * classes)
    lr = x.new_tensor(rates).mul(batch_size / 256).repeat_interleave(classes)  # [G*K]
    target = F.one_hot(y, classes).to(x).unsqueeze(1)  # [N, 1, K]
    velocity, velocity_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    per_epoch = math.ceil(n / batch_size)
    for step in range(epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=draw).to(x.device)
        rows = order[step % per_epoch * batch_size :][:batch_size]
        logits = torch.addmm(bias, x[rows], weight).view(-1, g, classes)  # [B, G, K]
        error = ((logits.softmax(-1) - target[rows]) / len(rows)).flatten(1)  # gradient of the mean cross entropy
        velocity.mul_(MOMENTUM).addmm_(x[rows].T, error)
        velocity_bias.mul_(MOMENTUM).add_(error.sum(0))
        now = lr * 0.5 * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
        weight -= now * velocity
        bias -= now * velocity_bias
    return weight.view(d, g, classes).transpose(0, 1), bias.view(g, classes)


def linear(
    data: ProbeData,
    seed: int,
    *,
    poolings: tuple[str, ...] = ("cls", "mean", "cls+mean", "cls4", "cls4+mean"),
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
    epochs: int = 50,
    batch_size: int = 256,
) -> Outcome:
    """The best head of the grid by validation accuracy (ties: by validation loss), on standardised features."""
    best: tuple[float, float] = (-1.0, 0.0)
    for pooling in data.poolings(poolings):
        train, val, test = standardise(data, pooling)
        weight, bias = train_heads(
            train, data.train_labels, learning_rates, data.classes, epochs=epochs, batch_size=batch_size, seed=seed
        )
        for rate, w, b in zip(learning_rates, weight, bias, strict=True):
            logits = val @ w + b  # [N, K]
            accuracy = (logits.argmax(1) == data.val_labels).double().mean().item()
            merit = (accuracy, -F.cross_entropy(logits, data.val_labels).item())
            if merit > best:
                best = merit
                chosen = {"pooling": pooling, "learning_rate": rate, "val_accuracy": accuracy}
                predicted = (test @ w + b).argmax(1)
    return Outcome(predicted, chosen)
