"""Several shard sets as one stream, each with a given share of it: the order of a mixture.

Legend: K sets, L lanes, T = SLOTS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinov2.data.order import LANES, Order, permutation

SLOTS = 5**5  # resolution of the weights; at least as many as lanes


class Mixture:
    """Infinite concatenations of epoch permutations of K sets, interleaved: a pure function of (seed, position).

    ``weights`` ``[K]`` are proportional to the shares, which are multiples of 1 / T. T slots, each set's evenly spread,
    say whose turn it is: round g (positions ``gL .. gL + L - 1``) gives turn t to the set of slot
    ``(g + offset(t)) mod T``, offsets being drawn without repetition. Each turn thus comes to a set at even intervals
    and consumes its own lane of that set's stream without a gap (docs/decisions/0003-stream-order.md). With one set
    this is :class:`dinov2.data.order.Order`.
    """

    def __init__(self, counts: Sequence[np.ndarray], weights: Sequence[float], seed: int, lanes: int = LANES) -> None:
        if len(weights) != len(counts) or not all(0 < w < np.inf for w in weights):
            raise ValueError(f"data.weights {list(weights)}: give one number above 0 per set ({len(counts)} sets)")
        self.orders = [Order(c, seed, lanes) for c in counts]
        self.seed, self.lanes = seed, lanes
        self.size = sum(order.size for order in self.orders)
        self._first = np.cumsum([0] + [len(c) for c in counts])  # [K+1] number of each set's first shard
        ends = np.round(np.cumsum([0.0, *weights]) / sum(weights) * SLOTS).astype(np.int64)
        self.slots = np.diff(ends)  # [K]
        if not all(self.slots):
            raise ValueError(f"data.weights {list(weights)}: a share below 1/{SLOTS} is never drawn; leave the set out")
        evenly = np.concatenate([(np.arange(n) + 0.5) / n for n in self.slots])  # [T] their places in 0 .. 1
        self._set = np.repeat(np.arange(len(counts)), self.slots)[evenly.argsort(kind="stable")]  # [T] set of each slot
        self._offset = permutation(SLOTS, seed, 0)[:lanes]  # [L]
        twice = np.tile(self._set, 2) == np.arange(len(counts))[:, None]  # [K, 2T]
        self._before = np.pad(twice.cumsum(1), ((0, 0), (1, 0)))  # [K, 2T+1] slots of a set before each

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        """``[n]`` positions of the stream -> int64 ``[n, 3]``: epoch of the set, shard, index within the shard."""
        rounds, turns = np.divmod(np.asarray(positions, np.int64), self.lanes)
        cycles, passed = np.divmod(rounds, SLOTS)
        begin = self._offset[turns]
        which = self._set[(begin + passed) % SLOTS]
        visits = cycles * self.slots[which] + self._before[which, begin + passed] - self._before[which, begin]
        own = visits * self.lanes + turns  # position in the set's own stream
        out = np.empty((len(own), 3), np.int64)
        for number in np.unique(which):
            mine = which == number
            out[mine] = self.orders[number].addresses(own[mine]) + (0, self._first[number], 0)
        return out

    def another(self, epoch: int, shard: int, word: int) -> tuple[int, int]:
        """Shard and index of the sample that stands in for one of ``shard``: any of its set's epoch."""
        number = int(self._first.searchsorted(shard, side="right")) - 1
        first = int(self._first[number])
        found, index = self.orders[number].another(epoch, shard - first, word)
        return first + found, index
