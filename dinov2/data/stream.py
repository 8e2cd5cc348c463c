"""From shards to the batches of one rank: exact order, exact resume, damage counted and never silent."""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dinov2.data.loading import Collate, Draw, StreamDataset
from dinov2.data.mix import Mixture
from dinov2.data.order import LANES, MIX, Order
from dinov2.data.shards import ShardSet
from dinov2.data.shards.storage import is_url

log = logging.getLogger(__name__)

AHEAD = 4096  # samples of a rank between asking for a copy of a shard and reading from it
GRACE = 1000  # max_damage is a fraction of at least so many samples: one bad sample at the start is not 100 %


class Stream:
    """The batches of one rank.

    ``batch_size`` is global. A rank's share of a step, ``batch_size / world`` samples, comes in ``accumulation``
    micro-batches of at most ``micro_batch`` samples (None: one). ``draw(sample, (seed, epoch, position))`` makes a
    sample's views and ``collate(list)`` joins them, both in one of ``workers`` processes (0: in this one) that keep
    ``prefetch`` micro-batches ready each. Only ``images`` (None: all) are read, and samples that have none of them are
    left out; of label arrays only ``labels``. ``weights`` are the shares of the single sets in the stream (None: every
    sample once per epoch). ``lanes`` is the number of places that are read from in turn: ``world`` must divide it, and
    with fewer of them fewer shards are in use at once. The stream stops once more than the fraction ``max_damage`` of
    the samples (at least GRACE) was damaged; 0: at the first one. ``memory`` is the most that each process which loads
    has held, in bytes.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        draw: Draw,
        collate: Collate,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        micro_batch: int | None = None,
        images: Collection[str] | None = None,
        weights: Sequence[float] | None = None,
        lanes: int = LANES,
        max_damage: float = 0.01,
        prefetch: int = 4,
        labels: Collection[str] = (),
    ) -> None:
        shards = _usable(shards, images, batch_size)
        if not 0 < lanes <= LANES:
            raise ValueError(f"data.lanes {lanes} is not in 1 .. {LANES}")
        if lanes % world or batch_size % world:
            raise ValueError(f"{world} ranks must divide {lanes} and batch_size {batch_size}: choose another number")
        if workers > len(shards.counts):
            log.info("%d workers are more than shards: %d are used", workers, len(shards.counts))
        self.shards, self.weights, self.lanes = shards, weights and [float(w) for w in weights], lanes
        if weights:
            for part, counts in zip(shards.parts, shards.counts_by_set, strict=True):
                if not counts.sum():
                    raise ValueError(f"{part.folder}: no sample has any of data.images, so it can have no share")
            self.order: Order | Mixture = Mixture(shards.counts_by_set, weights, seed, lanes)
        else:
            self.order = Order(shards.counts, seed, lanes)
        self.dataset = StreamDataset(shards, self.order, draw, collate, labels)
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.workers, self.prefetch, self.max_damage = min(workers, len(shards.counts)), prefetch, max_damage
        share = batch_size // world
        limit = micro_batch or share
        self.accumulation = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= limit)
        self.micro_batch = share // self.accumulation
        self.seen = self.damaged = 0
        self.memory: dict[int, int] = {}
        self._logged: set[tuple[int, int]] = set()

    def check_cache(self, ranks: int) -> None:
        """ValueError where the remote shards that ``ranks`` ranks of a machine read from in turn outgrow the cache."""
        if not self.shards.cache:
            return
        sizes = [part.bytes for part in self.shards.parts if is_url(part.folder)]
        if sizes and not self.weights:  # all sets are one order
            sizes = [np.concatenate(sizes)]
        used = MIX * self.lanes * ranks / self.world  # shards of each order
        needed = sum(size.sum() * min(1, used / len(size)) for size in sizes)
        if needed > self.shards.cache.limit:
            raise ValueError(
                f"data.cache_gib {self.shards.cache.limit / 2**30:.3g} is less than the {needed / 2**30:.3g} GiB of "
                f"shards that this machine reads from in turn: raise it, or lower data.lanes {self.lanes} in proportion"
            )

    def positions(self, start_step: int) -> Iterator[np.ndarray]:
        """Global positions of this rank's micro-batches, each ``[micro_batch]``, from a step on, for ever."""
        steps = np.arange(self.rank, self.batch_size, self.world).reshape(self.accumulation, self.micro_batch)
        start = start_step * self.batch_size
        while True:
            yield from steps + start
            start += self.batch_size

    def batches(self, start_step: int = 0) -> Iterator[Any]:
        """Collated micro-batches from optimiser step ``start_step`` on: ``accumulation`` of them per step, for ever."""
        later = itertools.islice(self.positions(start_step), AHEAD // self.micro_batch, None)
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=zip(self.positions(start_step), later, strict=True),  # type: ignore[arg-type]
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_parent,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            multiprocessing_context="fork" if self.workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global one must not depend on when a loader starts
        )
        for loaded in loader:
            self.memory[loaded.process] = loaded.memory
            self._account(loaded.damage)
            if loaded.error is not None:
                raise loaded.error
            yield loaded.batch

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after ``step`` optimiser steps keeps."""
        consumed = {"seed": self.order.seed, "samples": step * self.batch_size, "shards": self.shards.digest}
        return {**consumed, "weights": self.weights, "lanes": self.lanes}

    def start_step(self, state: Mapping[str, Any]) -> int:
        """The step to go on with; ValueError where the state belongs to another stream."""
        own = self.state(0)
        for name, what in (("seed", "seed"), ("shards", "shard sets"), ("weights", "weights"), ("lanes", "lanes")):
            if state[name] != own[name]:
                raise ValueError(f"the checkpoint's {what} ({state[name]}) differ from the run's ({own[name]})")
        if state["samples"] % self.batch_size:
            raise ValueError(
                f"the checkpoint has consumed {state['samples']} samples, no multiple of batch_size {self.batch_size}"
            )
        return state["samples"] // self.batch_size

    def _account(self, damage: list[tuple[int, int, str]]) -> None:
        """Count and log the damage of one micro-batch; ValueError past the limit."""
        self.seen += self.micro_batch
        self.damaged += len(damage)
        if damage and self.damaged > self.max_damage * max(self.seen, GRACE):
            raise ValueError(
                f"{self.damaged} of {self.seen} samples were damaged, more than max_damage {self.max_damage:g} allows; "
                f"the last: {damage[-1][2]}"
            )
        for shard, index, sentence in damage:
            if (shard, index) not in self._logged:
                self._logged.add((shard, index))
                log.warning("damaged sample replaced: %s", sentence)


def _usable(shards: ShardSet, images: Collection[str] | None, batch_size: int) -> ShardSet:
    """The samples that have any of ``images``; ValueError where they do not fill a batch."""
    usable = shards.having(images)
    if left_out := len(shards) - len(usable):
        log.info("%d of %d samples have none of %s and are left out", left_out, len(shards), ", ".join(images or ()))
    if len(usable) < batch_size:
        raise ValueError(
            f"{len(usable)} samples are fewer than the global batch_size of {batch_size}: lower data.batch_size or "
            "prepare with a smaller --chip"
        )
    return usable


def _leave_signals_to_parent(worker: int) -> None:
    """A scheduler signals every process of a job, and the run needs its batches until it has saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _as_is(loaded: Any) -> Any:
    """Keeps DataLoader from turning the arrays of a batch into tensors."""
    return loaded
