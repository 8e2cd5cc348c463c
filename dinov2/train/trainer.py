"""The loop: schedules -> forward -> backward -> average -> clip -> finite? -> step -> after_step -> log -> save."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dinov2 import config, distributed
from dinov2.data.views import RawBatch
from dinov2.files import write_atomic
from dinov2.objectives.base import Now
from dinov2.train import checkpoint, schema
from dinov2.train.accumulate import loss_of_all, mean_of_losses
from dinov2.train.build import Parts, build
from dinov2.train.checkpoint import Saver
from dinov2.train.export import described, export
from dinov2.train.interrupt import Interrupted, Interrupts
from dinov2.train.log import Log, environment, versions
from dinov2.train.monitor import Monitor, Step, Waiting
from dinov2.train.optim import clip_gradients, moments, set_rates
from dinov2.train.parallel import is_sharded

Evaluate = Callable[[Path, int], dict[str, float]]
VISIBLE_WITHIN = 10.0  # seconds: network file systems show a new file late


def step(parts: Parts, batches: Iterator[RawBatch], now: Now, clip: float) -> Step:
    """One optimiser step over ``accumulation`` micro-batches."""
    precision = parts.precision
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
    if not any(is_sharded(p) for p in parts.objective.parameters()):  # FSDP averages in its backward pass
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


def seed_step(seed: int, step: int) -> None:
    """Randomness inside a step depends on (seed, step, rank) and on nothing before it."""
    torch.manual_seed((seed * 1_000_003 + step) * 4096 + distributed.rank())


def train(cfg: DictConfig, folder: Path, evaluate: Evaluate | None = None, stop_at: int | None = None) -> Path:
    """Pretrain into ``folder``, resuming from its newest checkpoint; returns the exported encoder's path.

    ``evaluate(export, step)`` is called every ``train.evaluate_every`` steps on rank 0, and names its values
    ``eval/...``; ``stop_at`` ends the run early without changing any schedule (as a kill would). A signal to stop saves
    and raises Interrupted; ranks that do not answer raise ConnectionError.
    """
    parts = build(cfg)
    assert evaluate or not parts.guard, "train.guard judges evaluations, and there is nothing to make them"
    first = resume(cfg, folder, parts)
    last = min(cfg.train.steps, stop_at or cfg.train.steps)
    final = folder / "model_final.safetensors"
    if first >= last and final.exists():  # written anew it would count as another model
        distributed.say(f"{folder} is complete: {first} steps are done")
        return final
    batches = Waiting(parts.stream.batches(first))
    # a checkpoint may be older than its evaluation: a kill, a signal or the guard came between
    again = evaluate is not None and due(cfg, parts, first)
    log = Log(folder, cfg.train.steps, first, cfg.train.track, again)
    monitor = Monitor(cfg, parts, batches, log, last)
    saver = Saver(folder, cfg.train.keep, cfg.train.keep_every, cfg.train.save_async)
    with contextlib.closing(log), saver, Interrupts() as interrupts:
        if evaluate and again:
            log.write(first, evaluate_now(evaluate, cfg, folder, parts, first))
            monitor.restart()
        for at in range(first, last):
            with distributed.at_step(at):
                seed_step(cfg.train.seed, at)
                now = parts.schedules.now(at)
                taken = step(parts, batches, now, cfg.optim.clip)
                done = at + 1
                monitor.look(done, taken, now)
                stop = interrupts.agreed() if done < last else 0
                if done % cfg.train.save_every == 0 or done == last or stop:
                    saver.save(done, tensors(parts), rest(cfg, parts, done))
            if stop:
                saver.wait()
                raise Interrupted(done, stop)
            if evaluate and due(cfg, parts, done):
                log.write(done, evaluate_now(evaluate, cfg, folder, parts, done))
                monitor.restart()
    return export(cfg, final, parts, last)


def due(cfg: DictConfig, parts: Parts, done: int) -> bool:
    """Whether the encoder of this step is to be evaluated: on schedule, and where the guard has no start yet."""
    every = cfg.train.evaluate_every
    scheduled = every > 0 and done > 0 and done % every == 0
    return scheduled or (parts.guard is not None and parts.guard.start is None)


def evaluate_now(evaluate: Evaluate, cfg: DictConfig, folder: Path, parts: Parts, done: int) -> dict[str, float]:
    """Export the encoder of this step, run the injected evaluation on rank 0, and let the guard judge it."""
    path = export(cfg, folder / "eval" / f"step-{done:08d}" / "encoder.safetensors", parts, done)
    with distributed.at_step(done):  # ranks wait for the first one no longer than train.timeout_min
        values = distributed.from_first(evaluate(path, done) if distributed.rank() == 0 else {})
    if parts.guard:
        parts.guard.check(done, values)
    return values


def tensors(parts: Parts) -> dict[str, Tensor]:
    """The tensors of a checkpoint, whole or this rank's shards; they are the run's own, not copies."""
    objective = {f"objective.{name}": tensor for name, tensor in parts.objective.state_dict().items()}
    return objective | {f"optimizer.{name}": tensor for name, tensor in moments(parts.optimizer).items()}


def rest(cfg: DictConfig, parts: Parts, done: int) -> dict[str, Any]:
    """What a checkpoint holds besides :func:`tensors`, equal on all ranks."""
    return {
        "step": done,
        "scaler": parts.precision.scaler.state_dict(),
        "alarm": parts.alarm.state_dict(),
        "guard": parts.guard.state_dict() if parts.guard else None,
        "probe": parts.probe.state_dict() if parts.probe else None,
        "stream": parts.stream.state(done),
        "normalisation": parts.normalisation.to_dict(),
        "config": OmegaConf.to_yaml(cfg),
        "encoder": described(parts.objective),
    }


def resume(cfg: DictConfig, folder: Path, parts: Parts) -> int:
    """Prepare ``folder`` and load its newest checkpoint; returns the number of steps already done."""
    check_equal([*OmegaConf.to_yaml(cfg).splitlines(), *versions()])
    if distributed.rank() == 0:
        prepare(cfg, folder)
    distributed.barrier()
    check_shared(folder)
    path = checkpoint.latest(folder)
    if path is None:
        return 0
    saved = checkpoint.load_rest(path, rest(cfg, parts, 0))
    checkpoint.load_into(path, tensors(parts))
    parts.precision.scaler.load_state_dict(saved["scaler"])
    parts.alarm.load_state_dict(saved["alarm"])
    if parts.guard and saved["guard"]:
        parts.guard.load_state_dict(saved["guard"])
    if parts.probe and saved["probe"]:
        parts.probe.load_state_dict(saved["probe"])
    return parts.stream.start_step(saved["stream"])


def prepare(cfg: DictConfig, folder: Path) -> None:
    """Make ``folder`` this run's; ValueError where it holds a run of another configuration."""
    written = folder / "config.yaml"
    if written.exists():
        changed = differences(schema.deciding(config.read_yaml(written)), schema.deciding(cfg))
        if changed:
            raise ValueError(
                f"{folder} holds a run of another config ({', '.join(changed)}); "
                "choose another --output-dir or remove the folder"
            )
    write_atomic(written, OmegaConf.to_yaml(cfg))
    write_atomic(folder / "environment.txt", environment())


def check_equal(lines: list[str]) -> None:
    """ValueError on every rank where the configuration and package versions of some are not those of rank 0."""
    first, *others = distributed.everywhere(lines)
    for rank, theirs in enumerate(others, start=1):
        changed = sorted(set(theirs) - set(first)) + sorted(set(first) - set(theirs))
        if theirs != first:
            raise ValueError(
                f"rank {rank} and rank 0 differ in {', '.join(line.strip() for line in changed)}: "
                "all nodes need the same configuration and packages"
            )


def check_shared(folder: Path) -> None:
    """ValueError on every rank where some do not see what rank 0 has just written."""
    patience = time.monotonic() + VISIBLE_WITHIN
    while not (seen := (folder / "config.yaml").exists()) and time.monotonic() < patience:
        time.sleep(0.1)
    blind = [str(rank) for rank, sees in enumerate(distributed.everywhere(seen)) if not sees]
    if blind:
        raise ValueError(
            f"rank {', '.join(blind)} does not see {folder.absolute()}, which rank 0 made: "
            "choose an --output-dir on a file system that all nodes share"
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``key: old -> new`` of every option that differs."""
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
