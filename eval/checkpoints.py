"""Models out of files: an exported encoder, a checkpoint of a run, a file of the zoo's models found by its keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dinov2.data.stats import Normalisation
from dinov2.models.export import load_export, read_export_info
from dinov2.models.state import read_weights
from dinov2.models.zoo import candidates
from dinov2.models.zoo.release import sha256
from dinov2.train import checkpoint
from dinov2.train.export import read_encoder
from eval.networks import Convolutional, Model, Transformer, digest, network_of
from eval.released import released


def load_file(path: Path, name: str) -> Model:
    """The model in a file (or a checkpoint's folder), called ``name``; one that is none of these raises ValueError."""
    if path.suffix == ".safetensors":
        encoder, info = load_export(path)
        identity = sha256(path)[:12]
    elif checkpoint.is_checkpoint(path):
        encoder, info = read_encoder(path)
        identity = digest(encoder)
    else:
        return replace(recognised(path, read_weights(path)), name=name)
    normalisation = info["normalisation"]
    return Model(name, "pretrained", identity, network_of(encoder), Normalisation.from_dict(normalisation))


def architecture(path: Path) -> tuple[dict[str, Any], Normalisation | None]:
    """What builds the encoder of an export or a checkpoint anew, and its normalisation."""
    if path.suffix == ".safetensors":
        header = read_export_info(path)
        if header["encoder"].get("embed") == "folded":
            raise ValueError(f"{path} holds folded weights, which cannot be drawn: name the run that it was made from")
        return header["encoder"], Normalisation.from_dict(header["normalisation"])
    model = load_file(path, path.stem)
    if not isinstance(model.network, Transformer | Convolutional) or model.expects:
        raise ValueError(f"{path} holds a released encoder: its random floor is NAME@random")
    return model.network.encoder.config, model.normalisation


def recognised(path: Path, content: Any) -> Model:
    """The one model of the zoo whose names and shapes the tensors have."""
    names = candidates(content)
    if len(names) != 1:
        which = f"could be {' or '.join(names)}" if names else "has the keys and sizes of no released encoder"
        raise ValueError(f"{path} {which}: say which it is as NAME@{path} (sizes as ?key=value)")
    return released(f"{names[0]}@{path}", seed=0)
