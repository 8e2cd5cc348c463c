"""torch.hub entries: every name of dinov2.models.zoo.ZOO; everything imported here needs torch and numpy only.

Every entry takes ``weights``: None (download the released file), a path, or ``"random"`` (untrained), and the sizes
that its model has.

    model = torch.hub.load(REPO, "panopticon_vitb14", source="local")
    cls = model({"imgs": imgs, "chn_ids": ids})  # [B, 768]
"""

from functools import partial
from pathlib import Path

from torch import nn

from dinov2.models.zoo import ZOO, load_encoder

dependencies = ["torch", "numpy"]

globals().update({name: partial(load_encoder, name) for name in ZOO})


def eossl(weights: str) -> nn.Module:
    """An encoder exported by this project: a file ``model_final.safetensors``, or a folder that eval/export.py wrote.

    Reading it needs safetensors. Weights that are not those which were written raise ValueError.
    """
    from dinov2.models.export import from_pretrained, load_export

    return from_pretrained(weights) if Path(weights).is_dir() else load_export(weights)[0]
