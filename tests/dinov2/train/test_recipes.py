"""The recipes in configs/pretrain: everything that can be wrong with them without their data and machines."""

from pathlib import Path

import pytest
import torch

from dinov2 import config
from dinov2.data.views import view_width
from dinov2.train import schema
from dinov2.train.build import build_objective
from dinov2.train.optim import parameter_groups
from dinov2.train.schedules import Schedules, scaled_lr

FOLDER = Path(__file__).parents[3] / "configs" / "pretrain"
RECIPES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


def load(name: str, *overrides: str):
    return schema.load(FOLDER / name, ["data.shards=[x]", *overrides])


def schedules(cfg) -> Schedules:
    optim = config.plain(cfg.optim)
    return Schedules(
        optim | {"lr": scaled_lr(cfg.optim.base_lr, cfg.data.batch_size, cfg.optim.scaling)}, cfg.train.steps
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_fits_together(name):
    cfg = load(name)
    with torch.device("meta"):  # no memory for 65,536 prototypes and a ViT-L
        objective = build_objective(cfg)
    keys = ("layer_decay", "patch_embed_lr", "lr_multipliers", "freeze")
    groups = parameter_groups(objective.named_parameters(), **{key: cfg.optim[key] for key in keys})
    assert sum(len(group["names"]) for group in groups) == sum(p.requires_grad for p in objective.parameters())
    assert all(view_width(view) >= view.bands[1] for view in objective.views)
    remedy = objective.check_batch(cfg.data.batch_size, cfg.data.micro_batch or cfg.data.batch_size)
    assert remedy is None or name.startswith("quick") or name == "realdata.yaml"  # small ones for two CPU cores
    assert schedules(cfg).now(cfg.train.steps - 1).lr < schedules(cfg).now(cfg.train.steps // 2).lr


@pytest.mark.parametrize("name", RECIPES)
def test_a_collapse_is_noticed_within_50_steps_or_100_of_many_ranks(name):
    train = load(name).train
    readings = train.collapse_patience - 1  # after the first low one
    assert readings * train.health_every <= (100 if name in ("majortom_512.yaml", "presets/gpu_32.yaml") else 50)


@pytest.mark.parametrize("stage, peak", [(1, 1.353e-4), (2, 5.412658773652743e-4)])
def test_panopticon_has_its_published_peak_rate(stage, peak):
    cfg = load(f"panopticon_stage{stage}.yaml")
    assert schedules(cfg).now(6249).lr == pytest.approx(peak, rel=1e-3)
    assert schedules(cfg).now(6250).teacher_temp == 0.07 and schedules(cfg).now(0).teacher_temp == 0.04
