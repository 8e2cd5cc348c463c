"""From a configuration to the parts of a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from omegaconf import DictConfig

from dinov2 import config, distributed
from dinov2.data import views
from dinov2.data.shards import ShardSet
from dinov2.data.stats import Normalisation
from dinov2.data.stream import Stream
from dinov2.env import expand
from dinov2.models import build_encoder
from dinov2.objectives import build_objective
from dinov2.objectives.base import Objective
from dinov2.train.optim import build_optimizer
from dinov2.train.schedules import Schedules, scaled_lr


@dataclass
class Parts:
    """What the loop needs."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    stream: Stream
    shards: ShardSet
    normalisation: Normalisation
    device: torch.device

    def summary(self) -> str:
        """One line for the log."""
        trainable = sum(p.numel() for p in self.objective.parameters() if p.requires_grad)
        sensors = ", ".join(sorted({sensor for sensor, _ in self.shards.stats}))
        return (
            f"{trainable / 1e6:.2f} M trainable parameters on {self.device}, {distributed.world()} ranks; "
            f"{len(self.shards)} samples of {sensors}"
        )


def build_parts_of_model(cfg: DictConfig) -> Objective:
    """The objective around its encoder, seeded: the same weights on every rank."""
    torch.manual_seed(cfg.train.seed)
    model = config.plain(cfg.model)
    arch, weights = model.pop("arch"), model.pop("weights")
    patch, size = model["patch_size"], model["image_size"]
    if size % patch:
        raise ValueError(f"model.patch_size {patch} does not divide model.image_size {size}")
    encoder = build_encoder(arch, **model)
    if weights:
        raise ValueError("model.weights is not supported yet")
    options = config.plain(cfg.objective)
    objective = build_objective(options.pop("name"), encoder, **options)
    for view in objective.views:
        if view.size % patch:
            raise ValueError(f"model.patch_size {patch} does not divide the {view.name} view of {view.size} pixels")
    return objective


def build(cfg: DictConfig) -> Parts:
    """All parts of a run; everything that can be wrong with a configuration is found here."""
    device = distributed.device()
    objective = build_parts_of_model(cfg).to(device)
    shards = ShardSet.open([expand(path) for path in cfg.data.shards])
    normalisation = Normalisation.from_stats(shards.stats)
    augment = views.Augment(**config.plain(cfg.augment))
    draw = partial(views.draw, specs=objective.views, augment=augment, norm=normalisation)
    stream = Stream(
        shards,
        draw=draw,
        collate=views.collate,
        batch_size=cfg.data.batch_size,
        seed=cfg.train.seed,
        rank=distributed.rank(),
        world=distributed.world(),
        workers=cfg.data.workers,
        max_damage=cfg.data.max_damage,
    )
    optim = config.plain(cfg.optim)
    optim["lr"] = scaled_lr(cfg.optim.base_lr, cfg.data.batch_size, cfg.optim.scaling)
    schedules = Schedules(optim, cfg.train.steps)
    return Parts(objective, build_optimizer(objective, optim), schedules, stream, shards, normalisation, device)
