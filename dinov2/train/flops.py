"""Floating point operations of pretraining by formula (a multiplication and an addition count two), and a device's."""

from __future__ import annotations

import time
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dinov2.data.batch import ViewSpec
from dinov2.data.views import view_width
from dinov2.models.geo import UPerNetPainter
from dinov2.models.mae import ChannelHead
from dinov2.models.phileo_vit import PhilEOViT
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.vit import VisionTransformer
from dinov2.objectives.base import Objective
from dinov2.objectives.dino import DINO
from dinov2.objectives.geo_aware import GeoAware
from dinov2.objectives.mae import MAE
from dinov2.objectives.two_view import TwoView

TRAINED = 3  # a pass that learns: forward, gradient of the activations, gradient of the weights
PRODUCT = {"cuda": 8192, "cpu": 512}  # side of the matrices that measure a device


def matrices(module: nn.Module) -> int:
    """Numbers in the weight matrices of all linear layers below ``module``."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def blocks_flops(blocks: nn.Module, width: int, tokens: int) -> int:
    """One forward pass of transformer blocks: every token by every matrix, and per block 4 N^2 D for attention."""
    return 2 * tokens * matrices(blocks) + 4 * tokens**2 * width * len(list(blocks.children()))


def patches(encoder: VisionTransformer, view: ViewSpec) -> tuple[int, int]:
    """Patches of a view: all of them, and those that the encoder sees."""
    places = (view.size // encoder.patch_size) ** 2
    hidden = round(view.mask.ratio * places) if view.mask and view.mask.kind == "random" else 0
    return places, places - hidden


def encoder_flops(encoder: VisionTransformer, view: ViewSpec) -> float:
    """One forward pass of one image of ``view`` with its mean number of bands.

    Patch embedding: docs/decisions/0004; its products of parameters, once per step, are left out.
    """
    _, seen = patches(encoder, view)
    tokens, pixels, bands = seen + 1 + encoder.registers, encoder.patch_size**2, sum(view.bands) / 2
    embed = encoder.patch_embed
    if isinstance(embed, SpectralPatchEmbed):
        width = embed.proj.in_features
        per_patch = bands * (4 * pixels * embed.heads + 2 * width) + 2 * pixels * width + 2 * matrices(embed.proj)
    else:
        per_patch = 2 * bands * pixels * encoder.embed_dim
    return seen * per_patch + blocks_flops(encoder.blocks, encoder.embed_dim, tokens)


def sample_flops(objective: Objective) -> float | None:
    """A training step's operations per sample: the student learns from all views, a teacher sees the first kind.

    Heads are those of the objectives of this package; others count with their encoders only. None for encoders that
    are no vision transformer, or have convolutions before it.
    """
    encoder = objective.encoder
    if not isinstance(encoder, VisionTransformer) or isinstance(encoder, PhilEOViT):
        return None
    teacher = any(isinstance(m, VisionTransformer) and m is not encoder for m in objective.modules())
    passes = [TRAINED + (teacher and view is objective.views[0]) for view in objective.views]
    views = zip(objective.views, passes, strict=True)
    return sum(view.count * n * encoder_flops(encoder, view) for view, n in views) + head_flops(objective)


def head_flops(objective: Objective) -> float:
    """Projectors, decoder or prototypes, per sample."""
    if isinstance(objective, MAE):
        head = objective.head
        painted = matrices(head)  # per hidden patch; a head that is told the channel paints several
        if isinstance(head, ChannelHead):
            painted += (objective.target_bands - 1) * matrices(head.pixels)
        view, decoder = objective.views[0], objective.decoder
        places, seen = patches(objective.encoder, view)
        width = cast(int, decoder.decoder_embed.out_features)
        pixels = 2 * (places - seen) * painted
        embed = 2 * (seen + 1) * matrices(decoder.decoder_embed)
        return TRAINED * (embed + blocks_flops(decoder.decoder_blocks, width, places + 1) + pixels)
    if isinstance(objective, DINO):
        view = objective.views[0]
        places, _ = patches(objective.encoder, view)
        assert view.mask is not None
        hidden = view.count * view.mask.probability * sum(view.mask.ratio_range) / 2 * places
        dino_head = objective.heads.of("cls")
        per_row = 2 * matrices(dino_head.mlp) + 2 * dino_head.last_layer.weight_v.numel()
        crops = sum(v.count for v in objective.views)
        return per_row * (TRAINED * (crops + hidden) + view.count + hidden)
    if isinstance(objective, GeoAware):
        return TRAINED * 2 * (painter_flops(objective) + 2 * matrices(objective.heads))
    if isinstance(objective, TwoView):
        predictor = matrices(objective.predictor) if objective.asymmetric else 0
        teacher = matrices(objective.projector) if objective.asymmetric else 0
        return 2 * 2 * (TRAINED * (matrices(objective.projector) + predictor) + teacher)
    return 0.0


def painter_flops(objective: GeoAware) -> float:
    """UPerNet's convolutions, counted on a meta copy, and the filters that paint every channel, per view."""
    encoder, view = cast(VisionTransformer, objective.encoder), objective.views[0]
    width = cast(int, objective.painter.painter.filters.in_features)  # type: ignore[union-attr]
    side = view.size // encoder.patch_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        painter = UPerNetPainter(encoder, width).eval()
        painted = painter.decoder.logits([torch.empty(1, encoder.embed_dim, side, side)] * len(painter.layers))  # type: ignore[operator]
    return counter.get_total_flops() + 2 * view_width(view) * width * (width + 1 + painted[0, 0].numel())


def peak_flops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations per second of the best of some square matrix products on ``device``."""
    side = PRODUCT[device.type]
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        finish(a @ a)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def finish(result: Tensor) -> None:
    """Wait until the device has computed ``result``."""
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
