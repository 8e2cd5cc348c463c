"""The encoder of a run, with everything needed to use it: while it trains, and from its checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from dinov2 import config, distributed
from dinov2.models import build_encoder
from dinov2.models.export import save_export
from dinov2.models.state import build_loaded
from dinov2.models.vit import VisionTransformer
from dinov2.objectives.base import Objective
from dinov2.train import checkpoint
from dinov2.train.build import Parts
from dinov2.train.parallel import whole_state


def export(cfg: DictConfig, path: Path, parts: Parts, done: int) -> Path:
    """Write the encoder of a running objective (rank 0); all ranks must call."""
    encoder = cast(VisionTransformer, parts.objective.export())
    state = whole_state(encoder)
    if distributed.rank() == 0:
        plain = cast(VisionTransformer, build_loaded(partial(build_encoder, **encoder.config), state, "the run"))
        save(path, plain, parts.normalisation.to_dict(), done, cfg)
    distributed.barrier()
    return path


def described(objective: Objective) -> dict[str, Any]:
    """What builds the exported encoder of ``objective`` anew, and its name among the objective's modules."""
    encoder = cast(VisionTransformer, objective.export())
    name = next(name for name, module in objective.named_modules() if module is encoder)
    return {"name": name, "config": encoder.config}


def read_encoder(saved: Path) -> tuple[VisionTransformer, dict[str, Any]]:
    """The encoder that the run would export after this checkpoint, and what the checkpoint holds besides tensors.

    In one process, reading no more tensors than the encoder's.
    """
    rest = checkpoint.load_rest(saved)
    if "encoder" not in rest:
        raise ValueError(f"{saved} does not tell its encoder: an older version wrote it, which can export it")
    name, architecture = rest["encoder"]["name"], rest["encoder"]["config"]
    state = checkpoint.read(saved, f"objective.{name}.")
    return cast(VisionTransformer, build_loaded(partial(build_encoder, **architecture), state, str(saved))), rest


def export_checkpoint(saved: Path, path: Path) -> Path:
    """Write the encoder of a checkpoint."""
    encoder, rest = read_encoder(saved)
    cfg = OmegaConf.create(rest["config"])
    save(path, encoder, rest["normalisation"], rest["step"], cast(DictConfig, cfg))
    return path


def save(path: Path, encoder: VisionTransformer, normalisation: dict[str, Any], done: int, cfg: DictConfig) -> None:
    """An export of ``encoder`` after ``done`` steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_export(path, encoder, normalisation=normalisation, info=info_of(done, cfg))


def info_of(done: int, cfg: DictConfig) -> dict[str, Any]:
    """What an export tells about the training of its encoder."""
    return {"step": done, "config": config.plain(cfg), "objective": cfg.objective.name}
