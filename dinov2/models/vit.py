"""Vision transformer with DINOv2's parameter names, options and outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.layers import Block, interpolate_positions

SIZES: dict[str, dict[str, Any]] = {
    "vit_tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "vit_small": dict(embed_dim=384, depth=12, num_heads=6),
    "vit_base": dict(embed_dim=768, depth=12, num_heads=12),
    "vit_large": dict(embed_dim=1024, depth=24, num_heads=16),
    "vit_giant2": dict(embed_dim=1536, depth=40, num_heads=24),
}

Input = Tensor | dict[str, Tensor]


def chosen_blocks(n: int | Sequence[int], depth: int) -> set[int]:
    """Numbers of the last ``n`` of ``depth`` blocks, or those in ``n``; one that does not exist raises ValueError."""
    wanted = set(range(depth - n, depth) if isinstance(n, int) else n)
    if not wanted <= set(range(depth)):
        raise ValueError(f"the encoder has blocks 0..{depth - 1}; cannot return {n}")
    return wanted


def latest(steps: Iterator[Tensor]) -> Tensor:
    """The last of them; the others are let go at once."""
    return deque(steps, maxlen=1).pop()


class VisionTransformer(nn.Module):
    """Patch embedding, class token, positions, optional registers, pre-norm blocks, final norm.

    ``patch_embed`` maps an input (tensor ``[B, C, H, W]`` or the published dictionary) and ``keep`` to tokens.
    ``img_size`` fixes the size of the learned position grid; any H, W that are multiples of the patch are accepted,
    positions are interpolated. ``drop_path`` is the rate of every block. Other options: see ``Block`` and
    ``interpolate_positions``. Sources: Dosovitskiy et al. 2021; Oquab et al. 2023; Darcet et al. 2024 (registers).
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        *,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        registers: int = 0,
        interpolate_offset: float = 0.1,
        interpolate_antialias: bool = False,
        norm_eps: float = 1e-6,
        **block_options: Any,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is not a multiple of patch_size {patch_size}")
        self.embed_dim, self.patch_size, self.registers = embed_dim, patch_size, registers
        self.interpolate = dict(offset=interpolate_offset, antialias=interpolate_antialias)
        self.config: dict[str, Any] = {}  # filled by build_encoder: build_encoder(**config) rebuilds this encoder
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (img_size // patch_size) ** 2, embed_dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, norm_eps=norm_eps, **block_options) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, norm_eps)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal (0.02) for the blocks' linear layers and positions, zero biases, near-zero extra tokens.

        The patch embedding keeps torch's initial values: with 0.02 the attention over channels starts flat in narrow
        models, and bands that enter equally mixed stay so for long (docs/decisions/0004-folded-embedding.md).
        """
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.registers:
            nn.init.normal_(self.register_tokens, std=1e-6)

    def grid(self, x: Input) -> tuple[int, ...]:
        """Rows and columns of patches of an input (with further axes before them in models that have such)."""
        height, width = (x if isinstance(x, Tensor) else x["imgs"]).shape[-2:]
        return height // self.patch_size, width // self.patch_size

    def positions(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Positions of the class token ``[1, 1, D]`` and of the patches of a grid ``[1, h*w, D]``."""
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        return cls, interpolate_positions(patches, grid, **self.interpolate)  # type: ignore[arg-type]

    def tokens(self, x: Input, masks: Tensor | None, fill: Tensor | None, keep: Tensor | None) -> Tensor:
        """What enters the first block: class token, registers, patches ``[B, 1 + R + (L or K), D]``."""
        assert masks is None or (fill is not None and keep is None), "masks need a fill token and exclude keep"
        patches = self.patch_embed(x, keep)  # [B, L or K, D]
        if masks is not None:
            patches = torch.where(masks[..., None], fill.to(patches.dtype), patches)  # type: ignore[union-attr]
        cls_position, position = self.positions(self.grid(x))
        if keep is not None:
            position = position[0][keep]  # [B, K, D]
        b = patches.shape[0]  # not len(): an exported graph would fix it
        parts = [(self.cls_token + cls_position).expand(b, -1, -1), patches + position]
        if self.registers:  # after the class token, without a position
            parts.insert(1, self.register_tokens.expand(b, -1, -1))
        return torch.cat(parts, 1)

    def steps(self, tokens: Tensor, grid: tuple[int, ...]) -> Iterator[Tensor]:
        """Tokens ``[B, N, D]`` after each block; ``grid``: rows and columns of patches."""
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens

    def forward(self, x: Input) -> Tensor:
        """Normalised class token ``[B, D]``."""
        return self.forward_features(x)["cls"].contiguous()  # a view would keep all tokens, for as long as it is kept

    def forward_features(
        self, x: Input, masks: Tensor | None = None, fill: Tensor | None = None, keep: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``cls [B, D]``, ``registers [B, R, D]``, ``patches [B, L or K, D]`` (all after the final norm), ``prenorm``.

        ``masks`` bool ``[B, L]``: these patch tokens are replaced by ``fill [D]``. ``keep`` ``[B, K]``: only these
        patches are embedded and seen.
        """
        tokens = latest(self.steps(self.tokens(x, masks, fill, keep), self.grid(x)))
        return {**self.split(self.norm(tokens)), "prenorm": tokens}

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        """``[B, 1 + R + L, D]`` -> ``cls``, ``registers``, ``patches``."""
        first = 1 + self.registers
        return {"cls": tokens[:, 0], "registers": tokens[:, 1:first], "patches": tokens[:, first:]}

    def get_intermediate_layers(
        self,
        x: Input,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], ...]:
        """Patch tokens ``[B, L, D]`` of the last ``n`` blocks, or of the blocks numbered in ``n``, in block order.

        ``reshape``: maps ``[B, D, h, w]``. ``return_class_token``: pairs (patches, class token ``[B, D]``).
        ``norm``: through the final norm. A block that does not exist raises ValueError.
        """
        return tuple(
            (patches, cls) if return_class_token else patches
            for patches, cls in self._intermediate(x, n, reshape=reshape, norm=norm)
        )

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps ``[B, D, h, w]`` after the blocks numbered in ``layers``: what dense tasks build on."""
        return [patches for patches, _ in self._intermediate(x, layers, reshape=True, norm=True)]

    def _intermediate(
        self, x: Input, n: int | Sequence[int], *, reshape: bool, norm: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        wanted = chosen_blocks(n, len(self.blocks))
        grid = self.grid(x)
        steps = self.steps(self.tokens(x, None, None, None), grid)
        for number, tokens in enumerate(islice(steps, max(wanted, default=-1) + 1)):
            if number in wanted:
                parts = self.split(self.norm(tokens) if norm else tokens)
                patches = parts["patches"]
                yield patches.mT.unflatten(2, grid) if reshape else patches, parts["cls"]
