"""Released encoders as models under evaluation: NAME@FILE, NAME@download, NAME@random."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from dinov2.config import fingerprint
from dinov2.env import expand
from dinov2.models.zoo import ZOO, load_encoder
from dinov2.models.zoo.release import Expects, sha256
from eval.networks import Convolutional, Model, Network, Released


def is_released(obj: str) -> bool:
    """Whether ``obj`` reads NAME@WEIGHTS and is not the name of a file or folder."""
    name, at, _ = obj.partition("@")
    return bool(at) and not {"/", ":"} & set(name) and not Path(obj).exists()


def released_parts(obj: str) -> tuple[str, str, dict[str, Any]]:
    """NAME@WEIGHTS?key=value -> the name, the weights and the options."""
    name, _, rest = obj.partition("@")
    weights, _, query = rest.partition("?")
    return name, weights, options(query, obj)


def released_name(obj: str) -> str:
    """The short name: NAME@ and the file's name without folder and suffix, and the options."""
    name, _, rest = obj.partition("@")
    weights, mark, query = rest.partition("?")
    return f"{name}@{Path(weights).stem}{mark}{query}"


def released(obj: str, seed: int) -> Model:
    """``NAME@FILE``, ``NAME@download`` or ``NAME@random``."""
    name, weights, sizes = released_parts(obj)
    if weights == "random":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = load_encoder(name, "random", **sizes)
        role, identity = "floor", str(seed)
    else:
        path = ZOO[name].fetch() if weights == "download" and name in ZOO else find_weights(weights)
        encoder = load_encoder(name, path, **sizes)
        role, identity = "pretrained", sha256(path)
    expects = expected_by(encoder, ZOO[name].expects, sizes)
    convolutional = getattr(encoder, "pyramid", False)
    network: Network = Convolutional(encoder, expects.layers) if convolutional else Released(encoder, expects)
    return Model(released_name(obj), role, fingerprint([name, sizes, identity]), network, expects=expects)


def expected_by(encoder: Any, released: Expects, sizes: Mapping[str, Any]) -> Expects:
    """What an encoder at these sizes expects: as released, but for its pixels and number of blocks."""
    depth = len(encoder.blocks)
    return replace(
        released,
        size=sizes.get("img_size", released.size),
        patch=encoder.patch_size,
        layers=released.layers if max(released.layers) < depth else tuple(range(depth)),
    )


def find_weights(weights: str) -> Path:
    """The file itself, or the one of this name in the folder ``$CDIR``."""
    path = Path(expand(weights))
    kept = Path(os.environ.get("CDIR", "")) / path
    return kept if not path.exists() and kept.exists() else path


def options(query: str, target: str) -> dict[str, Any]:
    """``a=1&b=x`` as a dictionary; numbers and booleans as in YAML."""
    pairs = [p.partition("=") for p in query.split("&") if p]
    if any(not value for _, _, value in pairs):
        raise ValueError(f"model {target!r}: write options as ?key=value&key=value")
    return {key: yaml.safe_load(value) for key, _, value in pairs}
