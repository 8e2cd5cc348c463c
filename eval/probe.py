"""What a frozen encoder's features are worth: the data of a probe, and the linear probe.

The grid of learning rates x poolings (DINOv2, section 7.1) is trained in one pass: the heads of one pooling are a
batched matrix, and the gradient of the loss is written down, so a step costs one product per pooling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.losses import OF_KIND, build_loss
from eval.scoring import HEADLINE, Outcome, merit, state

MOMENTUM = 0.9
INIT_STD = 0.01
# The mean of a target given the logits: of the loss that goes with it (cross entropy, binary cross entropy, half the
# squared error) the gradient by the logits is this mean minus the target.
MEANS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "classification": lambda logits: logits.softmax(-1),
    "multilabel": torch.sigmoid,
    "regression": lambda logits: logits,
}


@dataclass(frozen=True)
class ProbeData:
    """Features ``{pooling: [N, D]}`` of the three splits, and the targets of the two that may be looked at.

    Targets as in :class:`eval.datasets.Split`: ``[N]`` classes or values, ``[N, K]`` labels, as ``kind`` says. Test
    targets are not here: whatever a probe chooses, it cannot choose by them.
    """

    train: Mapping[str, Tensor]
    val: Mapping[str, Tensor]
    test: Mapping[str, Tensor]
    train_labels: Tensor
    val_labels: Tensor
    classes: int
    kind: str = "classification"

    def merit(self, logits: Tensor) -> float:
        """How good logits of the validation images are, the more the better."""
        return merit(self.kind, state(self.kind, logits, self.val_labels, self.classes), self.classes)

    def poolings(self, wanted: Sequence[str]) -> list[str]:
        """The wanted poolings; a model that offers a single feature vector has no choice to make."""
        known = list(self.train)
        if len(known) == 1:
            return known
        unknown = [p for p in wanted if p not in known]
        if unknown or not wanted:
            raise ValueError(f"task.poolings {unknown}: this model offers {', '.join(known)}")
        return list(wanted)


def standardise(data: ProbeData, pooling: str) -> tuple[Tensor, Tensor, Tensor]:
    """Train, val and test features with the training split's mean 0 and deviation 1 per dimension."""
    x = data.train[pooling]  # [N, D]
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)  # a dimension that never varies carries nothing: leave it at 0
    return (x - mean) / std, (data.val[pooling] - mean) / std, (data.test[pooling] - mean) / std


def train_heads(
    x: Tensor, y: Tensor, rates: Sequence[float], kind: str, *, epochs: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Linear heads ``[G, D, K]``, ``[G, K]``, one per learning rate, on features ``x [N, D]``, targets ``y [N, K]``.

    Stochastic gradient descent on the loss of ``kind`` with momentum 0.9 and a cosine to zero; the rates are scaled by
    ``batch_size / 256``. All heads start from the same numbers and see the same batches.
    """
    draw = torch.Generator().manual_seed(seed)
    (n, d), g, k = x.shape, len(rates), y.shape[1]
    batch_size = min(batch_size, n)
    start = (INIT_STD * torch.randn(d, k, generator=draw)).to(x)  # [D, K]
    weight = start.repeat(1, g)  # [D, G*K]: all heads side by side, so a step is two matrix products
    bias = x.new_zeros(g * k)
    lr = x.new_tensor(rates).mul(batch_size / 256).repeat_interleave(k)  # [G*K]
    target = y.to(x).unsqueeze(1)  # [N, 1, K]
    velocity, velocity_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    per_epoch = math.ceil(n / batch_size)
    for step in range(epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=draw).to(x.device)
        rows = order[step % per_epoch * batch_size :][:batch_size]
        logits = torch.addmm(bias, x[rows], weight).view(-1, g, k)  # [B, G, K]
        error = ((MEANS[kind](logits) - target[rows]) / len(rows)).flatten(1)  # gradient of the mean loss
        velocity.mul_(MOMENTUM).addmm_(x[rows].T, error)
        velocity_bias.mul_(MOMENTUM).add_(error.sum(0))
        now = lr * 0.5 * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
        weight -= now * velocity
        bias -= now * velocity_bias
    return weight.view(d, g, k).transpose(0, 1), bias.view(g, k)


def linear(
    data: ProbeData,
    seed: int,
    *,
    poolings: tuple[str, ...] = ("cls", "mean", "cls+mean", "cls4", "cls4+mean"),
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
    epochs: int = 50,
    batch_size: int = 256,
) -> Outcome:
    """The best head of the grid by the headline metric of validation (ties: by its loss), on standardised features."""
    loss, metric = build_loss(OF_KIND[data.kind][0]), HEADLINE[data.kind]
    y, shift, scale = wanted(data)
    best = (-math.inf, -math.inf)
    for pooling in data.poolings(poolings):
        train, val, test = standardise(data, pooling)
        weight, bias = train_heads(train, y, learning_rates, data.kind, epochs=epochs, batch_size=batch_size, seed=seed)
        for rate, w, b in zip(learning_rates, weight * scale, bias * scale + shift, strict=True):
            logits = val @ w + b  # [N, K]
            merits = (data.merit(logits), -loss(logits, data.val_labels).item())
            if merits > best:
                best = merits
                chosen = {"pooling": pooling, "learning_rate": rate, f"val_{metric}": abs(merits[0])}
                predicted = test @ w + b
    return Outcome([predicted], chosen)


def wanted(data: ProbeData) -> tuple[Tensor, float, float]:
    """What heads are trained towards ``[N, K]``; values are standardised by the mean and deviation that follow."""
    if data.kind == "classification":
        return F.one_hot(data.train_labels, data.classes), 0.0, 1.0
    if data.kind == "multilabel":
        return data.train_labels, 0.0, 1.0
    shift, scale = data.train_labels.mean().item(), data.train_labels.std(correction=0).item() or 1.0
    return ((data.train_labels - shift) / scale)[:, None], shift, scale
