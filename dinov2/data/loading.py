"""What a loader process does: positions of the stream -> a collated micro-batch, with the damage met on the way."""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from dinov2.data.mix import Mixture
from dinov2.data.order import Order
from dinov2.data.sample import Sample
from dinov2.data.shards import DamagedSample, ShardSet

ATTEMPTS = 100  # replacements tried for one position before the set counts as lost

Key = tuple[int, int, int]  # seed, epoch, position: what all randomness of a sample is keyed on
Draw = Callable[[Sample, Key], Any]
Collate = Callable[[list[Any]], Any]


class Loaded(NamedTuple):
    """A collated micro-batch, or the error to raise, and the damage met on the way.

    A tuple, so that a DataLoader finds the batch's own ``pin_memory``.
    """

    batch: Any
    error: ValueError | None
    damage: list[tuple[int, int, str]]  # (shard, index, sentence)
    process: int
    memory: int  # bytes, the most that this process has held


class StreamDataset(Dataset):
    """(positions ``[n]``, those of a later item) -> :class:`Loaded`.

    Everything depends on the positions, nothing on rank or worker.
    """

    def __init__(
        self, shards: ShardSet, order: Order | Mixture, draw: Draw, collate: Collate, labels: Collection[str] = ()
    ) -> None:
        self.shards, self.order, self.draw, self.collate, self.labels = shards, order, draw, collate, labels

    def __getitem__(self, item: tuple[np.ndarray, np.ndarray]) -> Loaded:
        positions, later = item
        damage: list[tuple[int, int, str]] = []
        batch, failure = None, None
        try:
            if self.shards.cache:
                self.shards.prefetch(set(self.order.addresses(later)[:, 1].tolist()))
            addresses = self.order.addresses(positions).tolist()
            drawn = [self._draw(p, a, damage) for p, a in zip(positions.tolist(), addresses, strict=True)]
            batch = self.collate(drawn)
        except ValueError as error:  # Stream raises it: a DataLoader would bury the sentence in a worker's traceback
            error.add_note(traceback.format_exc())
            failure = error
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
        return Loaded(batch, failure, damage, os.getpid(), held)

    def _draw(self, position: int, address: list[int], damage: list[tuple[int, int, str]]) -> Any:
        """One drawn sample; a damaged one gives way to another of the same epoch, chosen by a hash of the position."""
        epoch, shard, index = address
        key = (self.order.seed, epoch, position)
        for attempt in range(ATTEMPTS):
            try:
                sample = self.shards.read(shard, index, self.shards.only, self.labels)
            except DamagedSample as error:
                damage.append((shard, index, str(error)))
                word = int(np.random.SeedSequence((*key, attempt)).generate_state(1, np.uint64)[0])
                shard, index = self.order.another(epoch, shard, word)
            else:
                return self.draw(sample, key)
        raise ValueError(f"{ATTEMPTS} samples in a row are damaged, the last: {damage[-1][2]}")
