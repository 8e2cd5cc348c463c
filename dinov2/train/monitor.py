"""What is looked at while a run goes on: losses, speed, health, the linear probe, and the alarm that stops it."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from dinov2 import distributed
from dinov2.data.views import RawBatch
from dinov2.objectives.base import Now
from dinov2.train.build import Parts
from dinov2.train.flops import peak_flops, sample_flops
from dinov2.train.health import reading
from dinov2.train.log import Log
from dinov2.train.optim import rates


class Step(NamedTuple):
    """What an optimiser step leaves to be looked at."""

    terms: dict[str, Tensor]  # scalars of this rank
    embedding: Tensor  # [crops * B, D], crop-major
    labels: list[Mapping[str, Tensor]]  # of each micro-batch


def peak_bytes(device: torch.device) -> int:
    """The most memory this rank has held on its device; on a CPU, with what the interpreter holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux


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


class Monitor:
    """Reads every step, writes every ``train.log_every`` and ``train.health_every`` steps."""

    def __init__(self, cfg: DictConfig, parts: Parts, batches: Waiting, log: Log, last: int) -> None:
        self.cfg, self.parts, self.batches, self.log, self.last = cfg, parts, batches, log, last
        log.say(parts.summary())
        self.flops = sample_flops(parts.objective)
        peak = cfg.train.peak_tflops
        self.peak = 1e12 * peak if peak else peak_flops(parts.device, parts.precision.dtype)
        if parts.remedy:
            log.say(f"small batch: {parts.remedy}")
        self.restart()

    def restart(self) -> None:
        """Begin a new interval of speed, without what was done meanwhile."""
        self.clock, self.images, self.batches.seconds = time.perf_counter(), 0, 0.0
        self.waited = distributed.waited()

    def look(self, done: int, taken: Step, now: Now) -> None:
        """Take the step after which ``done`` are done; a collapsed representation raises ValueError."""
        train, probe = self.cfg.train, self.parts.probe
        self.images += self.cfg.data.batch_size
        if probe:
            probe.learn(taken.embedding, taken.labels, self.parts.stream.micro_batch)
        if done % train.health_every == 0:
            health = reading(distributed.gather(taken.embedding.float()))
            self.log.write(done, {**{f"health/{k}": v for k, v in health.items()}, **rates(self.parts.optimizer)})
            self.parts.alarm.check(done, health)
        if done % train.log_every == 0 or done == self.last:
            elapsed = time.perf_counter() - self.clock
            values = {k: distributed.mean(v).item() for k, v in taken.terms.items()}
            if probe:
                values[f"probe/{probe.label}"] = probe.accuracy()
            speed = self.pace(done, elapsed)
            loader = max(self.parts.stream.memory.values())  # of this rank's processes
            memory = {"memory_mib": peak_bytes(self.parts.device) / 2**20, "loader_mib": loader / 2**20}
            self.log.write(done, {**values, "lr": now.lr, **speed, **memory})
            self.restart()

    def pace(self, done: int, elapsed: float) -> dict[str, float]:
        """Images per second, model FLOPs utilisation, and who waited: for data, or for a rank that is slower.

        Waits are shares of ``elapsed`` seconds; each rank's own go to ``ranks.jsonl``. The ``straggler`` has waited for
        the others least, by ``straggler_lead`` less than the median.
        """
        images = self.images / elapsed
        waits = self.batches.seconds / elapsed, (distributed.waited() - self.waited) / elapsed
        data, peers = zip(*distributed.everywhere(waits), strict=True)
        pace = {"images_per_s": images, "data_wait": sum(data) / len(data)}
        if self.flops is not None:
            pace["mfu"] = images / len(data) * self.flops / self.peak
        if len(data) > 1:
            self.log.write_ranks(done, {"data_wait": data, "peer_wait": peers})
            pace |= {"data_wait_max": max(data), "data_wait_rank": data.index(max(data))}
            pace |= {"straggler": peers.index(min(peers)), "straggler_lead": statistics.median(peers) - min(peers)}
        return pace
