"""Checkpoints: atomic, strict, independent of the number of ranks.

``checkpoints/step-00001000.pt`` is complete or absent: it is written under another name, flushed to the disk and then
renamed. A run resumes from the newest one.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinov2 import distributed

PATTERN = "step-*.pt"


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, None if there is none."""
    return max((folder / "checkpoints").glob(PATTERN), default=None)


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint on rank 0 and remove all but the ``keep`` newest. A full disk leaves the previous ones."""
    path = folder / "checkpoints" / f"step-{step:08d}.pt"
    if distributed.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob("*.partial"):  # left by a killed process
            stale.unlink()
        partial = path.with_suffix(".partial")
        try:
            with open(partial, "wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into RuntimeError
            partial.unlink(missing_ok=True)
            kept = latest(folder)
            raise OSError(
                f"could not write checkpoint {path}: {str(error).splitlines()[0]}; "
                + (f"the previous one is intact: {kept.name}" if kept else "there is no previous one")
            ) from error
        partial.rename(path)
        for old in sorted(path.parent.glob(PATTERN))[:-keep]:
            old.unlink()
    distributed.barrier()
    return path


def load(path: Path, parts: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain values only, never code); it must have exactly these ``parts``, if given."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({str(error).splitlines()[0]}); remove it to resume from an older one"
        ) from error
    if parts and saved.keys() != set(parts):
        lacking, extra = sorted(set(parts) - saved.keys()), sorted(saved.keys() - set(parts))
        raise ValueError(f"checkpoint {path}: missing {lacking}, unexpected {extra}; another version wrote it")
    return saved


def restore(module: nn.Module, state: Mapping[str, Any], origin: Path) -> None:
    """Load ``state`` strictly; missing, extra and misshapen keys are named."""
    own = module.state_dict()
    problems = [f"missing {k}" for k in own.keys() - state.keys()]
    problems += [f"unexpected {k}" for k in state.keys() - own.keys()]
    problems += [
        f"{k} is {tuple(state[k].shape)}, the model's is {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:4])
        raise ValueError(f"{origin} does not fit this model in {len(problems)} keys: {shown}")
    module.load_state_dict(state)
