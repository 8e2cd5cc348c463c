"""Transformer layers under DINOv2's parameter names."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

AttentionKernel = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, H, N, d] -> [B, H, N, d]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, all ``[B, H, N, d]``."""
    return F.scaled_dot_product_attention(q, k, v)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same function by xformers' memory-efficient kernel."""
    from xformers.ops import memory_efficient_attention  # an optional extra: imported where it was asked for

    return memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


KERNELS: dict[str, AttentionKernel] = {"sdpa": sdpa, "xformers": xformers_attention}


@functools.cache
def attention_kernel(name: str | None = None) -> AttentionKernel:
    """The attention kernel called ``name``, else by ``EOSSL_ATTENTION`` (sdpa or xformers; default sdpa)."""
    name = name or os.environ.get("EOSSL_ATTENTION", "sdpa")
    if name not in KERNELS:
        raise ValueError(f"EOSSL_ATTENTION={name!r} is not one of {', '.join(KERNELS)}")
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ValueError("EOSSL_ATTENTION=xformers, but xformers is not installed: pip install 'eo-ssl[xformers]'")
    log.info("attention kernel: %s", name)
    return KERNELS[name]


class Attention(nn.Module):
    """Multi-head self-attention, tokens ``[B, N, D]`` -> ``[B, N, D]``."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, proj_bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} must be a multiple of num_heads {num_heads}")
        self.heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 x [B, H, N, d]
        return self.proj(attention_kernel()(q, k, v).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer 2020): silu(x W1) * (x W2), then W3.

    The hidden size is two thirds of the MLP's, rounded up to a multiple of 8, as in DINOv2's fused layer.
    """

    def __init__(self, dim: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


FEEDFORWARDS: dict[str, Callable[[int, int, bool], nn.Module]] = {"mlp": Mlp, "swiglu": SwiGLU}


class LayerScale(nn.Module):
    """A learned factor per feature (Touvron et al. 2021)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with optional LayerScale (initial value ``layer_scale``) and stochastic depth.

    In training with ``drop_path`` p each branch is computed for a random (1 - p) of the batch only and scaled by
    B / kept (DINOv2, sec. 5): the expectation of stochastic depth at (1 - p) of its cost.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        ffn: str = "mlp",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        ffn_bias: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if ffn not in FEEDFORWARDS:
            raise ValueError(f"ffn {ffn!r} is not one of {', '.join(FEEDFORWARDS)}")
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        self.mlp = FEEDFORWARDS[ffn](dim, int(dim * mlp_ratio), ffn_bias)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D] -> [B, N, D]``."""
        x = self.add_branch(x, lambda t: self.ls1(self.attn(self.norm1(t))))
        return self.add_branch(x, lambda t: self.ls2(self.mlp(self.norm2(t))))

    def add_branch(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """``x + branch(x)``, in training for a random subset of the batch."""
        if not (self.training and self.drop_path > 0.0):
            return x + branch(x)
        b = len(x)
        kept = max(int(b * (1.0 - self.drop_path)), 1)
        subset = torch.randperm(b, device=x.device)[:kept]
        return x.index_add(0, subset, branch(x[subset]).to(x.dtype), alpha=b / kept)


@functools.lru_cache(maxsize=16)
def sincos_positions(dim: int, height: int, width: int, scale: float = 1.0) -> Tensor:
    """Fixed 2-D positions, float64 ``[height * width, dim]`` on the CPU, row-major.

    The first half of the features encodes the column, the second the row; each half is [sin | cos] over frequencies
    10000^(-i / (dim / 4)) (He et al. 2022, MAE, appendix A.1). ``scale`` multiplies rows and columns.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a dimension that is a multiple of 4, not {dim}")
    with torch.device("cpu"):  # kept for later callers, so never on the meta device of a model that is being built
        frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * scale * frequency for axis in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)


def interpolate_positions(
    positions: Tensor, grid: tuple[int, int], *, offset: float = 0.0, antialias: bool = False
) -> Tensor:
    """Square position grids ``[G, M*M, D]`` -> ``[G, h*w, D]`` for ``grid`` (h, w), bicubic.

    ``offset`` > 0 resizes by the factors (n + offset) / M instead of to the size n: what DINOv2 models without
    registers were trained with.
    """
    side = round(positions.shape[1] ** 0.5)
    if grid == (side, side):
        return positions
    square = positions.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [G, D, M, M]
    how = {"scale_factor": [(n + offset) / side for n in grid]} if offset else {"size": grid}
    out = F.interpolate(square, mode="bicubic", antialias=antialias, **how)  # type: ignore[arg-type]
    assert out.shape[-2:] == grid, f"positions interpolated to {tuple(out.shape[-2:])}, expected {grid}"
    return out.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
