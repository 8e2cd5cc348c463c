"""Masked autoencoding (He et al. 2022) for any set of bands, and in its original form for fixed ones.

Hidden patches are dropped before the patch embedding. With a spectral encoder a few bands per sample are drawn and
reconstructed by a head that is told which channel it paints; with a convolutional encoder all bands are, jointly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dinov2.data.batch import Batch, MaskSpec, View, ViewSpec
from dinov2.models.mae import ChannelHead, FixedBandHead, MAEDecoder, normalised
from dinov2.models.patch import ConvPatchEmbed, patchify
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.vit import VisionTransformer
from dinov2.objectives.base import Now, Objective

BAND_DRAW = 0x6D6165  # first half of the key of the random numbers that choose target bands; the second: the position


class MAE(Objective):
    """Reconstruct the pixels of hidden patches.

    ``size`` of the view in pixels; a fraction ``mask_ratio`` of its patches is hidden; ``target_bands`` bands per
    sample are reconstructed (spectral encoders); ``norm_pix``: targets standardised per patch; ``bands`` and ``scale``
    as in ViewSpec. The loss is the mean squared error over hidden patches, averaged over the samples.
    """

    encoder: VisionTransformer

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        size: int,
        mask_ratio: float = 0.75,
        decoder_dim: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
        target_bands: int = 3,
        norm_pix: bool = True,
        bands: tuple[int, int] = (4, 13),
        scale: tuple[float, float] = (0.3, 1.0),
    ) -> None:
        super().__init__()
        patch, embed = encoder.patch_size, encoder.patch_embed
        self.encoder, self.norm_pix, self.target_bands = encoder, norm_pix, target_bands
        like_encoder = {k: encoder.config[k] for k in ("mlp_ratio", "qkv_bias", "norm_eps") if k in encoder.config}
        self.decoder = MAEDecoder(encoder.embed_dim, decoder_dim, decoder_depth, decoder_heads, **like_encoder)
        length = (size // patch) ** 2
        if not 0 < (hidden := round(mask_ratio * length)) < length:
            raise ValueError(
                f"objective.mask_ratio {mask_ratio} hides {hidden} of {length} patches: hide some and leave some to see"
            )
        self.mask = MaskSpec("random", patch, mask_ratio)
        if isinstance(embed, ConvPatchEmbed):
            self.head: FixedBandHead | ChannelHead = FixedBandHead(decoder_dim, patch, embed.in_chans)
            bands = (embed.in_chans, embed.in_chans)
        else:
            assert isinstance(embed, SpectralPatchEmbed)
            terrain = embed.chnfus.chnemb.embed_terrain is not None
            self.head = ChannelHead(decoder_dim, patch, terrain=terrain)
        self.views = (ViewSpec("image", 1, size, scale, bands, mask=self.mask),)

    def forward(self, batch: Batch, now: Now | None = None) -> dict[str, Tensor]:
        """``loss`` and ``embedding [B, D]``."""
        view = batch.views["image"]
        keep, hidden = split_patches(view["masks"], self.mask.ratio)
        features = self.encoder.forward_features(view, keep=keep)
        grid = self.encoder.grid(view)
        tokens = self.decoder(features["cls"], features["patches"], keep, grid)  # [B, L, D]
        tokens = tokens.gather(1, hidden[..., None].expand(-1, -1, tokens.shape[-1]))  # [B, M, D]
        prediction, target, weight = self.reconstruct(tokens, view, hidden, batch.positions)
        error = (prediction.float() - (normalised(target) if self.norm_pix else target)).square().mean((2, 3))  # [B, n]
        return {"loss": (error * weight).sum(1).mean(), "embedding": features["cls"].detach()}

    def reconstruct(
        self, tokens: Tensor, view: View, hidden: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction and target ``[B, n, M, Q]`` of the hidden patches, and weights ``[B, n]`` that sum to 1."""
        pixels = patchify(view["imgs"], self.mask.patch_size, hidden)  # [B, M, C, P2]
        b, m, c, _ = pixels.shape
        if isinstance(self.head, FixedBandHead):
            target = pixels.transpose(2, 3).reshape(b, 1, m, -1)  # pixels in (row, column, channel) order
            return self.head(tokens), target, target.new_ones(b, 1)
        ids = view["chn_ids"] if view["chn_ids"].ndim == 2 else view["chn_ids"][..., 0]
        visible = ~view["spec_masks"] if "spec_masks" in view else torch.ones_like(ids, dtype=torch.bool)
        scores = draw_scores(positions, c).to(ids.device).masked_fill(~visible, -1.0)
        chosen = scores.topk(min(self.target_bands, c), 1).indices  # [B, n]; hidden bands come last
        weight = visible.gather(1, chosen).to(pixels.dtype)
        rows = torch.arange(b, device=ids.device)[:, None]
        target = pixels.transpose(1, 2)[rows, chosen]  # [B, n, M, P2]
        return self.head(tokens, ids.gather(1, chosen)), target, weight / weight.sum(1, keepdim=True)


def split_patches(masks: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Indices of the visible ``[B, K]`` and the hidden ``[B, M]`` patches, ascending; M = round(ratio * L)."""
    length = masks.shape[1]
    visible = length - round(ratio * length)  # known without asking the device
    order = masks.byte().argsort(dim=1, stable=True)
    keep, hidden = order[:, :visible], order[:, visible:]
    assert masks.is_cuda or (masks.gather(1, hidden).all() and not masks.gather(1, keep).any()), "wrong mask count"
    return keep, hidden


def draw_scores(positions: Tensor, channels: int) -> Tensor:
    """Uniform numbers ``[B, C]`` that depend on each sample's global position only, hence on no rank."""
    streams = [np.random.Generator(np.random.Philox(key=[BAND_DRAW, p])) for p in positions.tolist()]
    return torch.from_numpy(np.stack([stream.random(channels, np.float32) for stream in streams]))
