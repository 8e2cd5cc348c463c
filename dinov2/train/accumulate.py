"""From the micro-batches of a step to its gradient, in two ways (docs/accumulation.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dinov2.data.views import RawBatch, render
from dinov2.objectives.base import Now
from dinov2.objectives.two_view import TwoView
from dinov2.train.build import Parts
from dinov2.train.precision import Precision

Terms = dict[str, Tensor]


def mean_of_losses(parts: Parts, raws: Iterable[RawBatch], now: Now, precision: Precision) -> tuple[Terms, Tensor]:
    """Add the gradient of the mean loss of the micro-batches; their mean terms and all embeddings, crop-major."""
    share = 1 / parts.stream.accumulation
    total: Terms = {}
    embeddings = []
    for raw in raws:
        batch = render(raw, parts.device)
        with precision.autocast(parts.device):
            terms = parts.objective(batch, now)
        precision.scaler.scale(terms["loss"] * share).backward()
        embeddings.append(terms.pop("embedding"))
        total = {k: total.get(k, torch.zeros_like(v)) + v.detach() * share for k, v in terms.items()}
    return total, crop_major(embeddings, parts.stream.micro_batch)


def loss_of_all(parts: Parts, raws: Iterable[RawBatch], now: Now, precision: Precision) -> tuple[Terms, Tensor]:
    """Add the gradient of the loss of all micro-batches together; its terms and all embeddings, crop-major.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983, sec. 3.2): the encoder passes over every micro-batch without a
    graph, the loss gives the gradient of all embeddings, and a second pass carries it back micro-batch by micro-batch.
    Heads see the whole batch at once, because their batch normalisation joins its samples.
    """
    objective, device = parts.objective, parts.device
    assert isinstance(objective, TwoView)
    kept, states, embedded = [], [], []
    for raw in raws:
        kept.append(raw)  # pixels as stored: far smaller than what a graph keeps
        states.append(random_state(device))
        crops = render(raw, device).views["crop"]
        with torch.no_grad(), precision.autocast(device):
            embedded.append(objective.embed(crops))
    whole = {name: crop_major([e[name] for e in embedded], parts.stream.micro_batch) for name in embedded[0]}
    student = whole["student"].requires_grad_()  # [2B, D]
    with precision.autocast(device):
        terms = objective.compare(whole)
    precision.scaler.scale(terms["loss"]).backward()
    assert student.grad is not None
    grads = student.grad.unflatten(0, (2, len(kept), -1)).unbind(1)  # [2, b, D] per micro-batch
    for raw, state, grad in zip(kept, states, grads, strict=True):
        set_random_state(state, device)  # drop path drops what it dropped in the first pass
        crops = render(raw, device).views["crop"]
        with precision.autocast(device):
            h = objective.encode(crops)  # [2b, D]
        h.backward(grad.flatten(0, 1))
    embedding = terms.pop("embedding")
    return {name: term.detach() for name, term in terms.items()}, embedding


def crop_major(pieces: Sequence[Tensor], samples: int) -> Tensor:
    """``[crops * samples, D]`` of every micro-batch -> ``[crops * B, D]``: the first crops of all, then the second."""
    return torch.stack([p.unflatten(0, (-1, samples)) for p in pieces], 1).flatten(0, 2)


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the random numbers that a forward pass may draw: the CPU's, and the device's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Put a :func:`random_state` back."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
