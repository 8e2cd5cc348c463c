"""Released encoders behind one loader."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dinov2.models.state import build_loaded
from dinov2.models.zoo import dinov2, panopticon
from dinov2.models.zoo.release import Release

ZOO: dict[str, Release] = {**dinov2.RELEASES, **panopticon.RELEASES}

Weights = str | Path | dict[str, Any] | None


def load_encoder(name: str, weights: Weights = None, **sizes: Any) -> nn.Module:
    """The released encoder ``name`` in evaluation mode; see :func:`load_released`."""
    return load_released(name, weights, **sizes)[0]


def load_released(name: str, weights: Weights = None, **sizes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """The encoder, in evaluation mode, and what was released beside it (``mask_token [1, D]`` of DINOv2 models).

    ``weights``: None = the released file (downloaded once into torch.hub's cache), a path, a state dict, or
    ``"random"`` = untrained. ``sizes`` override the released sizes. A key that is missing, unknown or of another shape
    raises ValueError naming it, as does an unknown ``name`` or an unreachable download.
    """
    if name not in ZOO:
        raise ValueError(f"unknown released encoder {name!r}; known: {', '.join(sorted(ZOO))}")
    build = partial(ZOO[name].build, **sizes)
    if weights == "random":
        return build().eval(), {}
    state, beside = ZOO[name].read(weights)
    return build_loaded(build, state, f"{name} from {describe(weights)}"), beside


def describe(weights: Weights) -> str:
    """Where weights come from, for messages."""
    if weights is None:
        return "its published address"
    return "a state dict" if isinstance(weights, dict) else str(weights)
