"""From shards to the batches of one rank: exact order, exact resume, damage counted and never silent."""

from __future__ import annotations

import logging
import signal
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dinov2.data.order import LANES, Order
from dinov2.data.sample import Sample
from dinov2.data.shards import DamagedSample, ShardSet

log = logging.getLogger(__name__)

ATTEMPTS = 100  # replacements tried for one position before the set counts as lost
GRACE = 1000  # max_damage is a fraction of at least so many samples: one bad sample at the start is not 100 %

Key = tuple[int, int, int]  # seed, epoch, position: what all randomness of a sample is keyed on
Draw = Callable[[Sample, Key], Any]
Collate = Callable[[list[Any]], Any]


class Loaded(NamedTuple):
    """What a worker hands over: a collated micro-batch, or the error to raise, and the damage met on the way.

    A tuple, so that a DataLoader finds the batch's own ``pin_memory``.
    """

    batch: Any
    error: ValueError | None
    damage: list[tuple[int, int, str]]  # (shard, index, sentence)


class StreamDataset(Dataset):
    """Positions ``[n]`` -> :class:`Loaded`. Everything depends on the positions, nothing on rank or worker."""

    def __init__(
        self, shards: ShardSet, order: Order, draw: Draw, collate: Collate, images: Collection[str] | None
    ) -> None:
        self.shards, self.order, self.draw, self.collate, self.images = shards, order, draw, collate, images

    def __getitem__(self, positions: np.ndarray) -> Loaded:
        damage: list[tuple[int, int, str]] = []
        try:
            addresses = self.order.addresses(positions).tolist()
            drawn = [self._draw(p, a, damage) for p, a in zip(positions.tolist(), addresses, strict=True)]
            return Loaded(self.collate(drawn), None, damage)
        except (
            ValueError
        ) as error:  # raised again by Stream: a DataLoader would bury the sentence in a worker's traceback
            error.add_note(traceback.format_exc())
            return Loaded(None, error, damage)

    def _draw(self, position: int, address: list[int], damage: list[tuple[int, int, str]]) -> Any:
        """One drawn sample; a damaged one gives way to another of the same epoch, chosen by a hash of the position."""
        epoch, shard, index = address
        key = (self.order.seed, epoch, position)
        for attempt in range(ATTEMPTS):
            try:
                sample = self.shards.read(shard, index, self.images, labels=())
            except DamagedSample as error:
                damage.append((shard, index, str(error)))
                word = int(np.random.SeedSequence((*key, attempt)).generate_state(1, np.uint64)[0])
                _, shard, index = self.order.address(epoch * self.order.size + word % self.order.size)
            else:
                return self.draw(sample, key)
        raise ValueError(f"{ATTEMPTS} samples in a row are damaged, the last: {damage[-1][2]}")


class Stream:
    """The batches of one rank.

    ``batch_size`` is global. A rank's share of a step, ``batch_size / world`` samples, comes in ``accumulation``
    micro-batches of at most ``micro_batch`` samples (None: one). ``draw(sample, (seed, epoch, position))`` makes a
    sample's views and ``collate(list)`` joins them, both in one of ``workers`` processes (0: in this one) that keep
    ``prefetch`` micro-batches ready each. Only ``images`` (None: all) are read. The stream stops once more than the
    fraction ``max_damage`` of the samples (at least GRACE) was damaged; 0: at the first one.
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
        max_damage: float = 0.01,
        prefetch: int = 4,
    ) -> None:
        if len(shards) < batch_size:
            raise ValueError(
                f"{len(shards)} samples are fewer than the global batch_size of {batch_size}: lower data.batch_size or "
                "prepare with a smaller --chip"
            )
        if LANES % world or batch_size % world:
            raise ValueError(f"{world} ranks must divide {LANES} and batch_size {batch_size}: choose another number")
        if workers > len(shards.counts):
            log.info("%d workers are more than shards: %d are used", workers, len(shards.counts))
        self.shards, self.order = shards, Order(shards.counts, seed)
        self.dataset = StreamDataset(shards, self.order, draw, collate, images)
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.workers, self.prefetch, self.max_damage = min(workers, len(shards.counts)), prefetch, max_damage
        share = batch_size // world
        limit = micro_batch or share
        self.accumulation = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= limit)
        self.micro_batch = share // self.accumulation
        self.seen = self.damaged = 0
        self._logged: set[tuple[int, int]] = set()

    def positions(self, start_step: int) -> Iterator[np.ndarray]:
        """Global positions of this rank's micro-batches, each ``[micro_batch]``, from a step on, for ever."""
        steps = np.arange(self.rank, self.batch_size, self.world).reshape(self.accumulation, self.micro_batch)
        start = start_step * self.batch_size
        while True:
            yield from steps + start
            start += self.batch_size

    def batches(self, start_step: int = 0) -> Iterator[Any]:
        """Collated micro-batches from optimiser step ``start_step`` on: ``accumulation`` of them per step, for ever."""
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=self.positions(start_step),  # type: ignore[arg-type]
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_parent,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            multiprocessing_context="fork" if self.workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global one must not depend on when a loader starts
        )
        for loaded in loader:
            self._account(loaded.damage)
            if loaded.error is not None:
                raise loaded.error
            yield loaded.batch

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after ``step`` optimiser steps keeps."""
        return {"seed": self.order.seed, "samples": step * self.batch_size, "shards": self.shards.digest}

    def start_step(self, state: Mapping[str, Any]) -> int:
        """The step to go on with; ValueError where the state belongs to another stream."""
        own = self.state(0)
        for name, what in (("seed", "seed"), ("shards", "shard sets")):
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


def _leave_signals_to_parent(worker: int) -> None:
    """A scheduler signals every process of a job, and the run needs its batches until it has saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _as_is(loaded: Any) -> Any:
    """Keeps DataLoader from turning the arrays of a batch into tensors."""
    return loaded
