"""Released encoders behind one loader."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.state import build_loaded
from dinov2.models.zoo import (
    croma,
    dinov2,
    dinov3,
    dofa,
    panopticon,
    phileo,
    phileo_unet,
    prithvi,
    prithvi_finetuned,
    remoteclip,
    satmae,
    scalemae,
    spectralgpt,
    ssl4eo,
)
from dinov2.models.zoo.release import Release, flatten
from dinov2.names import suggest

MODELS = (
    dinov2,
    panopticon,
    dofa,
    croma,
    prithvi,
    prithvi_finetuned,
    scalemae,
    ssl4eo,
    spectralgpt,
    satmae,
    remoteclip,
    dinov3,
    phileo,
    phileo_unet,
)
ZOO: dict[str, Release] = {name: release for model in MODELS for name, release in model.RELEASES.items()}

Weights = str | Path | dict[str, Any] | None


def load_encoder(name: str, weights: Weights = None, **sizes: Any) -> nn.Module:
    """The released encoder ``name`` in evaluation mode; see :func:`load_released`."""
    return load_released(name, weights, **sizes)[0]


def load_released(name: str, weights: Weights = None, **sizes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """The encoder, in evaluation mode, and what was released beside it (``mask_token [1, D]`` of DINOv2 models).

    ``weights``: None = the released file (downloaded once into torch.hub's cache), a path, a state dict, or
    ``"random"`` = untrained. ``sizes`` override the released sizes. Weights of another model of this zoo raise
    ValueError naming that model; a key that is missing, unknown or of another shape raises it naming the key; so do an
    unknown ``name`` and an unreachable download.
    """
    if name not in ZOO:
        raise ValueError(f"unknown released encoder {name!r}{suggest(name, list(ZOO))} Known: {', '.join(sorted(ZOO))}")
    build = partial(ZOO[name].build, **sizes)
    if weights == "random":
        return build().eval(), {}
    content = ZOO[name].content(weights)
    check_family(name, content, describe(weights))
    state, beside = ZOO[name].convert(content)
    try:
        return build_loaded(build, state, f"{name} from {describe(weights)}"), beside
    except ValueError as error:
        others = [other for other in relatives(name) if fits(other, content)]
        hint = f"; these are weights of {' or '.join(others)}" if others else ""
        raise ValueError(f"{error}{hint}") from error


def check_family(name: str, content: Any, source: str) -> None:
    """ValueError where the tensors bear the marks of another model than ``name``; unmarked ones are left to loading."""
    flat = dict(flatten(content))
    families = {release.family for release in ZOO.values() if release.marks(flat)}
    if families and ZOO[name].family not in families:
        raise ValueError(f"{source}: this looks like {' or '.join(sorted(families))}, not {ZOO[name].family}")


def relatives(name: str) -> list[str]:
    """The other models of its family: other sizes and sensors."""
    return [other for other in ZOO if other != name and ZOO[other].family == ZOO[name].family]


@functools.cache
def released_shapes(name: str) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors at its released sizes, without their memory."""
    with torch.device("meta"):
        return {k: v.shape for k, v in ZOO[name].build().state_dict().items()}


def fits(name: str, content: Any) -> bool:
    """Whether the tensors have the names and shapes of this model at its released sizes."""
    return released_shapes(name) == {k: v.shape for k, v in ZOO[name].convert(content)[0].items()}


def candidates(content: Any) -> list[str]:
    """The models at their released sizes whose file these tensors could be: one, or several parts of one file."""
    flat = dict(flatten(content))
    return [name for name in ZOO if ZOO[name].marks(flat) and fits(name, content)]


def describe(weights: Weights) -> str:
    """Where weights come from, for messages."""
    if weights is None:
        return "its published address"
    return "a state dict" if isinstance(weights, dict) else str(weights)
