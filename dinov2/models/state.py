"""Reading weights files and loading state dicts strictly."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def read_weights(path: str | Path) -> Any:
    """The content of a ``.pth`` file on the CPU, without executing anything in it. Unreadable: ValueError.

    Command lines that training codes save beside the weights are let through: a Namespace of plain values and paths.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such weights file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace, PosixPath]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what bytes that are no weights make the reader stumble over can be of any type
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a readable weights file: {reason}") from error


def load_strict(module: nn.Module, state: State, source: str) -> None:
    """Load ``state``; keys that are missing, unknown or of another shape raise ValueError, named with ``source``."""
    own = module.state_dict()
    shapes = [
        f"{k} is {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    complaints = {
        "missing keys": sorted(own.keys() - state.keys()),
        "unknown keys": sorted(state.keys() - own.keys()),
        "other shapes": sorted(shapes),
    }
    found = [f"{what}: {shorten(items)}" for what, items in complaints.items() if items]
    if found:
        raise ValueError(f"{source} does not fit this architecture; {'; '.join(found)}")
    module.load_state_dict(state)


def build_loaded(build: Callable[[], nn.Module], state: State, source: str) -> nn.Module:
    """What ``build`` makes, with ``state`` loaded strictly, in evaluation mode; no time is spent on initial values."""
    with torch.device("meta"):
        module = build()
    module.to_empty(device=torch.get_default_device())
    load_strict(module, state, source)
    return module.eval()


def digest(state: State) -> str:
    """sha256 of names, types, shapes and values, in the order of ``state``."""
    found = hashlib.sha256()
    for key, value in state.items():
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def shorten(items: list[str], most: int = 5) -> str:
    """The first few items and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
