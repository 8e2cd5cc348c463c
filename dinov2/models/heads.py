"""Heads that sit on an encoder during pretraining: projectors, predictors and the DINO prototype head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinov2.distributed import mean, world


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 at least: half precisions are widened, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[D]`` of ``x`` ``[B, D]`` over the batches of all ranks, in float32 at least.

    Two passes, because E[x^2] - E[x]^2 cancels. B must be equal on all ranks.
    """
    x = full_precision(x)
    centre = mean(x.mean(0))  # [D]
    return centre, mean((x - centre).square().mean(0))


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of ``[B, D]`` with the statistics of all ranks' batches; runs on CPU ranks too.

    State dict and running statistics are those of ``nn.BatchNorm1d``; W ranks equal one rank with the whole batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D] -> [B, D]``. Raises ValueError in training where all ranks together hold fewer than two rows."""
        if not self.training:
            return super().forward(x)
        rows = x.shape[0] * world()
        if rows < 2:
            raise ValueError("batch normalisation needs at least 2 samples in the global batch; raise batch_size")
        centre, variance = batch_moments(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(centre, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
        y = ((x - centre) * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return y * self.weight + self.bias if self.affine else y


class GlobalBatchNorm2d(GlobalBatchNorm):
    """The same over the places of maps ``[B, D, h, w]``; state dict and statistics of ``nn.BatchNorm2d``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, h, w] -> [B, D, h, w]``."""
        rows = x.movedim(1, -1)  # [B, h, w, D]
        return super().forward(rows.flatten(0, 2)).view_as(rows).movedim(-1, 1)


def with_global_norm(module: nn.Module) -> nn.Module:
    """``module`` with every ``nn.BatchNorm2d`` in it replaced by a new :class:`GlobalBatchNorm2d`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, GlobalBatchNorm2d(child.num_features))
        else:
            with_global_norm(child)
    return module


def mlp_head(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    layers: int,
    norm: bool = True,
    *,
    bias: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Module:
    """``layers`` linear maps ``in -> hidden -> ... -> out``; each but the last followed by [norm] and activation."""
    if layers == 1:
        return nn.Linear(in_dim, out_dim, bias=bias)
    steps: list[nn.Module] = []
    for width in [in_dim] + [hidden_dim] * (layers - 2):
        steps += [
            nn.Linear(width, hidden_dim, bias=bias),
            *([GlobalBatchNorm(hidden_dim)] if norm else []),
            activation(),
        ]
    return nn.Sequential(*steps, nn.Linear(hidden_dim, out_dim, bias=bias))


class Prototypes(nn.Module):
    """The weight-normalised last layer of a DINO head: row k is ``g_k v_k / |v_k|`` (keys weight_g, weight_v)."""

    def __init__(self, bottleneck_dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck_dim))
        nn.init.uniform_(self.weight_v, -(bottleneck_dim**-0.5), bottleneck_dim**-0.5)

    @property
    def weight(self) -> Tensor:
        """The prototypes ``[K, d]``."""
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))


class DINOHead(nn.Module):
    """MLP to a bottleneck on the unit sphere, then prototypes (DINO, arXiv 2104.14294, appendix C).

    The two halves are public because the losses work on bottleneck features and prototypes, in chunks, without ever
    holding the logits of all rows. Keys are those of the DINOv2 release: ``mlp.*``, ``last_layer.weight_g|weight_v``.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int,
        *,
        layers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = mlp_head(in_dim, hidden_dim, bottleneck_dim, layers, norm, bias=bias, activation=nn.GELU)
        self.last_layer = Prototypes(bottleneck_dim, prototypes)
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def bottleneck(self, x: Tensor) -> Tensor:
        """``[..., in_dim] -> [..., bottleneck_dim]``, rows of unit length, float32 at least."""
        return F.normalize(full_precision(self.mlp(x)), dim=-1, eps=1e-12)

    @property
    def prototypes(self) -> Tensor:
        """The prototypes ``[K, bottleneck_dim]``."""
        return self.last_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_dim] -> [..., K]`` logits."""
        return F.linear(self.bottleneck(x), self.prototypes)
