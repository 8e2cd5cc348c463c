"""From a configuration to the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from omegaconf import DictConfig

from dinov2 import config, distributed, objectives
from dinov2.data import series_views, views
from dinov2.data.geo import check_labels
from dinov2.data.sample import Sample
from dinov2.data.series import Series
from dinov2.data.shards import Cache, ShardSet
from dinov2.data.stats import Normalisation
from dinov2.data.stream import Stream
from dinov2.env import expand
from dinov2.models import timeseries
from dinov2.models.patch import fixed_count
from dinov2.models.vit import VisionTransformer
from dinov2.objectives.base import Objective
from dinov2.objectives.two_view import ROWS, TwoView
from dinov2.sensors import suggest
from dinov2.train.encoders import encoder_of
from dinov2.train.health import CollapseAlarm, QualityGuard
from dinov2.train.optim import build_optimizer
from dinov2.train.parallel import parallelise
from dinov2.train.precision import Precision
from dinov2.train.probe import OnlineProbe
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
    precision: Precision
    exact: bool  # the loss is that of all micro-batches together
    remedy: str | None  # where the batch is small for the objective
    probe: OnlineProbe | None
    guard: QualityGuard | None
    alarm: CollapseAlarm

    def summary(self) -> str:
        """One line for the log."""
        trainable = sum(p.numel() for p in self.objective.parameters() if p.requires_grad)
        sensors = ", ".join(sorted({sensor for sensor, _ in self.shards.stats}))
        return (
            f"{trainable / 1e6:.2f} M trainable parameters on {self.device}, {distributed.world()} ranks; "
            f"{len(self.shards)} samples of {sensors}"
        )


def build_objective(cfg: DictConfig) -> Objective:
    """The objective around its encoder, seeded: the same weights on every rank."""
    torch.manual_seed(cfg.train.seed)
    encoder, beside = encoder_of(cfg.model, series_options(cfg))
    options = config.plain(cfg.objective)
    objective = objectives.build_objective(options.pop("name"), encoder, **options)
    parameters = dict(objective.named_parameters())
    for name in beside.keys() & parameters.keys():  # the mask token, where the objective hides patches with one
        parameters[name].data.copy_(beside[name])
    for view in objective.views:
        if view.size % encoder.patch_size:
            raise ValueError(
                f"model.patch_size {encoder.patch_size} does not divide the {view.name} view of {view.size} pixels"
            )
    return objective.train()  # says so to its parts: a teacher drops no path


def series_options(cfg: DictConfig) -> Series:
    """The ``series`` section."""
    return Series(**config.plain(cfg.series))


def image_keys(shards: ShardSet, names: Sequence[str] | None) -> list[str] | None:
    """Image keys meant by ``data.images``: keys as they are, sensor names as all their keys."""
    if names is None:
        return None
    known = {key: {key} for key in shards.images}
    for key, specs in shards.images.items():
        known.setdefault(specs[0].sensor, set()).add(key)
    for name in names:
        if name not in known:
            raise ValueError(
                f"data.images: the shards hold no {name!r}{suggest(name, list(known))} Known: {', '.join(known)}"
            )
    return sorted(set().union(*(known[name] for name in names)))


def check_terrain(model: DictConfig, shards: ShardSet, images: Sequence[str] | None) -> None:
    """ValueError where the shards hold elevation or slope and the encoder has no codes for them."""
    for key, specs in shards.images.items():
        used = images is None or key in images
        if used and not model.terrain and any(band.surface for spec in specs for band in spec.band_objects):
            raise ValueError(f"the shards hold {key}: set model.terrain=true, or leave it out with data.images")


def normalisation_of(cfg: DictConfig, objective: Objective, shards: ShardSet) -> Normalisation:
    """The shards' statistics; for an encoder of fixed bands just those of its views, in their order there.

    ValueError where a band would be seen now in one place, now in another: several sensors, or not ``in_chans`` bands.
    """
    every, count = Normalisation.from_stats(shards.stats), fixed_count(objective.encoder)
    if count is None:
        return every
    images = image_keys(shards, cfg.data.images)
    used = [spec for key, specs in shards.images.items() if images is None or key in images for spec in specs]
    bands = {spec.key: spec.bands for spec in used}
    names = [name for found in bands.values() for name in found]
    sensor, several = used[0].sensor, len({spec.sensor for spec in used}) > 1
    if several or len(names) != count or any(spec.bands != bands[spec.key] for spec in used):
        held = "; ".join(f"{spec.key} {', '.join(spec.bands)}" for spec in used)
        raise ValueError(
            f"model.in_chans={count}: an encoder of fixed bands takes all bands of one sensor, and the shards hold "
            f"{held}; choose by data.images, or prepare them with --keep-bands"
        )
    known = every.table[sensor]
    return Normalisation({sensor: {name: known[name] for name in names}}, {sensor: every.units[sensor]})


def build_stream(
    cfg: DictConfig,
    objective: Objective,
    shards: ShardSet,
    normalisation: Normalisation,
    place: tuple[int, int] | None = None,
) -> Stream:
    """The batches of the views that ``objective`` asks for; ``place``: rank and world, by default this process'."""
    rank, world = place or (distributed.rank(), distributed.world())
    images = image_keys(shards, cfg.data.images)
    check_terrain(cfg.model, shards, images)
    augment, options = views.Augment(**config.plain(cfg.augment)), series_options(cfg)
    of_pixels = cfg.model.arch == timeseries.NAME

    def draw(sample: Sample, key: views.Key) -> views.RawSample | series_views.Drawn:
        if of_pixels:
            return series_views.draw(sample, options, normalisation, key)
        drawn = views.draw(sample, objective.views, augment, normalisation, key)
        return replace(drawn, targets=supervision(sample)) if supervision else drawn

    supervision = objective.supervision
    if supervision:
        check_labels(supervision, shards.labels)
    return Stream(
        shards,
        draw=draw,
        collate=series_views.collate if of_pixels else views.collate,
        batch_size=cfg.data.batch_size,
        seed=cfg.train.seed,
        rank=rank,
        world=world,
        workers=cfg.data.workers,
        micro_batch=cfg.data.micro_batch,
        images=images,
        weights=cfg.data.weights,
        lanes=cfg.data.lanes,
        max_damage=cfg.data.max_damage,
        labels=set(supervision.labels.values()) if supervision else (),
    )


def check_batch(cfg: DictConfig, objective: Objective, stream: Stream) -> str | None:
    """What to do where few samples meet in a loss; ValueError where they are too few, or cannot meet as asked."""
    if cfg.train.exact_accumulation and not isinstance(objective, TwoView):
        raise ValueError(
            f"train.exact_accumulation: {cfg.objective.name} has no exact form; only {', '.join(ROWS)} have one"
        )
    if cfg.train.exact_accumulation and getattr(objective, "mixup", 0):
        raise ValueError("train.exact_accumulation has no exact form of objective.mixup: set one of them only")
    together = cfg.data.batch_size if cfg.train.exact_accumulation else stream.micro_batch * stream.world
    return objective.check_batch(cfg.data.batch_size, together)


def build_guard(train: DictConfig) -> QualityGuard | None:
    """The guard that ``train.guard`` asks for."""
    if train.guard and not (train.evaluations and train.evaluate_every):
        raise ValueError("train.guard judges evaluations: set train.evaluations and train.evaluate_every")
    return QualityGuard(train.guard, train.guard_drop) if train.guard else None


def build(cfg: DictConfig) -> Parts:
    """All parts of a run; everything that can be wrong with a configuration is found here."""
    device, train = distributed.device(), cfg.train
    precision = Precision.choose(train.precision, device)
    objective = parallelise(build_objective(cfg).to(device), train, precision.dtype)
    folders = [expand(path) for path in cfg.data.shards]
    if len(set(folders)) < len(folders):
        raise ValueError("data.shards names a set twice: " + ", ".join(folders))
    cache = Cache(expand(cfg.data.cache), int(cfg.data.cache_gib * 2**30)) if cfg.data.cache else None
    shards = ShardSet.open(folders, cache=cache)
    normalisation = normalisation_of(cfg, objective, shards)
    stream = build_stream(cfg, objective, shards, normalisation)
    stream.check_cache(distributed.local_world())
    optim = config.plain(cfg.optim)
    optim["lr"] = scaled_lr(cfg.optim.base_lr, cfg.data.batch_size, cfg.optim.scaling)
    width = cast(VisionTransformer, objective.encoder).embed_dim
    return Parts(
        objective,
        build_optimizer(objective, optim),
        Schedules(optim, train.steps),
        stream,
        shards,
        normalisation,
        device,
        precision,
        exact=train.exact_accumulation and stream.accumulation > 1,
        remedy=check_batch(cfg, objective, stream),
        probe=OnlineProbe.of(train.probe, shards, width, device) if train.probe else None,
        guard=build_guard(train),
        alarm=CollapseAlarm(train.collapse_std, train.collapse_patience, train.steps),
    )
