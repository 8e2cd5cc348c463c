"""Barlow Twins' regulariser on mixed samples (Bandara et al. 2023, arXiv 2312.02151), for pixel series.

The correlation of a mixed pixel's projection with a view should be the mixture of those of its two parts. Legend: B
samples of one rank, W ranks, P projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinov2.data.batch import View
from dinov2.distributed import gather, mean, rank
from dinov2.models.heads import batch_moments, full_precision


def partners(positions: Tensor) -> tuple[Tensor, float]:
    """Whom each of this rank's samples is mixed with, as rows ``[B]`` of ``gather``, and the share it keeps itself.

    Drawn from the positions ``[B]`` of the global batch alone: the same on any number of ranks. The share is uniform.
    """
    everyone = gather(positions)  # [WB]
    order = everyone.argsort()
    draw = torch.Generator().manual_seed(int(everyone.min()))
    share = float(torch.rand((), generator=draw))
    partner = torch.empty_like(order)
    partner[order] = order[torch.randperm(len(order), generator=draw).to(order.device)]
    return partner[rank() * len(positions) :][: len(positions)], share


@torch.no_grad()
def mixed(crops: View, partner: Tensor, share: float) -> View:
    """The first views ``[B, ...]`` mixed, date by date, with the second views of their partners.

    Where one of the two has no date left, the other's is mixed with the bands' means, and its day counts.
    """
    if "imgs" in crops:
        raise ValueError("objective.mixup mixes pixel series; images of different bands have no mixture")
    out = {}
    for name, both in crops.items():
        first, second = both.chunk(2)
        other = gather(second.to(torch.uint8) if second.dtype == torch.bool else second)[partner].to(first.dtype)
        if first.dtype == torch.bool:
            out[name] = first | other
        elif first.is_floating_point():
            out[name] = share * first + (1 - share) * other
        else:
            out[name] = torch.where(crops[name.replace("_days", "_valid")].chunk(2)[0], first, other)
    return out


def standardised(z: Tensor) -> Tensor:
    """Projections ``[B, P]`` with mean 0 and variance 1 over all ranks' batches."""
    centre, variance = batch_moments(z)
    return (full_precision(z) - centre) * torch.rsqrt(variance + 1e-5)


def mixed_correlation(z0: Tensor, z1: Tensor, blend: Tensor, partner: Tensor, share: float) -> Tensor:
    """Sum of squares between the correlations of ``blend`` ``[B, P]`` with both views and their mixtures (eq. 5)."""
    with torch.autocast(z0.device.type, enabled=False):
        z0, z1, blend = standardised(z0), standardised(z1), standardised(blend)
        other = gather(z1)[partner]  # [B, P]
        loss = z0.new_zeros(())
        for z in (z0, z1):
            found = mean(blend.T @ z / len(z))  # [P, P]
            wanted = mean((share * z0 + (1 - share) * other).T @ z / len(z))
            loss = loss + (found - wanted).square().sum()
        return loss
