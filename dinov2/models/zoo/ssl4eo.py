"""SSL4EO-S12's vision transformers (Wang et al. 2023, arXiv 2211.07044): MAE, DINO and MoCo on Sentinel-1 and -2."""

from __future__ import annotations

from functools import partial
from typing import Any

from dinov2.models.patch import ConvPatchEmbed
from dinov2.models.state import State
from dinov2.models.vit import SIZES
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named, with_final_norm
from dinov2.models.zoo.vit import MAE_DECODER, ReleasedViT

S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
OPTICAL = (Bands("sentinel2_l1c", S2, "reflectance"),)
SAR = (Bands("sentinel1_grd", ("VV", "VH"), "db"),)
# How each method's checkpoint names the encoder, and what it holds beside it
PREFIXES = {
    "MAE": (),
    "DINO": ("module.backbone.", "backbone."),
    "MoCo": ("module.base_encoder.",),
}
UNUSED = {
    "MAE": MAE_DECODER,
    "DINO": ("head.*", "module.head.*"),
    "MoCo": ("head.*", "module.momentum_encoder.*", "module.predictor.*"),
}


def build(in_chans: int, **sizes: Any) -> ReleasedViT:
    """A ViT-S/16 for ``in_chans`` fixed bands, ``sizes`` overriding its sizes."""
    options = {"img_size": 224, "patch_size": 16, **SIZES["vit_small"], **sizes}
    return ReleasedViT(ConvPatchEmbed(options["embed_dim"], options["patch_size"], in_chans), **options)


def convert(method: str, content: Any) -> Converted:
    """A released file's content, a whole checkpoint or the backbone alone -> (encoder state, nothing)."""
    return with_final_norm(encoder_state(content, prefixes=PREFIXES[method], unused=UNUSED[method])), {}


def method_of(flat: State) -> str | None:
    """The method whose checkpoint names its tensors so; None for a bare backbone, which could be of any."""
    if any("base_encoder." in key for key in flat):
        return "MoCo"
    if any("backbone." in key for key in flat):
        return "DINO"
    return "MAE" if any(".decoder_" in f".{key}" for key in flat) else None


def marks(method: str, in_chans: int, flat: State) -> bool:
    """Whether these tensors may be this model's: its number of bands, and nothing that says another method."""
    proj = named(flat, "patch_embed.proj.weight")
    fits = proj is not None and proj.ndim == 4 and proj.shape[1] == in_chans
    return fits and method_of(flat) in (method, None)


def release(method: str, bands: tuple[Bands, ...], address: str | None, sha256: str | None = None) -> Release:
    """ViT-S/16 of one method and sensor."""
    sar, in_chans = bands is SAR, len(bands[0].names)
    # radar: dB statistics of the data set, as published with it; optical: top of atmosphere, clipped to 0..1
    statistics: dict[str, Any] = dict(mean=(-12.548473, -20.192371), std=(5.256977, 5.911509)) if sar else {}
    expects = Expects(
        bands, "two_sigma" if sar else "clip", 224, 16, (3, 5, 7, 11), 384, "class token, normalised", **statistics
    )
    family = f"SSL4EO-S12 {'radar ' if sar else ''}{method}"
    made, read, marked = partial(build, in_chans=in_chans), partial(convert, method), partial(marks, method, in_chans)
    return Release(made, read, address, family, marked, expects, "CC-BY-4.0", sha256)


MIRROR = "https://huggingface.co/torchgeo/vit_small_patch16_224_sentinel2_all"  # backbones alone
DINO = "36bcc127"  # the first digits
MOCO = "67c9032df0449ae37f93c51696bcae0c6dc3485103deb44b4669e9897b90409c"
RELEASES = {
    "ssl4eo_mae": release("MAE", OPTICAL, None),  # published as a shared folder that no program can fetch
    "ssl4eo_mae_sar": release(
        "MAE", SAR, "https://huggingface.co/wangyi111/SSL4EO-S12/resolve/main/B2_vits16_mae_ep99.pth"
    ),
    "ssl4eo_dino": release(
        "DINO", OPTICAL, f"{MIRROR}_dino/resolve/main/vit_small_patch16_224_sentinel2_all_dino-{DINO}.pth", DINO
    ),
    "ssl4eo_moco": release(
        "MoCo", OPTICAL, f"{MIRROR}_moco/resolve/main/vit_small_patch16_224_sentinel2_all_moco-{MOCO[:8]}.pth", MOCO
    ),
}
