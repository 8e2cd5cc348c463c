"""Statistics that drift: a set's pixels against its own index, and a set against another one of the same sensors."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.parallel import Meter, each
from dinov2.data.shards import ShardSet
from dinov2.data.stats import Stats, image_stats, merge_stats

TOLERANCE = 1e-6  # of a standard deviation: order of summation
MOST = 0.5  # standard deviations between the means of two sets, and factor 1 + MOST between their deviations


def shard_stats(shards: ShardSet, shard: int) -> Stats:
    """Statistics of the pixels of one shard."""
    samples = (shards.read(shard, i, labels=()) for i in range(int(shards.counts[shard])))
    return merge_stats([image_stats(s.images[key], s.specs[key]) for s in samples for key in s.images])


def own(path: str, workers: int) -> Iterator[str]:
    """A sentence for every band whose pixels do not have the statistics that the index records."""
    shards, found = ShardSet.open(path), dict[int, Stats]()
    with Meter("statistics", len(shards.counts), "shards") as meter:
        for number, stats in each(shard_stats, shards, range(len(shards.counts)), workers):
            found[number] = stats
            meter.advance(1)
    again = merge_stats([found[number] for number in sorted(found)])
    for key, old in shards.stats.items():
        new = again.get(key)
        near = TOLERANCE * max(old.std, abs(old.mean), 1e-12)
        if new is None or new.count != old.count or abs(new.mean - old.mean) > near or abs(new.std - old.std) > near:
            yield f"{path}: {key[0]}, band {key[1]}: the pixels do not have the statistics of the index; write it again"


def against(path: str, reference: str) -> Iterator[str]:
    """A sentence for every band that is another quantity than in ``reference``, by mean, deviation or unit."""
    mine, other = ShardSet.open(path).stats, ShardSet.open(reference).stats
    if not set(mine) & set(other):
        raise ValueError(f"{path} and {reference} have no sensor and band in common")
    for key in sorted(set(mine) & set(other)):
        a, b = mine[key], other[key]
        shift, ratio = abs(a.mean - b.mean) / max(b.std, 1e-12), max(a.std, 1e-12) / max(b.std, 1e-12)
        if a.unit != b.unit or shift > MOST or not 1 / (1 + MOST) <= ratio <= 1 + MOST:
            yield (
                f"{path}: {key[0]}, band {key[1]}: {a.mean:.4g} +- {a.std:.3g} {a.unit}, in {reference} {b.mean:.4g} "
                f"+- {b.std:.3g} {b.unit}: another scale, offset or kind of place"
            )
