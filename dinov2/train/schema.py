"""Every option of pretraining, with its default. YAML files hold differences only."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from dinov2 import config, objectives
from dinov2.data.series import VIEW_OPTIONS, Series
from dinov2.data.views import Augment
from dinov2.models import PHILEO, timeseries
from dinov2.objectives.two_view import ROWS
from dinov2.sensors import suggest
from dinov2.train.log import TRACKERS


@dataclass
class Data:
    """Where samples come from."""

    shards: list[str] = MISSING  # shard sets (folders or fsspec URLs); several are one set
    weights: list[float] | None = None  # share of each set in the stream; null = every sample once per epoch
    images: list[str] | None = None  # image keys or sensor names to use, samples without any are left out; null = all
    batch_size: int = 256  # samples per optimiser step over all ranks
    micro_batch: int | None = None  # samples per forward pass and rank; null = the rank's whole share of the batch
    workers: int = 2  # loader processes per rank
    max_damage: float = 0.01  # stop once this fraction of samples was damaged; 0 = at once
    lanes: int = 3072  # places read from in turn, 8 shards each; ranks must divide it; fewer need a smaller cache
    cache: str | None = None  # folder for copies of remote shards, shared by a machine's runs; null = none are made
    cache_gib: float = 100.0  # the most it may hold


@dataclass
class Model:
    """The encoder; see dinov2.models.build_encoder."""

    arch: str = "vit_base"  # vit_tiny | vit_small | vit_base | vit_large | vit_giant2 | timeseries | phileo_*
    patch_size: int = 14
    image_size: int = 224  # size the position grid is made for; other sizes interpolate
    embed: str = "spectral"  # spectral | conv (fixed number of bands, in_chans)
    in_chans: int | None = None  # bands of the plain convolution and of phileo_*
    attn_dim: int | None = None  # width of the channel attention; null = three times the encoder's
    attn_heads: int = 16  # heads of the channel attention
    terrain: bool = False  # learned codes for elevation and slope
    embed_dim: int | None = None  # the three numbers below override the architecture's
    depth: int | None = None
    num_heads: int | None = None
    dims: list[int] | None = None  # phileo_cnn: channels of the stages, and their blocks; null = as published
    depths: list[int] | None = None
    registers: int = 0  # register tokens
    layer_scale: float | None = 1e-5  # null = none
    ffn: str = "mlp"  # mlp | swiglu
    drop_path: float = 0.0
    width: int | None = None  # timeseries: channels of a branch; null = four times embed_dim
    pooling: str = "gru"  # timeseries: what weighs the dates: gru | attention
    fusion: str = "concat"  # timeseries: of the branches: concat | sum
    days: str = "cyclic"  # timeseries: how the day of the year enters: cyclic | raw (as published)
    weights: str | None = None  # start from an exported encoder, a run folder, or released weights NAME@FILE
    fresh: list[str] = field(default_factory=list)  # beginnings of parameter names that do not come from weights


@dataclass
class Optim:
    """AdamW and its schedules; times are fractions of the run or steps as named."""

    base_lr: float = 5e-4
    scaling: str = "sqrt_1024"  # none | sqrt_1024 | linear_256: how base_lr grows with the batch
    min_lr: float = 1e-6
    warmup_steps: int = 0
    hold_steps: int = 0  # steps at the peak before the cosine
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0  # gradient norm
    layer_decay: float = 1.0  # learning-rate factor per block counted from the top
    patch_embed_lr: float = 1.0  # learning-rate factor of the patch embedding
    lr_multipliers: dict[str, float] = field(default_factory=dict)  # regex on parameter names -> factor
    freeze: dict[str, int] = field(default_factory=dict)  # regex on parameter names -> steps with rate 0
    momentum: float = 0.994  # EMA teacher, cosine to momentum_end
    momentum_end: float = 1.0
    teacher_temp: float = 0.07  # DINO
    teacher_temp_start: float = 0.04
    teacher_temp_warmup_steps: int = 0


@dataclass
class Train:
    """The loop."""

    steps: int = MISSING  # optimiser steps
    seed: int = 0
    exact_accumulation: bool = False  # the whole batch's gradient from micro-batches; encodes twice (two-view only)
    precision: str = "auto"  # auto | float32 | bfloat16 | float16
    parallel: str = "ddp"  # ddp: every rank holds all parameters | fsdp: each a shard of them (ViT-g and larger)
    activation_checkpointing: bool = False  # blocks run again in the backward pass: less memory, a third more time
    compile: bool = False  # torch.compile per block
    timeout_min: float = 10.0  # ranks wait so long for each other; above what an evaluation takes
    peak_tflops: float | None = None  # of a device, for the log's mfu; null = measured by a matrix product
    log_every: int = 10
    save_every: int = 500
    save_async: bool = False  # write checkpoints while the run goes on
    keep: int = 3  # newest checkpoints kept
    keep_every: int = 0  # and those of every so many steps; 0 = none
    health_every: int = 20
    collapse_std: float = 0.01  # stop when the embedding's standard deviation (1 = healthy, 0 = collapsed) stays below
    collapse_patience: int = 3  # for so many readings
    probe: str | None = None  # label of the shards; a linear classifier learns it beside the run, accuracy is logged
    evaluations: list[str] = field(default_factory=list)  # evaluation configs run every evaluate_every steps
    evaluate_every: int = 0  # 0 = never
    guard: str | None = None  # evaluation metric (eval/DATASET/TASK/METRIC) that stops the run once it falls
    guard_drop: float = 0.02  # by more than this below its value before the first step
    track: list[str] = field(default_factory=list)  # tensorboard, wandb


FREE = {  # what may change between a run and its resumption
    "data": {"workers", "max_damage", "cache", "cache_gib"},
    "train": {
        "log_every",
        "parallel",
        "activation_checkpointing",
        "compile",
        "timeout_min",
        "peak_tflops",
        "save_every",
        "save_async",
        "keep",
        "keep_every",
        "probe",
        "evaluations",
        "evaluate_every",
        "guard",
        "guard_drop",
        "track",
    },
}


HIDING = ("mae", "dino")  # objectives that hide patches


POSITIVE = {  # options that must exceed 0 (or be null where they may), those of all objectives among them
    "data": ("batch_size", "micro_batch", "cache_gib"),
    "model": ("patch_size", "image_size", "in_chans", "attn_dim", "attn_heads", "embed_dim", "depth", "num_heads"),
    "objective": (
        *("hidden_dim", "projection_dim", "projector_layers", "prototypes", "bottleneck_dim", "head_layers"),
        *("decoder_dim", "decoder_depth", "decoder_heads", "target_bands"),
    ),
    "optim": ("clip", "teacher_temp", "teacher_temp_start"),
    "train": (
        *("steps", "log_every", "save_every", "keep", "health_every", "collapse_patience"),
        *("timeout_min", "peak_tflops"),
    ),
}
NOT_NEGATIVE = {
    "data": ("workers",),
    "model": ("registers",),
    "objective": ("queue", "off_diagonal", "mixup", "ibot_weight", "koleo_weight"),
    "optim": (
        *("base_lr", "min_lr", "weight_decay", "weight_decay_end"),
        *("warmup_steps", "hold_steps", "teacher_temp_warmup_steps"),
    ),
    "train": ("keep_every", "evaluate_every", "guard_drop"),
}


def load(path: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The resolved configuration of a pretraining run."""
    layers = config.read_yaml(path), config.read_overrides(overrides)
    names = [layer.get("objective", {}).get("name") for layer in layers]
    name = next((n for n in reversed(names) if n is not None), None)
    if name is None:
        raise ValueError(f"{path}: objective.name must be one of {', '.join(objectives.OBJECTIVES)}")
    objective = make_dataclass("Objective", [("name", str, name)], bases=(objectives.options(name),))
    schema = make_dataclass(
        "Config",
        [
            ("data", Data, field(default_factory=Data)),
            ("augment", Augment, field(default_factory=Augment)),
            ("series", Series, field(default_factory=Series)),
            ("model", Model, field(default_factory=Model)),
            ("objective", objective, field(default_factory=objective)),
            ("optim", Optim, field(default_factory=Optim)),
            ("train", Train, field(default_factory=Train)),
        ],
    )
    cfg = config.merge(schema, *layers, origin=str(path))
    check_bounds(cfg, path)
    if cfg.model.arch == timeseries.NAME and name not in ROWS:
        raise ValueError(f"{path}: objective {name} has no views of pixel series; choose one of {', '.join(ROWS)}")
    if cfg.model.arch in PHILEO and name in HIDING:
        raise ValueError(
            f"{path}: objective {name} hides patches from the encoder, which {cfg.model.arch} looks at in its "
            "convolutions; choose geo_aware"
        )
    idle = [k for layer in layers for k in layer.get("objective", {}) if k in VIEW_OPTIONS]
    if cfg.model.arch == timeseries.NAME and idle:
        raise ValueError(f"{path}: objective.{idle[0]} is of images; the views of pixel series are set by series.*")
    for name in cfg.train.track:
        if name not in TRACKERS:
            raise ValueError(f"{path}: train.track names {name!r}{suggest(name, list(TRACKERS))}")
    return cfg


def check_bounds(cfg: DictConfig, path: Path) -> None:
    """ValueError where a number is too small."""
    bounds = ((POSITIVE, operator.gt, "greater than 0"), (NOT_NEGATIVE, operator.ge, "at least 0"))
    for options, fits, said in bounds:
        for part, keys in options.items():
            for key in keys:
                value = cfg[part][key] if key in cfg[part] else None  # noqa: SIM401 (a struct's get raises)
                if value is not None and not fits(value, 0):
                    raise ValueError(f"{path}: {part}.{key} is {value}; it must be {said}")


def deciding(cfg: DictConfig) -> dict[str, Any]:
    """``part.key`` -> value of everything that decides the result, as YAML holds it (it has no tuples)."""
    raw = config.plain(OmegaConf.create(OmegaConf.to_yaml(cfg)))
    return {f"{part}.{k}": v for part, keys in raw.items() for k, v in keys.items() if k not in FREE.get(part, ())}
