"""Panopticon's released encoder (Waldmann et al. 2025, arXiv 2503.10845)."""

from __future__ import annotations

from functools import partial

from dinov2.models import build_encoder
from dinov2.models.zoo.dinov2 import convert
from dinov2.models.zoo.release import Expects, Release

RELEASES = {
    "panopticon_vitb14": Release(
        partial(build_encoder, "vit_base", patch_size=14, img_size=518, embed="spectral", layer_scale=1e-5),
        convert,
        "https://huggingface.co/lewaldm/panopticon/resolve/main/panopticon_vitb14_teacher.pth",
        "Panopticon",
        lambda flat: any("patch_embed.chnfus." in key for key in flat),
        Expects((), "standardise", 224, 14, (3, 5, 7, 11), 768, "class token, normalised"),
    )
}
