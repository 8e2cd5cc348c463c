"""DINOv2's released encoders (Oquab et al. 2023) and the layouts of its checkpoints."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import Tensor

from dinov2.models import build_encoder
from dinov2.models.state import State, shorten
from dinov2.models.vit import SIZES
from dinov2.models.zoo.release import Bands, Expects, Release, named

BESIDE = ("mask_token",)  # released with the encoder, but only the masked-patch objective uses it
# Beside the teacher's backbone, training checkpoints hold heads, the student and the losses' centres.
TRAINING_ONLY = ("student.", "teacher.dino_head.", "teacher.ibot_head.", "dino_head.", "ibot_head.")
TRAINING_BUFFERS = ("dino_loss.center", "ibot_patch_loss.center")


def convert(content: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The teacher's backbone out of a released or training checkpoint -> (encoder state, mask token).

    Understands flat files, ``{"teacher": ...}`` and ``{"model": ...}`` with ``backbone.`` or ``teacher.backbone.``
    prefixes, and block chunks (``blocks.<chunk>.<block>.*``).
    """
    state = content
    for nest in ("teacher", "model"):
        state = state.get(nest, state)
    prefix = next((p for p in ("teacher.backbone.", "backbone.") if any(k.startswith(p) for k in state)), "")
    if prefix:
        strange = [k for k in state if not k.startswith((prefix, *TRAINING_ONLY)) and k not in TRAINING_BUFFERS]
        if strange:
            raise ValueError(f"unknown keys beside {prefix}*: {shorten(sorted(strange))}")
    flat = {unchunk(k.removeprefix(prefix)): v for k, v in state.items() if k.startswith(prefix)}
    beside = {k: flat.pop(k) for k in BESIDE if k in flat}
    return flat, beside


def unchunk(key: str) -> str:
    """``blocks.<chunk>.<block>.x`` -> ``blocks.<block>.x``; the block number is absolute in both."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key)


def marks(registers: bool, flat: State) -> bool:
    """Whether these tensors are a DINOv2 model's, with registers or without: a patch convolution and LayerScale."""
    proj = named(flat, "patch_embed.proj.weight")
    convolved = proj is not None and proj.ndim == 4
    ends = ("ls1.gamma", "register_tokens", "rope_embed.periods")  # the last: DINOv3
    scaled, extra, rotary = (any(key.endswith(end) for key in flat) for end in ends)
    return convolved and scaled and extra == registers and not rotary


def expects(size: str) -> Expects:
    """ImageNet pictures at 224 pixels; blocks at every quarter of the depth for dense tasks."""
    depth, dim = SIZES[size]["depth"], SIZES[size]["embed_dim"]
    return Expects(
        bands=(Bands("rgb", ("red", "green", "blue"), "dn"),),
        scaling="standardise",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        size=224,
        patch=14,
        layers=tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)),
        dim=dim,
        embedding="class token, normalised",
    )


def release(size: str, letter: str, registers: bool, **options: Any) -> Release:
    """One file of the DINOv2 release."""
    name = f"dinov2_vit{letter}14"
    if registers:  # these were trained with exact, antialiased position sizes
        options.update(registers=4, interpolate_offset=0.0, interpolate_antialias=True)
    build = partial(build_encoder, size, patch_size=14, img_size=518, embed="conv", layer_scale=1.0, **options)
    file = f"{name}{'_reg4' if registers else ''}_pretrain.pth"
    family = "DINOv2 with registers" if registers else "DINOv2"
    address = f"https://dl.fbaipublicfiles.com/dinov2/{name}/{file}"
    return Release(build, convert, address, family, partial(marks, registers), expects(size), "Apache-2.0")


RELEASES = {
    f"dinov2_vit{letter}14{'_reg' if registers else ''}": release(size, letter, registers, **options)
    for size, letter, options in (
        ("vit_small", "s", {}),
        ("vit_base", "b", {}),
        ("vit_large", "l", {}),
        ("vit_giant2", "g", {"ffn": "swiglu"}),
    )
    for registers in (False, True)
}
