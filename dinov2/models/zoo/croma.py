"""CROMA (Fuller et al. 2023, arXiv 2311.00566): radar, optical and joint transformers with two-dimensional ALiBi.

One released file holds all three; a model takes the parts it needs. There is no class token: the embedding is the mean
of the tokens, of one sensor through its GAP-FFN.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.layers import Mlp
from dinov2.models.patch import ConvPatchEmbed, fixed_bands, patch_grid
from dinov2.models.state import State
from dinov2.models.vit import Input, chosen_blocks, latest
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state

S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
OPTICAL, SAR = Bands("sentinel2_l2a", S2, "reflectance"), Bands("sentinel1_grd", ("VV", "VH"), "db")
BANDS = {"optical": (OPTICAL,), "sar": (SAR,), "joint": (OPTICAL, SAR)}
PARTS = {
    "optical": ("s2_encoder", "s2_GAP_FFN"),
    "sar": ("s1_encoder", "s1_GAP_FFN"),
    "joint": ("s1_encoder", "s2_encoder", "joint_encoder"),
}
PATCH = 8
LAYERS = {6: (1, 2, 3, 5), 12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}  # by the number of blocks
FILE = ("s1_encoder", "s1_GAP_FFN", "s2_encoder", "s2_GAP_FFN", "joint_encoder")
NAMES = (  # released name -> ours, in turn
    (r"\.transformer\.", "."),
    (r"\.layers\.(\d+)\.0\.to_qkv\.", r".blocks.\1.attn.qkv."),
    (r"\.layers\.(\d+)\.0\.to_out\.", r".blocks.\1.attn.proj."),
    (r"\.layers\.(\d+)\.0\.input_norm\.", r".blocks.\1.norm1."),
    (r"\.layers\.(\d+)\.1\.to_out\.", r".blocks.\1.cross.proj."),
    (r"\.layers\.(\d+)\.1\.(to_[qkv])\.", r".blocks.\1.cross.\2."),
    (r"(joint_encoder)\.layers\.(\d+)\.1\.input_norm\.", r"\1.blocks.\2.norm_cross."),
    (r"\.layers\.(\d+)\.[12]\.net\.0\.", r".blocks.\1.mlp.fc1."),
    (r"\.layers\.(\d+)\.[12]\.net\.3\.", r".blocks.\1.mlp.fc2."),
    (r"\.layers\.(\d+)\.[12]\.input_norm\.", r".blocks.\1.norm2."),
    (r"\.norm_out\.", ".norm."),
    (r"\.linear_input\.", ".patch_embed.proj."),
)


@functools.lru_cache(maxsize=16)
def alibi(height: int, width: int, heads: int) -> Tensor:
    """What attention scores lose with distance: ``[heads, N, N]``, N = height * width, on the CPU.

    Minus the Euclidean distance in patches times 2^(-8 i / heads) for head i = 1, 2, ... (Press et al. 2022, in 2-D).
    """
    places = torch.cartesian_prod(torch.arange(height, device="cpu"), torch.arange(width, device="cpu")).double()
    distance = (places[:, None] - places[None]).norm(dim=-1)
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device="cpu", dtype=torch.float64) / heads)
    return (-slopes[:, None, None] * distance).float()


class Attention(nn.Module):
    """Attention of ``x`` to ``context``, both ``[B, N, D]``, with a bias ``[H, N, N]`` on the scores."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        q_weight, kv_weight = self.qkv.weight.split([x.shape[-1], 2 * x.shape[-1]])
        parts = (F.linear(x, q_weight), *F.linear(context, kv_weight).chunk(2, -1))
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in parts)  # 3 x [B, H, N, d]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Pre-norm attention, in the joint encoder attention to the other sensor, MLP."""

    def __init__(self, dim: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        if cross:
            self.norm_cross, self.cross = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, bias: Tensor, context: Tensor | None) -> Tensor:
        """``[B, N, D] -> [B, N, D]``; ``context``: the other sensor's tokens."""
        normed = self.norm1(x)
        x = x + self.attn(normed, normed, bias)
        if context is not None:
            x = x + self.cross(self.norm_cross(x), self.norm_cross(context), bias)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """The layers of one encoder, their final norm and, of a sensor's encoder, its patch embedding."""

    def __init__(self, dim: int, depth: int, heads: int, in_chans: int | None) -> None:
        super().__init__()
        if in_chans is not None:
            self.patch_embed = ConvPatchEmbed(dim, PATCH, in_chans)
        self.blocks = nn.ModuleList(Layer(dim, heads, cross=in_chans is None) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def steps(self, x: Tensor, bias: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """Tokens ``[B, N, D]`` after each block."""
        for block in self.blocks:
            x = block(x, bias, context)
            yield x

    def forward(self, imgs: Tensor, bias: Tensor) -> Tensor:
        """Images of one sensor -> normalised tokens ``[B, N, D]``."""
        return self.norm(latest(self.steps(self.patch_embed(imgs), bias)))


class Croma(nn.Module):
    """CROMA for ``modality`` optical, sar or joint (optical bands first, then radar). ``depth``: the optical blocks.

    Takes tensors ``[B, C, H, W]`` or the published dictionary, any H and W that the patch size divides.
    """

    def __init__(self, modality: str, *, embed_dim: int, depth: int, num_heads: int = 16) -> None:
        super().__init__()
        if modality not in PARTS:
            raise ValueError(f"CROMA has no modality {modality!r}; known: {', '.join(PARTS)}")
        assert num_heads & (num_heads - 1) == 0, "ALiBi's slopes are defined for powers of two"
        self.modality, self.embed_dim, self.heads, self.patch_size = modality, embed_dim, num_heads, PATCH
        s2, s1 = len(OPTICAL.names), len(SAR.names)
        depths = {"s1_encoder": (depth // 2, s1), "s2_encoder": (depth, s2), "joint_encoder": (depth // 2, None)}
        self.parts = nn.ModuleDict()
        for part in PARTS[modality]:
            if part in depths:
                blocks, in_chans = depths[part]
                self.parts[part] = Transformer(embed_dim, blocks, num_heads, in_chans)
            else:
                wide, narrow = nn.Linear(embed_dim, 4 * embed_dim), nn.Linear(4 * embed_dim, embed_dim)
                self.parts[part] = nn.Sequential(nn.LayerNorm(embed_dim), wide, nn.GELU(), narrow)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks whose maps are given: the optical, the radar or the joint encoder's."""
        return self._last.blocks

    @property
    def _last(self) -> Any:
        return self.parts[{"optical": "s2_encoder", "sar": "s1_encoder", "joint": "joint_encoder"}[self.modality]]

    def steps(self, x: Input) -> Iterator[Tensor]:
        """Tokens ``[B, N, D]`` after each of ``blocks``, without the final norm."""
        imgs = fixed_bands(x, sum(len(bands.names) for bands in BANDS[self.modality]))
        bias = alibi(*patch_grid(imgs, PATCH), self.heads).to(imgs)
        if self.modality != "joint":
            return self._last.steps(self._last.patch_embed(imgs), bias)
        optical, sar = imgs.split([len(OPTICAL.names), len(SAR.names)], 1)
        return self._last.steps(self.parts["s1_encoder"](sar, bias), bias, self.parts["s2_encoder"](optical, bias))

    def encodings(self, x: Input) -> Tensor:
        """Normalised tokens ``[B, N, D]`` of the last block."""
        return self._last.norm(latest(self.steps(x)))

    def forward(self, x: Input) -> Tensor:
        """The published embedding ``[B, D]``: mean of the tokens, of one sensor through its GAP-FFN."""
        mean = self.encodings(x).mean(1)
        return mean if self.modality == "joint" else self.parts[PARTS[self.modality][1]](mean)

    def get_intermediate_layers(
        self,
        x: Input,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], ...]:
        """As VisionTransformer's; the mean of the tokens stands for the class token."""
        wanted = chosen_blocks(n, len(self.blocks))
        found = (tokens for number, tokens in enumerate(self.steps(x)) if number in wanted)
        normed = [self._last.norm(tokens) if norm else tokens for tokens in found]
        grid = patch_grid(x if isinstance(x, Tensor) else x["imgs"], PATCH)
        patches = [t.mT.unflatten(2, grid) if reshape else t for t in normed]
        return tuple(zip(patches, (t.mean(1) for t in normed), strict=True)) if return_class_token else tuple(patches)

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps ``[B, D, h, w]`` after ``layers``, the last of them (whichever block it is) normalised.

        So does the published benchmark of frozen encoders.
        """
        maps = list(self.get_intermediate_layers(x, layers, reshape=True, norm=False))
        maps[-1] = self._last.norm(maps[-1].movedim(1, -1)).movedim(-1, 1)  # type: ignore[union-attr]
        return maps  # type: ignore[return-value]


def convert(modality: str, content: Any) -> Converted:
    """A released file's content -> (state of the parts that ``modality`` needs, nothing)."""
    unused = [f"{part}.*" for part in FILE if part not in PARTS[modality]]
    state: dict[str, Tensor] = {}
    for key, value in encoder_state(content, prefixes=("parts.",), unused=unused).items():
        ours = f".{key}"
        for pattern, name in NAMES:
            ours = re.sub(pattern, name, ours)
        if ours.endswith("patch_embed.proj.weight") and value.ndim == 2:  # pixels of a patch: channel, row, column
            value = value.unflatten(1, (-1, PATCH, PATCH))
        state[f"parts{ours}"] = value
    for key in [k for k in state if k.endswith(".cross.to_q.weight")]:
        parts = [state.pop(key.replace("to_q", which), None) for which in ("to_q", "to_k", "to_v")]
        if None in parts:
            raise ValueError(f"{key} has no to_k or to_v beside it: this is no complete CROMA file")
        state[key.replace("to_q", "qkv")] = torch.cat(parts)  # type: ignore[arg-type]
    return state, {}


def marks(flat: State) -> bool:
    """Whether these tensors are CROMA's: only it has encoders per sensor."""
    return any(part in key.split(".") for key in flat for part in FILE)


def release(size: str, modality: str, dim: int, depth: int) -> Release:
    """One modality of one file of the release."""
    pooled = "mean of normalised tokens" if modality == "joint" else "mean of normalised tokens through the GAP-FFN"
    layers = LAYERS[depth if modality == "optical" else depth // 2]
    expects = Expects(BANDS[modality], "two_sigma", 120, PATCH, layers, dim, pooled)
    build = partial(Croma, modality, embed_dim=dim, depth=depth)
    address = f"https://huggingface.co/antofuller/CROMA/resolve/main/CROMA_{size}.pt"
    return Release(build, partial(convert, modality), address, "CROMA", marks, expects, "MIT")


RELEASES = {
    f"croma_{size}_{modality}": release(size, modality, dim, depth)
    for size, dim, depth in (("base", 768, 12), ("large", 1024, 24))
    for modality in PARTS
}
