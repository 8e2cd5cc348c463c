"""torch.hub entries; everything imported here needs torch and numpy only.

Every entry takes ``weights``: None (download the released file), a path, or ``"random"`` (untrained).

    model = torch.hub.load(REPO, "panopticon_vitb14", source="local")
    cls = model({"imgs": imgs, "chn_ids": ids})  # [B, 768]
"""

from functools import partial
from typing import Any

from torch import nn

from dinov2.models.zoo import load_encoder

dependencies = ["torch", "numpy"]


def panopticon_vitb14(weights: str | None = None, **sizes: Any) -> nn.Module:
    """Panopticon ViT-B/14 for any optical and SAR bands: ``{"imgs": [B, C, H, W], "chn_ids": [B, C]} -> [B, 768]``."""
    return load_encoder("panopticon_vitb14", weights, **sizes)


dinov2_vits14 = partial(load_encoder, "dinov2_vits14")
dinov2_vitb14 = partial(load_encoder, "dinov2_vitb14")
dinov2_vitl14 = partial(load_encoder, "dinov2_vitl14")
dinov2_vitg14 = partial(load_encoder, "dinov2_vitg14")
dinov2_vits14_reg = partial(load_encoder, "dinov2_vits14_reg")
dinov2_vitb14_reg = partial(load_encoder, "dinov2_vitb14_reg")
dinov2_vitl14_reg = partial(load_encoder, "dinov2_vitl14_reg")
dinov2_vitg14_reg = partial(load_encoder, "dinov2_vitg14_reg")


def eossl(weights: str) -> nn.Module:
    """An encoder exported by this project (``model_final.safetensors``); reading the file needs safetensors."""
    from dinov2.models.export import load_export

    return load_export(weights)[0]
