"""The loop: schedules -> forward -> backward -> average -> clip -> finite? -> step -> after_step -> log -> save."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dinov2 import config, distributed
from dinov2.data.views import RawBatch
from dinov2.models.export import save_export
from dinov2.objectives.base import Now
from dinov2.train import checkpoint, schema
from dinov2.train.accumulate import loss_of_all, mean_of_losses
from dinov2.train.build import Parts, build
from dinov2.train.health import CollapseAlarm, reading
from dinov2.train.log import Log, environment
from dinov2.train.optim import clip_gradients, rates, set_rates
from dinov2.train.precision import Precision

Evaluate = Callable[[Path, int], dict[str, float]]


class Step(NamedTuple):
    """What an optimiser step leaves to be looked at."""

    terms: dict[str, Tensor]  # scalars of this rank
    embedding: Tensor  # [crops * B, D], crop-major
    labels: list[Mapping[str, Tensor]]  # of each micro-batch


def step(parts: Parts, batches: Iterator[RawBatch], now: Now, precision: Precision, clip: float) -> Step:
    """One optimiser step over ``accumulation`` micro-batches."""
    set_rates(parts.optimizer, now)
    parts.optimizer.zero_grad(set_to_none=True)
    keys: list[str] = []
    labels: list[Mapping[str, Tensor]] = []

    def noted() -> Iterator[RawBatch]:
        for raw in itertools.islice(batches, parts.stream.accumulation):
            keys.extend(raw.keys)
            labels.append(raw.labels)
            yield raw

    accumulate = loss_of_all if parts.exact else mean_of_losses
    terms, embedding = accumulate(parts, noted(), now, precision)
    distributed.average_gradients(parts.objective.parameters())
    precision.scaler.unscale_(parts.optimizer)
    terms |= clip_gradients(parts.objective.named_parameters(), clip)
    if not (precision.scaler.is_enabled() and torch.isfinite(terms["loss"])):  # a scaler skips its own overflows
        check_finite(terms, keys, now.step)
    precision.scaler.step(parts.optimizer)
    precision.scaler.update()
    parts.objective.after_step(now)
    return Step(terms, embedding, labels)


def check_finite(terms: dict[str, Tensor], keys: list[str], step: int) -> None:
    """Stop before the update where a term or the gradient is not finite, naming term, step and samples."""
    bad = [k for k, v in terms.items() if not torch.isfinite(v).all()]
    if bad:
        raise ValueError(
            f"step {step}: {', '.join(bad)} not finite (rank {distributed.rank()}); nothing was updated and the last "
            f"checkpoint is good. Samples of this batch: {', '.join(keys[:16])}" + (" ..." if len(keys) > 16 else "")
        )


class Waiting:
    """An iterator that knows for how many ``seconds`` its consumer waited."""

    def __init__(self, source: Iterator[RawBatch]) -> None:
        self.source, self.seconds = source, 0.0

    def __iter__(self) -> Waiting:
        return self

    def __next__(self) -> RawBatch:
        begin = time.perf_counter()
        item = next(self.source)
        self.seconds += time.perf_counter() - begin
        return item


def seed_step(seed: int, step: int) -> None:
    """Randomness inside a step depends on (seed, step, rank) and on nothing before it."""
    torch.manual_seed((seed * 1_000_003 + step) * 4096 + distributed.rank())


def train(cfg: DictConfig, folder: Path, evaluate: Evaluate | None = None, stop_at: int | None = None) -> Path:
    """Pretrain into ``folder``, resuming from its newest checkpoint; returns the exported encoder's path.

    ``evaluate(export, step)`` is called every ``train.evaluate_every`` steps on rank 0; ``stop_at`` ends the run early
    without changing any schedule (as a kill would).
    """
    parts = build(cfg)
    precision = Precision.choose(cfg.train.precision, parts.device)
    first = resume(cfg, folder, parts, precision)
    last = min(cfg.train.steps, stop_at or cfg.train.steps)
    alarm = CollapseAlarm(cfg.train.collapse_std, cfg.train.collapse_patience)
    log = Log(folder, cfg.train.steps, first, cfg.train.track)
    log.say(parts.summary())
    if parts.remedy:
        log.say(f"small batch: {parts.remedy}")
    clock, seen = time.perf_counter(), 0
    try:
        batches = Waiting(parts.stream.batches(first))
        for at in range(first, last):
            seed_step(cfg.train.seed, at)
            now = parts.schedules.now(at)
            taken = step(parts, batches, now, precision, cfg.optim.clip)
            if parts.probe:
                parts.probe.learn(taken.embedding, taken.labels, parts.stream.micro_batch)
            done = at + 1
            seen += cfg.data.batch_size
            if done % cfg.train.health_every == 0:
                health = reading(distributed.gather(taken.embedding.float()))
                log.write(done, {**{f"health/{k}": v for k, v in health.items()}, **rates(parts.optimizer)})
                alarm.check(done, health)
            if done % cfg.train.log_every == 0 or done == last:
                elapsed = time.perf_counter() - clock
                values = {k: distributed.mean(v).item() for k, v in taken.terms.items()}
                if parts.probe:
                    values[f"probe/{parts.probe.label}"] = parts.probe.accuracy()
                speed = {"lr": now.lr, "images_per_s": seen / elapsed, "data_wait": batches.seconds / elapsed}
                log.write(done, {**values, **speed})
                clock, seen, batches.seconds = time.perf_counter(), 0, 0.0
            if done % cfg.train.save_every == 0 or done == last:
                checkpoint.save(folder, done, state(cfg, parts, precision, done), cfg.train.keep)
            if evaluate and cfg.train.evaluate_every and done % cfg.train.evaluate_every == 0:
                log.write(done, evaluate_now(evaluate, cfg, folder, parts, done))
                clock, seen, batches.seconds = time.perf_counter(), 0, 0.0
    finally:
        log.close()
    return export(cfg, folder / "model_final.safetensors", parts, last)


def evaluate_now(evaluate: Evaluate, cfg: DictConfig, folder: Path, parts: Parts, done: int) -> dict[str, float]:
    """Export the encoder of this step and run the injected evaluation on rank 0."""
    path = export(cfg, folder / "eval" / f"step-{done:08d}" / "encoder.safetensors", parts, done)
    values = evaluate(path, done) if distributed.rank() == 0 else {}
    distributed.barrier()
    return values


def state(cfg: DictConfig, parts: Parts, precision: Precision, done: int) -> dict[str, Any]:
    """Everything a checkpoint holds."""
    return {
        "step": done,
        "objective": parts.objective.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scaler": precision.scaler.state_dict(),
        "probe": parts.probe.state_dict() if parts.probe else None,
        "stream": parts.stream.state(done),
        "normalisation": parts.normalisation.to_dict(),
        "config": OmegaConf.to_yaml(cfg),
    }


def resume(cfg: DictConfig, folder: Path, parts: Parts, precision: Precision) -> int:
    """Prepare ``folder`` and load its newest checkpoint; returns the number of steps already done."""
    written = folder / "config.yaml"
    if written.exists():
        changed = differences(schema.deciding(config.read_yaml(written)), schema.deciding(cfg))
        if changed:
            raise ValueError(
                f"{folder} holds a run of another config ({', '.join(changed)}); "
                "choose another --output-dir or remove the folder"
            )
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        written.write_text(OmegaConf.to_yaml(cfg))
        (folder / "environment.txt").write_text(environment())
    distributed.barrier()
    path = checkpoint.latest(folder)
    if path is None:
        return 0
    saved = checkpoint.load(path)
    checkpoint.restore(parts.objective, saved["objective"], path)
    parts.optimizer.load_state_dict(saved["optimizer"])
    precision.scaler.load_state_dict(saved["scaler"])
    if parts.probe and saved["probe"]:
        parts.probe.load_state_dict(saved["probe"])
    return parts.stream.start_step(saved["stream"])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``key: old -> new`` of every option that differs."""
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]


def export(cfg: DictConfig, path: Path, parts: Parts, done: int) -> Path:
    """Write the encoder with everything needed to use it (rank 0)."""
    if distributed.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        info = {"step": done, "config": config.plain(cfg), "objective": cfg.objective.name}
        save_export(path, parts.objective.export(), normalisation=parts.normalisation.to_dict(), info=info)
    distributed.barrier()
    return path
