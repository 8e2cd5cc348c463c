"""The parts of a masked autoencoder beside its encoder (He et al. 2022): decoder and pixel heads.

Shape letters: B images, L patches (K visible, M hidden), E encoder width, D decoder width, H heads, n groups of bands
that are reconstructed together, Q pixels of such a group in one patch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.channels import ChannelEmbedding
from dinov2.models.layers import Attention, Block, sincos_positions

NORM_PIX_EPS = 1e-6
NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))  # columns, rows
VISIBLE_RMS = 0.25  # of a visible token where the decoder begins; its position has 0.7


class MAEDecoder(nn.Module):
    """A light transformer that fills hidden patches in; parameter names as in the original release.

    ``block_options``: Block's (``mlp_ratio``, ``qkv_bias``, ``norm_eps``, ...).
    """

    def __init__(self, embed_dim: int, dim: int, depth: int, num_heads: int, **block_options: Any) -> None:
        super().__init__()
        self.decoder_embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        blocks = [Block(dim, num_heads, **block_options) for _ in range(depth)]
        self.decoder_blocks = nn.ModuleList(blocks)
        self.decoder_norm = nn.LayerNorm(dim, block_options.get("norm_eps", 1e-6))
        nn.init.normal_(self.mask_token, std=0.02)
        # a mask token is little more than its position: were visible ones much else, all that positions attract would
        # be mask tokens, which have nothing to tell
        nn.init.normal_(self.decoder_embed.weight, std=VISIBLE_RMS / embed_dim**0.5)
        nn.init.zeros_(self.decoder_embed.bias)
        for block in blocks[:1]:
            look_at_neighbours(block.attn)

    def forward(self, cls: Tensor, patches: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class token ``[B, E]`` and visible patches ``[B, K, E]`` at indices ``keep [B, K]`` -> ``[B, L, D]``."""
        b, length = len(cls), grid[0] * grid[1]
        visible = self.decoder_embed(patches)  # [B, K, D]
        tokens = self.mask_token.to(visible.dtype).expand(b, length, -1)
        tokens = tokens.scatter(1, keep[..., None].expand_as(visible), visible)
        tokens = tokens + sincos_positions(tokens.shape[-1], *grid).to(tokens)
        tokens = torch.cat([self.decoder_embed(cls)[:, None], tokens], 1)  # the class token has position 0
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_norm(tokens)[:, 1:]


@torch.no_grad()
def look_at_neighbours(attention: Attention) -> None:
    """Initial queries and keys of tokens with sine-cosine positions: head h looks one patch further, in direction h.

    Both read the highest frequencies of the positions, queries turned by the angle from one patch to the next, so that
    q(p) . k(j) is largest where j = p + NEIGHBOURS[h]. From even attention a short run never learns to tell one place
    from another. The idea is ConViT's (d'Ascoli et al. 2021, sec. 3): heads that start as a convolution's offsets.
    """
    dim, heads = attention.qkv.in_features, attention.heads
    width = dim // heads
    pairs = width // 4  # of sine and cosine, for each axis
    sharpness = (12 / width**0.5) ** 0.5  # queries and keys share the factor; the same logits in heads of any width
    with torch.device("cpu"):  # also for a model that is built on the meta device
        angle = torch.atan2(*sincos_positions(dim, 2, 2)[-1].view(2, 2, -1)[0, :, :pairs])[:, None]  # [N, 1]
        offset = torch.tensor([NEIGHBOURS[h % len(NEIGHBOURS)] for h in range(heads)])[..., None, None]  # [H, 2, 1, 1]
        sine, cosine = torch.eye(dim).view(2, 2, -1, dim)[:, :, :pairs].unbind(1)  # what reads them [2, N, D]
    sin, cos = (offset * angle).sin(), (offset * angle).cos()  # [H, 2, N, 1]
    turned = torch.cat([cos * sine + sin * cosine, cos * cosine - sin * sine], 2).flatten(1, 2)  # [H, 4N, D]
    query, key, _ = attention.qkv.weight.view(3, heads, width, dim)
    query[:, : 4 * pairs] = sharpness * turned
    key[:, : 4 * pairs] = sharpness * torch.cat([sine, cosine], 1).flatten(0, 1)


class ChannelHead(nn.Module):
    """Decoder token + channel id -> the patch's pixels in that channel, for any channel."""

    def __init__(self, dim: int, patch_size: int, *, terrain: bool = False) -> None:
        super().__init__()
        self.code = ChannelEmbedding(dim, terrain=terrain)
        self.token = nn.Linear(dim, dim)
        self.channel = nn.Linear(dim, dim)
        self.pixels = nn.Linear(dim, patch_size**2)

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Tokens ``[B, M, D]``, ids ``[B, n]`` -> ``[B, n, M, P2]``."""
        channel = self.channel(self.code(ids))  # [B, n, D]
        # the nonlinearity lets a channel change how a token is read, and not only add an offset to every patch
        return self.pixels(F.gelu(self.token(tokens)[:, None] + channel[:, :, None]))


class FixedBandHead(nn.Module):
    """The original head: all bands of a patch at once, pixels in (row, column, channel) order."""

    def __init__(self, dim: int, patch_size: int, in_chans: int) -> None:
        super().__init__()
        self.decoder_pred = nn.Linear(dim, patch_size**2 * in_chans)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, M, D]`` -> ``[B, 1, M, P2 * C]``."""
        return self.decoder_pred(tokens)[:, None]


def normalised(pixels: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) variance over the pixels of each group and patch, ``[B, n, M, Q]``."""
    variance, mean = torch.var_mean(pixels, -1, keepdim=True)
    return (pixels - mean) / (variance + NORM_PIX_EPS).sqrt()
