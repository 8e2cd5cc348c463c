"""Geo-aware pretraining (PhilEO-MajorTOM): paint the image again and tell where it lies and what is there.

Two views of a sample, each with a part erased, go through the encoder. Published formulae and weights, with two
corrections: views of different samples are pushed apart (the published term for them is constantly zero), and cloud
classes are read as stored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.data.augment import normal_field
from dinov2.data.batch import Batch, ViewSpec
from dinov2.data.geo import GeoTargets
from dinov2.distributed import gather, rank
from dinov2.models.geo import build_painter
from dinov2.models.heads import full_precision
from dinov2.models.phileo import PhilEOCNN
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.objectives.base import Now, Objective

WEIGHTS = {"reconstruction": 1, "coords": 1, "clouds": 100, "buildings": 100, "landcover": 1, "similarity": 1}
CLASSES = ("clouds", "landcover")  # targets that are fractions of classes; the others are numbers 0 to 1
ALPHA = 0.5  # pairs of one sample count 1 + ALPHA, pairs of two 1 - ALPHA
WORLDCOVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)  # codes of ESA's land cover map
ERASED, ASPECT = (0.25, 0.5), (0.3, 3.3)  # share of a view that is erased, height to width of the rectangle
ERASE_DRAW = 0x67656F  # first half of the key of the random numbers that choose it; the second: the position


class GeoAware(Objective):
    """Multi-task pretraining on what is known of every place.

    ``size`` of the views in pixels, each a whole sample; ``clouds``, ``buildings``, ``landcover``: labels of the
    shards, ``landcover_codes`` its classes, see GeoTargets; null leaves a target out, as ``coords=false`` does.
    ``decoder_dim``: width of UPerNet behind a vision transformer. Encoders of fixed bands see just these; of the
    others ``bands`` is as in ViewSpec.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int,
        bands: tuple[int, int] = (4, 13),
        decoder_dim: int = 128,
        clouds: str | None = "cloud_mask_s2l2a",
        buildings: str | None = "buildings",
        landcover: str | None = "landcover",
        landcover_codes: tuple[int, ...] = WORLDCOVER,
        coords: bool = True,
    ) -> None:
        super().__init__()
        embed = encoder if isinstance(encoder, PhilEOCNN) else encoder.patch_embed
        if not isinstance(embed, SpectralPatchEmbed):
            bands = (embed.in_chans, embed.in_chans)  # type: ignore[assignment,union-attr]
        self.views = (ViewSpec("crop", 2, size, (1.0, 1.0), bands, distinct=False),)
        self.supervision = GeoTargets(clouds, buildings, landcover, tuple(landcover_codes), coords)
        self.encoder = encoder
        self.painter = build_painter(encoder, decoder_dim)
        widths = self.supervision.widths.items()
        self.heads = nn.ModuleDict({name: nn.Linear(self.painter.latent_dim, width) for name, width in widths})

    def check_batch(self, batch: int, together: int) -> str | None:
        """See :class:`Objective`."""
        return "geo_aware tells samples apart: raise data.batch_size or data.micro_batch" if together < 2 else None

    def forward(self, batch: Batch, now: Now | None = None) -> dict[str, Tensor]:
        """See :class:`Objective`; the terms are those of ``WEIGHTS`` without their weights."""
        view = batch.views["crop"]
        erased = {**view, "imgs": erase(view["imgs"], batch.positions)}
        latent, image, embedding = self.painter(self.encoder, erased)
        terms = {"reconstruction": painting_error(image, view["imgs"], view.get("spec_masks"))}
        for name, head in self.heads.items():
            twice = {k: batch.targets[k].repeat(2, 1) for k in (name, f"{name}_weight")}
            found = full_precision(head(latent))
            error = fraction_error if name in CLASSES else number_error
            terms[name] = (error(found, twice[name]) * twice[f"{name}_weight"][:, 0]).mean()
        first, second = full_precision(latent).chunk(2)  # [B, L]
        terms["similarity"] = similarity(first, second, opposite(batch.positions))
        loss = sum(WEIGHTS[name] * term for name, term in terms.items())
        readings: dict[str, Any] = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, **readings, "embedding": embedding.chunk(2)[0].detach()}


def painting_error(image: Tensor, wanted: Tensor, hidden: Tensor | None) -> Tensor:
    """Mean squared error of ``[B, C, S, S]``, over the channels that are not ``hidden`` ``[B, C]``, then images."""
    error = (full_precision(image) - wanted).square().mean((2, 3))  # [B, C]
    visible = torch.ones_like(error) if hidden is None else (~hidden).to(error.dtype)
    return ((error * visible).sum(1) / visible.sum(1)).mean()


def fraction_error(logits: Tensor, fractions: Tensor) -> Tensor:
    """Cross-entropy ``[B]`` of logits ``[B, K]`` with fractions ``[B, K]`` that sum to 1."""
    return F.cross_entropy(logits, fractions, reduction="none")


def number_error(logits: Tensor, numbers: Tensor) -> Tensor:
    """Squared error ``[B]`` of logits, through a sigmoid, against numbers 0 to 1 ``[B, K]``."""
    return (logits.sigmoid() - numbers).square().mean(1)


def opposite(positions: Tensor) -> Tensor:
    """Row in ``gather`` of the partner of each of this rank's samples ``[B]``: the batch of all ranks, reversed.

    By the samples' positions, so that it is the same on any number of ranks.
    """
    everyone = gather(positions)  # [WB]
    order = everyone.argsort()
    partner = torch.empty_like(order)
    partner[order] = order.flip(0)
    return partner[rank() * len(positions) :][: len(positions)]


def similarity(first: Tensor, second: Tensor, partner: Tensor) -> Tensor:
    """Views ``[B, L]`` of one sample should agree, those of a sample and its ``partner`` ``[B]`` should not.

    Cosine embedding losses (1 - cos, and max(0, cos) of two samples), and the mean distance of the two views. A sample
    that is its own partner, in the middle of an odd batch, has no other to differ from.
    """
    own = torch.arange(len(first), device=first.device) + rank() * len(first)
    across = F.cosine_similarity(first, gather(second)[partner]).relu() * (partner != own)
    agree = 1 - F.cosine_similarity(first, second)
    return ((1 + ALPHA) * agree + (1 - ALPHA) * across + F.pairwise_distance(first, second)).mean()


def erase(imgs: Tensor, positions: Tensor) -> Tensor:
    """A copy of views ``[2B, C, S, S]``, crop-major, in which a rectangle of each is standard normal noise.

    What is drawn depends on the samples' ``positions`` ``[B]`` alone. Source: Zhong et al. 2020, arXiv 1708.04896.
    """
    side, channels = imgs.shape[-1], imgs.shape[1]
    streams = [np.random.Generator(np.random.Philox(key=[ERASE_DRAW, p])) for p in positions.tolist()]
    drawn = [(rectangle(side, stream), stream.integers(1 << 32, size=channels)) for _ in range(2) for stream in streams]
    boxes = torch.tensor([box for box, _ in drawn], device=imgs.device)[..., None]  # [2B, 4, 1]
    keys = torch.from_numpy(np.concatenate([keys for _, keys in drawn])).to(imgs.device)  # [2B * C]
    places = torch.arange(side, device=imgs.device)
    rows, columns = ((places >= boxes[:, i]) & (places < boxes[:, i] + boxes[:, i + 2]) for i in (0, 1))  # [2B, S] each
    inside = (rows[:, :, None] & columns[:, None])[:, None]  # [2B, 1, S, S]
    return torch.where(inside, normal_field(keys, side, side).view_as(imgs).to(imgs.dtype), imgs)


def rectangle(side: int, stream: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of the erased part of a square; its aspect is drawn from those that fit."""
    share = stream.uniform(*ERASED)
    low, high = max(ASPECT[0], share), min(ASPECT[1], 1 / share)
    aspect = math.exp(stream.uniform(math.log(low), math.log(high)))
    height, width = (max(1, round(side * math.sqrt(share * a))) for a in (aspect, 1 / aspect))
    return int(stream.integers(side - height + 1)), int(stream.integers(side - width + 1)), height, width
