"""The order of the stream: a pure function of (seed, position) (docs/decisions/0003-stream-order.md).

Legend: N samples in all, S shards, L lanes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LANES = 3072  # 2^10 * 3: every world size that divides it may train, and take over from any other
MIX = 8  # shards whose samples are shuffled together


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of ``range(size)`` drawn from ``key``: int64 ``[size]``.

    Sorts the raw output of PCG64, which numpy keeps stable for ever (NEP 19), unlike ``Generator.permutation``.
    """
    return np.argsort(np.random.PCG64(np.random.SeedSequence(key)).random_raw(size), kind="stable")


def _spread(lanes: int) -> np.ndarray:
    """Turn -> lane ``[L]``: the binary digits of the turn reversed (van der Corput).

    Turns that follow each other lie far apart in the epoch, and the turns ``r mod W`` of a rank (W a power of two) are
    one contiguous part of it.
    """
    order = np.arange(lanes // (lanes & -lanes))  # the odd factor keeps its order
    while len(order) < lanes:
        order = np.stack([order, order + len(order)], axis=1).reshape(-1)
    return order


class Order:
    """Infinite concatenation of epoch permutations of N samples.

    Epoch e lists the samples group by group: shards are permuted, ``mix`` of them at a time form a group, and the
    samples of a group are permuted together. The list is cut into ``lanes`` lanes of equal length (+-1), which take
    turns: position p of the epoch is number ``p div L`` of the lane whose turn is ``p mod L``.
    """

    def __init__(self, counts: np.ndarray, seed: int, lanes: int = LANES, mix: int = MIX) -> None:
        self.counts, self.seed, self.lanes, self.mix = np.asarray(counts, np.int64), seed, lanes, mix
        self.size = int(self.counts.sum())
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed} is not in 0 .. 2^32 - 1")
        lane = _spread(lanes)  # [L]
        lengths = np.full(lanes, self.size // lanes)
        lengths[lane[: self.size % lanes]] += 1  # the first turns have one more
        self._starts = (np.cumsum(lengths) - lengths)[lane]  # [L] where the lane of a turn begins in the epoch's list
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._group = lru_cache(maxsize=lanes + 512)(self._draw_group)  # a rank alone has a group open per lane

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        """``[n]`` positions of the stream -> int64 ``[n, 3]``: epoch, shard, index within the shard."""
        epochs, within = np.divmod(np.asarray(positions, np.int64), self.size)
        rounds, turns = np.divmod(within, self.lanes)
        places = self._starts[turns] + rounds  # [n] in the epoch's list
        out = np.empty((len(places), 3), np.int64)
        for i, (epoch, place) in enumerate(zip(epochs.tolist(), places.tolist(), strict=True)):
            _, ends = self._epoch(epoch)
            group = int(ends.searchsorted(place, side="right"))
            first = int(ends[group - 1]) if group else 0
            shards, last, samples = self._group(epoch, group)
            number = int(samples[place - first])
            which = int(last.searchsorted(number, side="right"))
            out[i] = epoch, shards[which], number - (int(last[which - 1]) if which else 0)
        return out

    def another(self, epoch: int, shard: int, word: int) -> tuple[int, int]:
        """Shard and index of the sample that stands in for one of ``shard``: any of the epoch, chosen by ``word``."""
        _, shard, index = self.address(epoch * self.size + word % self.size)
        return shard, index

    def address(self, position: int) -> tuple[int, int, int]:
        """Epoch, shard and index within the shard of one position."""
        epoch, shard, index = self.addresses(np.array([position]))[0].tolist()
        return epoch, shard, index

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Permuted shards ``[S]`` and where each group of ``mix`` of them ends in the epoch's list."""
        shards = permutation(len(self.counts), self.seed, epoch, 0)
        return shards, np.add.reduceat(self.counts[shards], np.arange(0, len(shards), self.mix)).cumsum()

    def _draw_group(self, epoch: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The shards of a group, where each ends among its n samples, and the permutation of these ``[n]``."""
        shards = self._epoch(epoch)[0][group * self.mix : (group + 1) * self.mix]
        ends = self.counts[shards].cumsum()
        samples = permutation(int(ends[-1]), self.seed, epoch, 1 + group)
        return shards, ends, samples.astype(np.min_scalar_type(len(samples)))  # thousands of groups are kept
