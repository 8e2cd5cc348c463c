"""Prithvi's released fine-tuned models, with the neck and the head that they were released with.

``prithvi_burn_scars@FILE``, ``prithvi_sen1floods11@FILE`` and ``prithvi_crops@FILE`` (NASA-IMPACT/hls-foundation-os)
predict maps as they are; the file is read strictly, but for the auxiliary head, which served training only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dinov2.data.sample import ImageSpec
from dinov2.models.state import load_strict
from dinov2.models.zoo import load_released
from dinov2.sensors import SENSORS
from eval.encoders import load_model
from eval.joining import join
from eval.networks import Model
from eval.released import find_weights, is_released, released_parts
from eval.scene_encoder import Sensors
from eval.tasks.heads import Head, build_head
from eval.trained import Trained

RELEASED = "released"  # task.train: the head is the released one, nothing is trained
STRIDE = 112  # pixels between windows, as published
# names of the file -> of a head of ours
NAMES: Mapping[str, str] = {
    r"^neck\.fpn1\.(\d)\.(?:ln\.)?": r"decoder.neck.\1.",
    r"^neck\.fpn2\.0\.": "decoder.neck.4.",
    r"^neck\.fpn2\.1\.(?:ln\.)?": "decoder.neck.5.",
    r"^neck\.fpn2\.3\.": "decoder.neck.7.",
    r"^decode_head\.convs\.(\d)\.conv\.": r"decoder.convs.\1.0.",
    r"^decode_head\.convs\.(\d)\.bn\.": r"decoder.convs.\1.1.",
    r"^decode_head\.conv_seg\.": "decoder.head.1.",
}


@dataclass(frozen=True)
class Task:
    """What a model predicts, and what the numbers of the files are that it was trained on: reflectance / ``scale``."""

    classes: tuple[str, ...]
    scale: float
    nodata: float


TASKS = {
    "prithvi_burn_scars": Task(("unburnt land", "burn scar"), 1.0, -9999),
    "prithvi_sen1floods11": Task(("land", "water"), 1e-4, -9999),
    "prithvi_crops": Task(
        (
            "natural vegetation", "forest", "corn", "soybeans", "wetlands", "developed/barren", "open water",
            "winter wheat", "alfalfa", "fallow/idle cropland", "cotton", "sorghum", "other",
        ), 1e-4, -9999,
    ),
}  # fmt: skip


def is_finetuned(obj: str) -> bool:
    """Whether a ``--model-obj`` entry names a released fine-tuned model."""
    return is_released(obj) and obj.partition("@")[0] in TASKS


def finetuned(obj: str, device: torch.device | str = "cpu") -> Trained:
    """The model ``NAME@FILE`` of ``TASKS``, for files of its sensor; ValueError where the file holds another thing."""
    name, weights, sizes = released_parts(obj)
    task, model = TASKS[name], load_model(obj, device)
    assert model.expects
    (bands,) = model.expects.bands
    chosen = SENSORS[bands.sensor].select(bands.names).bands
    gsd = min(band.gsd_m for band in chosen)
    spec = ImageSpec(bands.sensor, gsd, bands.names, "float32", bands.unit, task.scale, 0.0, task.nodata)
    data = Sensors(bands.sensor, task.classes, {}, (spec,), None, None, "")
    side, frames = model.expects.size, model.frames
    joined = join(model, data, sizing="tile", stride=min(STRIDE, side))
    ids = [c.band.channel_id for c in joined.channels if c]
    if weights == "random":
        raise ValueError(f"{obj}: name the file that holds the head")
    beside = load_released(name, find_weights(weights), **sizes)[1]
    head = released_head(model, beside, len(task.classes), obj).to(device)
    shape = [len(ids), *([frames] if frames > 1 else []), side, side]
    facts = ("segmentation", task.classes, "", frames, True, (obj, 0), False, (shape, ids), side)
    return Trained(model, head, joined, *facts)


def released_head(model: Model, beside: Mapping[str, Tensor], classes: int, source: str) -> Head:
    """The head on a model's one map; names or shapes other than those of ``NAMES`` raise ValueError."""
    named = {}
    for name, tensor in beside.items():
        for pattern, ours in NAMES.items():
            name = re.sub(pattern, ours, name)
        named[name] = tensor
    widths = [model.network.encoder.embed_dim]  # type: ignore[union-attr]
    convs = [t for name, t in named.items() if re.fullmatch(r"decoder\.convs\.\d\.0\.weight", name)]
    options = {"convs": len(convs), "channels": len(convs[0])} if convs else {"convs": 0}
    neck, neck_options = ("stack", {"frames": model.frames}) if model.frames > 1 else ("none", {})
    recipe = {"decoder": "conv_transpose", "decoder_options": options, "neck": neck, "neck_options": neck_options}
    head = build_head(widths, classes, **recipe)  # type: ignore[arg-type]
    load_strict(head, {"moments": head.moments, **named}, source)
    return head.eval()
