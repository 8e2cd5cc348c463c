"""DOFA, Dynamic One-For-All (Xiong et al. 2024, arXiv 2403.15356): patch filters generated from wavelengths.

The embedding is the mean of the patch tokens, normalised: the published head's norm is not part of the released file
(it starts as scale 1 and shift 0), the file's own ``norm`` belongs to the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.channels import check_channels
from dinov2.models.patch import patchify
from dinov2.models.state import State
from dinov2.models.vit import SIZES, Input
from dinov2.models.zoo.release import Converted, Expects, Release, encoder_state
from dinov2.models.zoo.vit import MAE_DECODER, ReleasedViT

FILTER_SCALE = 0.01
SAR_NM = 3750.0  # what stands for a C-band channel in the released weights' evaluations; the wave is 5.5 cm long
UNUSED = (*MAE_DECODER, "projector.*")

Filters = tuple[Tensor, Tensor]  # weight [C*P*P, E], bias [E]


class WeightGenerator(nn.Module):
    """Wave features ``[C, W]`` -> filters ``[C, P*P*E]`` and bias ``[E]``, by a transformer layer over the bands."""

    def __init__(self, wave_dim: int, outputs: int, embed_dim: int, *, tokens: int = 128, heads: int = 4) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(wave_dim, heads, dim_feedforward=2048, dropout=0.0, activation="gelu")
        self.transformer_encoder = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        self.weight_tokens = nn.Parameter(torch.randn(tokens, wave_dim) * 0.02)
        self.bias_token = nn.Parameter(torch.randn(1, wave_dim) * 0.02)
        self.fc_weight = nn.Linear(wave_dim, outputs)
        self.fc_bias = nn.Linear(wave_dim, embed_dim)

    def forward(self, waves: Tensor) -> Filters:
        """See the class."""
        sequence = torch.cat([self.weight_tokens, waves, self.bias_token])
        out = self.transformer_encoder["layers"][0](sequence)  # type: ignore[index]
        return self.fc_weight(out[len(self.weight_tokens) : -1] + waves), self.fc_bias(out[-1])


class WaveMlp(nn.Module):
    """Residual two-layer MLP with a rectifier after each layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
        return x + F.relu(self.w2(F.relu(self.w1(x))))


class DynamicPatchEmbed(nn.Module):
    """Patch convolution whose filters are generated from the channels' wavelengths.

    Takes the published dictionary (see :class:`dinov2.models.spectral.SpectralPatchEmbed`); radar channels enter as
    ``SAR_NM``. In evaluation without gradients the filters of a set of channels are generated once and kept.
    """

    def __init__(self, embed_dim: int, patch_size: int, wave_dim: int = 128) -> None:
        super().__init__()
        self.embed_dim, self.patch_size, self.wave_dim = embed_dim, patch_size, wave_dim
        self.weight_generator = WeightGenerator(wave_dim, patch_size**2 * embed_dim, embed_dim)
        self.fclayer = WaveMlp(wave_dim)
        self._kept: dict[tuple[float, ...], Filters] = {}
        self._kept_for: tuple = ()

    def waves(self, nm: Tensor) -> Tensor:
        """Wavelengths ``[C]`` in nm -> features ``[C, W]``: [sin | cos], then the residual MLP."""
        half = self.wave_dim // 2
        frequency = 1.0 / 10000 ** (torch.arange(half, device=nm.device, dtype=torch.float32) / half)
        angle = nm.float()[:, None] * frequency
        return self.fclayer(torch.cat([angle.sin(), angle.cos()], 1).to(self.fclayer.w1.weight.dtype))

    def generate(self, nm: Tensor) -> Filters:
        """Filters ``[C*P*P, E]`` and bias ``[E]`` for wavelengths ``[C]`` in nm."""
        with torch.autocast(nm.device.type, enabled=False):  # kept filters must not depend on who asked first
            weight, bias = self.weight_generator(self.waves(nm))
        return weight.view(-1, self.embed_dim) * FILTER_SCALE, bias * FILTER_SCALE

    def filters(self, nm: Tensor) -> Filters:
        """:meth:`generate`, kept between calls in evaluation until a parameter changes."""
        parameters = list(self.parameters())
        if self.training or torch.is_grad_enabled() or parameters[0].is_inference():  # the last have no version
            self._kept = {}
            return self.generate(nm)
        state = tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
        if state != self._kept_for:
            self._kept, self._kept_for = {}, state
        key = tuple(nm.tolist())
        if key not in self._kept:
            self._kept[key] = self.generate(nm)
        return self._kept[key]

    def embed(self, imgs: Tensor, nm: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images ``[B, C, H, W]`` whose channels have wavelengths ``nm [C]`` -> tokens ``[B, L or K, E]``."""
        weight, bias = self.filters(nm)
        # the released convolution pads by one pixel: its patches begin one pixel up and left of the image
        patches = patchify(F.pad(imgs, (1, -1, 1, -1)), self.patch_size, keep)  # [B, L or K, C, P*P]
        return F.linear(patches.flatten(2), weight.T, bias)

    def forward(self, x: dict[str, Tensor], keep: Tensor | None = None) -> Tensor:
        """The published dictionary -> tokens ``[B, L or K, E]``; images of the same channels together."""
        imgs, masks = x["imgs"], x.get("spec_masks")
        ids = x["chn_ids"] if x["chn_ids"].ndim == 2 else x["chn_ids"][..., 0].long()
        check_channels(ids.cpu(), None if masks is None else masks.cpu(), imgs.shape[1])
        shown = ids if masks is None else ids.masked_fill(masks, 0)  # 0: not a channel
        sets, which = shown.unique(dim=0, return_inverse=True)
        parts = []
        for i, channels in enumerate(sets):
            nm = torch.where(channels < 0, SAR_NM, channels.double())[channels != 0]
            kept = None if keep is None else keep[which == i]
            parts.append(self.embed(imgs[which == i][:, channels != 0], nm, kept))
        return torch.cat(parts)[which.argsort(stable=True).argsort()]


class Dofa(ReleasedViT):
    """ViT behind the dynamic patch embedding; maps of the last block are normalised, earlier ones are not."""

    def forward(self, x: Input) -> Tensor:
        """Normalised mean of the patch tokens ``[B, D]``."""
        mean = self.forward_features(x)["prenorm"][:, 1:].mean(1)
        return F.layer_norm(mean, mean.shape[-1:], eps=self.norm.eps)

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps ``[B, D, h, w]`` after the blocks numbered in ``layers``."""
        maps = super().maps(x, layers)
        if len(self.blocks) - 1 in layers:
            maps[-1] = self.norm(maps[-1].movedim(1, -1)).movedim(-1, 1)
        return maps


def build(size: str, wave_dim: int = 128, **sizes: Any) -> Dofa:
    """DOFA at its released sizes, ``sizes`` overriding them."""
    options = {"img_size": 224, "patch_size": 16, **SIZES[size], **sizes}
    return Dofa(DynamicPatchEmbed(options["embed_dim"], options["patch_size"], wave_dim), **options)


def convert(content: Any) -> Converted:
    """A released file's content -> (encoder state, nothing)."""
    return encoder_state(content, unused=UNUSED), {}


def marks(flat: State) -> bool:
    """Whether these tensors are DOFA's: only it has a weight generator."""
    return any("weight_generator." in key for key in flat)


def release(size: str, file: str, dim: int, layers: tuple[int, ...]) -> Release:
    """One file of the release."""
    expects = Expects((), "standardise", 224, 16, layers, dim, "mean of patch tokens, normalised")
    address = f"https://huggingface.co/earthflow/DOFA/resolve/main/{file}"
    return Release(partial(build, size), convert, address, "DOFA", marks, expects, "CC-BY-4.0")


RELEASES = {
    "dofa": release("vit_base", "DOFA_ViT_base_e100.pth", 768, (3, 5, 7, 11)),
    "dofa_large": release("vit_large", "DOFA_ViT_large_e100.pth", 1024, (7, 11, 15, 23)),
}
