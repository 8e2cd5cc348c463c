"""The encoder of a run, with everything needed to use it: while it trains, and from its checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dinov2 import config, distributed
from dinov2.models import build_encoder
from dinov2.models.export import save_export
from dinov2.models.state import build_loaded
from dinov2.models.vit import VisionTransformer
from dinov2.train import checkpoint
from dinov2.train.build import Parts, build_objective
from dinov2.train.parallel import whole_state


def export(cfg: DictConfig, path: Path, parts: Parts, done: int) -> Path:
    """Write the encoder of a running objective (rank 0); all ranks must call."""
    encoder = cast(VisionTransformer, parts.objective.export())
    state = whole_state(encoder)
    if distributed.rank() == 0:
        write(cfg, path, encoder.config, state, parts.normalisation.to_dict(), done)
    distributed.barrier()
    return path


def export_checkpoint(saved: Path, path: Path) -> Path:
    """Write the encoder of a checkpoint, in one process, reading no more of it than that."""
    rest = checkpoint.load_rest(saved)
    cfg = cast(DictConfig, OmegaConf.create(rest["config"]))
    cfg.model.weights = None  # where training began does not matter any more
    with torch.device("meta"):
        objective = build_objective(cfg)
    encoder = cast(VisionTransformer, objective.export())
    name = next(name for name, module in objective.named_modules() if module is encoder)
    state = checkpoint.read(saved, f"objective.{name}.")
    write(cfg, path, encoder.config, state, rest["normalisation"], rest["step"])
    return path


def write(
    cfg: DictConfig,
    path: Path,
    architecture: dict[str, Any],
    state: dict[str, Tensor],
    normalisation: dict[str, Any],
    done: int,
) -> None:
    """An export of the weights ``state`` after ``done`` steps."""
    encoder = build_loaded(partial(build_encoder, **architecture), state, "the run's encoder")
    info = {"step": done, "config": config.plain(cfg), "objective": cfg.objective.name}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_export(path, encoder, normalisation=normalisation, info=info)
