"""A user's own encoder as a model under evaluation: py:package.module:function."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.data.batch import View
from dinov2.models.vit import VisionTransformer
from dinov2.models.zoo.release import Expects
from eval.networks import Model, Network, Transformer, digest
from eval.released import options


class UsersEncoder(Network):
    """A user's module: ``forward(view) -> [B, D]`` and, for dense tasks, ``maps(view) -> [[B, D, h, w], ...]``."""

    encoder: Any

    def __init__(self, encoder: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name

    def pooled(self, x: View) -> dict[str, Tensor]:
        """``{"embedding": [B, D]}``."""
        return {"embedding": self.checked(self.encoder(x), x, "forward", "D")}

    def maps(self, x: View) -> list[Tensor]:
        """See the class; an encoder without ``maps`` raises ValueError."""
        if not hasattr(self.encoder, "maps"):
            raise ValueError(f"model {self.name} has no method maps(view) -> list of [B, D, h, w], which decoders need")
        return [self.checked(m, x, "maps", "D, h, w") for m in self.encoder.maps(x)]

    def checked(self, out: Any, x: View, method: str, shape: str) -> Tensor:
        """``out``, if it is a tensor ``[B, shape]``, else ValueError."""
        images, found = len(x["imgs"]), list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(found, list) or len(found) != 1 + len(shape.split(",")) or found[0] != images:
            raise ValueError(f"model {self.name}: {method} should give tensors [{images}, {shape}], not {found}")
        return out


def users_encoder(target: str, seed: int) -> Model:
    """``py:TARGET``: the module that the function returns, with the weights that it comes with."""
    address, _, query = target.partition("?")
    module, _, function = address.partition(":")
    name = f"py:{target}"
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model {name!r}: {error}; write py:package.module:function and put the package's folder on PYTHONPATH"
        ) from error
    given = options(query, name)
    try:
        inspect.signature(build).bind(**given)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build(**given)
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"model {name!r}: the function returned a {type(encoder).__name__}, not a torch.nn.Module")
    expects = getattr(encoder, "expects", None)
    if not isinstance(expects, Expects | None):
        raise ValueError(f"model {name!r}: expects should be a dinov2.models.zoo.release.Expects")
    network = Transformer(encoder) if isinstance(encoder, VisionTransformer) else UsersEncoder(encoder, name)
    return Model(name, "pretrained", digest(encoder), network, expects=expects)
