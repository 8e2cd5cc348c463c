"""DINOv3's ViT-L/16 trained on satellite images (Siméoni et al. 2025, arXiv 2508.10104): rotary positions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.layers import Attention, Block, attention_kernel
from dinov2.models.patch import ConvPatchEmbed
from dinov2.models.state import State
from dinov2.models.vit import SIZES, VisionTransformer
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named

BASE = 100.0  # periods grow from 1 towards this; coordinates run from -1 to 1
BESIDE = ("mask_token",)  # released with the encoder, but only the masked-patch objective uses it
UNUSED = ("local_cls_norm.*",)  # of the class tokens of small crops, in training
MEAN, STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)  # of pictures in 0..1


class RotaryPositions(nn.Module):
    """Angles ``[L, d]`` (cosines, sines) of the patches of a grid, for heads of ``dim`` d.

    The centres of the patches, each axis from -1 to 1, over d / 4 periods; rows first, then columns, all that twice.
    """

    periods: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("periods", BASE ** (torch.arange(dim // 4) / (dim // 4)))  # released with the weights

    def forward(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """See the class."""
        axes = [(torch.arange(n, device=self.periods.device) + 0.5) / n * 2 - 1 for n in grid]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)  # [L, 2]
        angles = (2 * math.pi * centres[:, :, None] / self.periods).flatten(1).tile(2)  # [L, d]
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Patches, the last L of N tokens ``[B, H, N, d]``, turned by their angles (Su et al. 2021, eq. 34)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    others, patches = x.split([x.shape[2] - len(cos), len(cos)], 2)
    first, second = patches.chunk(2, -1)
    return torch.cat([others, patches * cos + torch.cat([-second, first], -1) * sin], 2)


class RotaryAttention(Attention):
    """Self-attention whose queries and keys know their patch's place."""

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Tokens ``[B, N, D]`` -> ``[B, N, D]``."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 x [B, H, N, d]
        q, k = rotate(q, rotation), rotate(k, rotation)
        return self.proj(attention_kernel()(q, k, v).transpose(1, 2).reshape(x.shape))


class RotaryBlock(Block):
    """A block around :class:`RotaryAttention`."""

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.attn = RotaryAttention(dim, num_heads)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Tokens ``[B, N, D]`` -> ``[B, N, D]``."""
        x = self.add_branch(x, lambda t: self.ls1(self.attn(self.norm1(t), rotation)))
        return self.add_branch(x, lambda t: self.ls2(self.mlp(self.norm2(t))))


class DinoV3(VisionTransformer):
    """ViT with registers whose positions act inside the attention."""

    def __init__(self, patch_embed: nn.Module, *, depth: int, num_heads: int, **options: Any) -> None:
        super().__init__(patch_embed, depth=0, num_heads=num_heads, **options)
        block = {k: v for k, v in options.items() if k in ("layer_scale", "norm_eps", "mlp_ratio")}
        self.blocks = nn.ModuleList(RotaryBlock(self.embed_dim, num_heads, **block) for _ in range(depth))
        self.rope_embed = RotaryPositions(self.embed_dim // num_heads)
        self.init_weights()
        del self.pos_embed

    def positions(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Nothing is added to the tokens."""
        nothing = torch.zeros_like(self.cls_token)
        return nothing, nothing

    def steps(self, tokens: Tensor, grid: tuple[int, ...]) -> Iterator[Tensor]:
        """Tokens ``[B, N, D]`` after each block."""
        rotation = self.rope_embed(grid)
        for block in self.blocks:
            tokens = block(tokens, rotation)
            yield tokens


def build(**sizes: Any) -> DinoV3:
    """DINOv3 ViT-L/16 at its released sizes, ``sizes`` overriding them."""
    options = {"img_size": 224, "patch_size": 16, **SIZES["vit_large"], **sizes}
    embed = ConvPatchEmbed(options["embed_dim"], options["patch_size"])
    return DinoV3(embed, registers=4, layer_scale=1e-5, norm_eps=1e-5, **options)


def convert(content: Any) -> Converted:
    """A released file's content -> (encoder state, mask token). Biases of keys, released beside a mask, become 0."""
    state = encoder_state(content, unused=UNUSED)
    for key in [k for k in state if k.endswith(".bias_mask")]:
        mask, bias = state.pop(key), key.replace("bias_mask", "bias")
        if bias in state:
            state[bias] = state[bias] * mask.to(state[bias].dtype)
    beside = {k: state.pop(k) for k in BESIDE if k in state}
    return {k.replace("storage_tokens", "register_tokens"): v for k, v in state.items()}, beside


def marks(flat: State) -> bool:
    """Whether these tensors are DINOv3's: only it has periods of rotary positions."""
    return named(flat, "rope_embed.periods") is not None


EXPECTS = Expects(
    bands=(Bands("rgb", ("red", "green", "blue"), "dn"),),
    scaling="standardise",
    mean=tuple(255 * x for x in MEAN),
    std=tuple(255 * x for x in STD),
    size=224,
    patch=16,
    layers=(5, 11, 17, 23),
    dim=1024,
    embedding="class token, normalised",
)
RELEASES = {
    # files come after a form has been filled in; the end of the name is the start of the checksum
    "dinov3_vitl16_sat": Release(build, convert, None, "DINOv3", marks, EXPECTS, "DINOv3 License")
}
