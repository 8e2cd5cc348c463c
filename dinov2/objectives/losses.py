"""Losses of the self-supervised objectives as pure functions.

The only collectives are ``gather``, ``mean`` and ``sum_``, and one law holds for every function: the mean over W ranks
of the value, and of every gradient, equals that of one rank with the whole batch. Legend: B samples of one rank,
D features, K prototypes, d bottleneck width, N rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dinov2.distributed import gather, mean, rank, sum_
from dinov2.models.heads import batch_moments, full_precision

DUPLICATE = 1e-6  # unit vectors closer than this differ by float32 rounding only
CHUNK = 2**21  # logits held at a time by the prototype losses (8 MiB in float32)


def _in_full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``loss`` outside autocast, of float32 (or wider) inputs: the numbers are few and their exponentials sensitive."""

    @functools.wraps(loss)
    def wrapped(first: Tensor, *rest: Any, **options: Any) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            wide = [full_precision(x) if isinstance(x, Tensor) else x for x in (first, *rest)]
            return loss(*wide, **options)

    return wrapped


def _own_rows(x: Tensor) -> Tensor:
    """Positions ``[B]`` of this rank's rows in ``gather(x)``."""
    return torch.arange(x.shape[0], device=x.device) + rank() * x.shape[0]


# ---- two views


@_in_full_precision
def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss of two views ``[B, D]``: each of the 2B rows finds its partner among all others of all ranks.

    Source: arXiv 2002.05709, eq. 1.
    """
    z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    everyone = torch.cat([gather(z0), gather(z1)])  # [2WB, D]
    first = _own_rows(z0)
    own = torch.cat([first, first + len(everyone) // 2])  # [2B]
    logits = torch.cat([z0, z1]) @ everyone.T / temperature  # [2B, 2WB]
    logits = logits.scatter(1, own[:, None], float("-inf"))
    return F.cross_entropy(logits, own.roll(len(first)))


@_in_full_precision
def info_nce(queries: Tensor, keys: Tensor, temperature: float = 0.2, queue: Tensor | None = None) -> Tensor:
    """MoCo's loss of ``queries`` and ``keys`` ``[B, D]``: row i of the queries finds row i of the keys.

    Negatives are the keys of all ranks (MoCo v3, arXiv 2104.02057, without its constant factor 2 * temperature), or
    the unit rows of ``queue`` ``[Q, D]`` where one is given (MoCo, arXiv 1911.05722, eq. 1).
    """
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    if queue is None:
        logits, target = queries @ gather(keys).T, _own_rows(queries)  # [B, WB]
    else:
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], dim=1)  # [B, 1 + Q]
        target = torch.zeros_like(_own_rows(queries))
    return F.cross_entropy(logits / temperature, target)


@_in_full_precision
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of ``-cos`` over rows of ``[B, D]``; BYOL's loss (arXiv 2006.07733, eq. 2) is 2 + 2 of it."""
    return -F.cosine_similarity(prediction, target, dim=1, eps=1e-8).mean()


@_in_full_precision
def cross_correlation(z0: Tensor, z1: Tensor, off_diagonal: float = 0.005) -> Tensor:
    """Barlow Twins' loss of two views ``[B, D]`` (arXiv 2103.03230, eq. 1), standardised over all ranks' batches."""
    (mean0, variance0), (mean1, variance1) = batch_moments(z0), batch_moments(z1)
    z0, z1 = (z0 - mean0) * torch.rsqrt(variance0 + 1e-5), (z1 - mean1) * torch.rsqrt(variance1 + 1e-5)
    correlation = mean(z0.T @ z1 / len(z0))  # [D, D]
    diagonal = correlation.diagonal()
    return (diagonal - 1).square().sum() + off_diagonal * (correlation.square().sum() - diagonal.square().sum())


# ---- DINO


def nearest_neighbours(x: Tensor, everyone: Tensor) -> Tensor:
    """For each unit row of ``x`` ``[B, D]`` the row of ``everyone`` = ``gather(x)`` closest to it, itself excluded."""
    similarity = x.detach() @ everyone.detach().T  # [B, WB]
    return similarity.scatter(1, _own_rows(x)[:, None], -2.0).argmax(1)


@_in_full_precision
def koleo(x: Tensor) -> Tensor:
    """KoLeo: minus the mean log distance of each unit row ``[B, D]`` to its nearest neighbour among all ranks' rows.

    0 where there is no neighbour. A row and its duplicate cannot be pulled apart by the network (and their gradient,
    1 / distance, would be all noise), so they count in the value only. Source: arXiv 1806.03198, as DINOv2 uses it.
    """
    x = F.normalize(x, dim=1, eps=1e-8)
    everyone = gather(x)  # [WB, D]
    if len(everyone) < 2:
        return 0 * x.sum()
    distance = F.pairwise_distance(x, everyone[nearest_neighbours(x, everyone)], eps=1e-8)  # [B]
    logs = torch.log(distance + 1e-8)
    return -torch.where(distance > DUPLICATE, logs, logs.detach()).mean()


def masked_weights(masks: Tensor) -> Tensor:
    """iBOT's weight ``[B, L]`` of every patch of ``masks`` bool ``[B, L]``: ``1 / (B * masked in its image)``, or 0.

    So every masked image weighs the same, and ranks may hide different numbers of patches.
    """
    return masks / (len(masks) * masks.sum(1, keepdim=True).clamp_min(1))


def moved_centre(centre: Tensor, total: Tensor, count: Tensor, momentum: float) -> Tensor:
    """The EMA ``centre`` ``[d]`` after rows of all ranks: ``total`` ``[d]`` their sum on this rank, ``count`` how many.

    Where no rank has a row the centre stays. Source: arXiv 2104.14294, eq. 4.
    """
    total, count = sum_(total), sum_(count)
    return torch.lerp(centre, total / count.clamp_min(1), (1 - momentum) * (count > 0))


def _rows_at_a_time(prototypes: Tensor, views: int = 1) -> int:
    """How many rows of ``views`` logit vectors stay within CHUNK numbers."""
    return max(1, CHUNK // (views * len(prototypes)))


def centering_bias(prototypes: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The bias ``[K]`` that centres teacher logits: targets are ``softmax(h prototypes^T / temperature + bias)``.

    The last layer is linear, so the mean of the logits is the logit of the mean: the ``centre`` ``[d]`` stays in the
    bottleneck space (ranks exchange d numbers, not K) and moves with the prototypes. Source: arXiv 2104.14294, eq. 4.
    """
    return -(prototypes @ centre) / temperature


@torch.no_grad()
def sinkhorn_bias(
    features: Tensor, prototypes: Tensor, temperature: float, iterations: int = 3, rows: Tensor | None = None
) -> Tensor:
    """The bias ``[K]`` after Sinkhorn-Knopp: targets are ``softmax(h prototypes^T / temperature + bias)``.

    ``features`` ``[N, d]`` of this rank (N may differ between ranks and may be 0), ``rows`` bool ``[N]`` False for
    padding. One iteration (arXiv 2006.09882, appendix A) balances prototypes over all samples of all ranks, then
    normalises each sample: a softmax, whose maximum is subtracted. With u the prototypes' factors, bias = log u, an
    iteration is ``bias -= log sum_n softmax(logits_n + bias)``; that sum is never below 1/K, so nothing overflows.
    """
    if rows is not None:
        features = features[rows]
    chunks = features.split(8 * _rows_at_a_time(prototypes))  # every iteration needs them: a product saved is time

    @functools.lru_cache(maxsize=1)  # a single chunk is kept, several are made anew in every pass
    def logits(chunk: int) -> Tensor:
        return full_precision(chunks[chunk] @ prototypes.T) / temperature  # [n, K]

    everything = range(len(chunks))
    mass = torch.stack([logits(chunk).logsumexp(0) for chunk in everything]).logsumexp(0, keepdim=True)  # [1, K]
    bias = -gather(mass).logsumexp(0)  # [K]
    for _ in range(iterations - 1):
        share = torch.stack([(logits(chunk) + bias).softmax(1).sum(0) for chunk in everything]).sum(0)  # [K]
        bias = bias - torch.log(sum_(share))
    return bias


@torch.no_grad()
def target_entropy(features: Tensor, prototypes: Tensor, bias: Tensor, temperature: float) -> Tensor:
    """Mean entropy in nats of the targets ``softmax(h prototypes^T / temperature + bias)`` of ``features`` ``[N, d]``.

    log K: the teacher says nothing; 0: it is certain of one prototype.
    """
    total = features.new_zeros(())
    for h in features.split(_rows_at_a_time(prototypes)):
        logs = (full_precision(h @ prototypes.T) / temperature + bias).log_softmax(-1)  # [n, K]
        total -= (logs.exp() * logs).sum()
    return total / max(1, len(features))


def _logits(h: Tensor, prototypes: Tensor, temperature: float, bias: Tensor | float = 0.0) -> Tensor:
    """``[..., K]`` logits of ``h`` ``[..., d]`` minus the largest of each row; the memory is the caller's."""
    logits = full_precision(h @ prototypes.T).div_(temperature).add_(bias)
    return logits.sub_(logits.amax(-1, keepdim=True))


class _PrototypeCrossEntropy(torch.autograd.Function):
    """See :func:`prototype_cross_entropy`. The gradient is made in the forward, chunk by chunk, in place."""

    @staticmethod
    def forward(ctx, student, prototypes, teacher, teacher_prototypes, bias, weights, temperature, teacher_temperature):
        grad_student, grad_prototypes = torch.zeros_like(student), torch.zeros_like(prototypes)
        loss, weights = student.new_zeros(()), weights.to(student.dtype)
        teachers, rows = len(teacher), _rows_at_a_time(prototypes, max(len(student), len(teacher)))
        for start in range(0, student.shape[1], rows):
            now = slice(start, start + rows)
            targets = _logits(teacher[:, now], teacher_prototypes, teacher_temperature, bias).exp_()  # [T, n, K]
            targets.div_(targets.sum(-1, keepdim=True))
            targets = targets.sum(0) if teachers > 1 else targets[0]  # [n, K], rows that sum to T
            h = student[:, now]  # [S, n, d]
            logits = _logits(h, prototypes, temperature)  # [S, n, K]
            agreement = torch.stack([torch.linalg.vecdot(targets, view) for view in logits])  # [S, n]
            mass = logits.exp_().sum(-1)  # [S, n]
            loss += (weights[now] * (teachers * mass.log() - agreement)).sum()
            logits.mul_((teachers / mass)[..., None]).sub_(targets)
            error = logits.mul_(weights[now, None] / temperature)  # d loss / d (h prototypes^T)
            grad_student[:, now] = error @ prototypes
            grad_prototypes.addmm_(error.flatten(0, 1).T, h.flatten(0, 1))  # no K x d numbers besides
        ctx.grads = grad_student, grad_prototypes  # let go in the backward: saved tensors would be held beside copies
        return loss

    @staticmethod
    def backward(ctx, grad):
        student, prototypes = ctx.grads
        del ctx.grads
        return student.mul_(grad), prototypes.mul_(grad), *[None] * 6


def prototype_cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    bias: Tensor,
    weights: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """``sum_n weights_n sum_{s,t} H(p_tn, q_sn)`` over all pairs of student and teacher views of row n.

    q = softmax(student prototypes^T / temperature) of ``student`` ``[S, N, d]`` and ``prototypes`` ``[K, d]``; p
    likewise of ``teacher`` ``[T, N, d]``, with ``bias`` ``[K]`` as :func:`centering_bias` and :func:`sinkhorn_bias`
    say, without gradient; ``weights`` ``[N]``. Features are float32 at least. Only CHUNK logits exist at a time.
    N may be 0: the loss and all gradients are zeros.
    """
    return _PrototypeCrossEntropy.apply(
        student, prototypes, teacher, teacher_prototypes, bias, weights, temperature, teacher_temperature
    )
