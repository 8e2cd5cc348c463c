import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2.data.order import LANES, Order

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)
WORLDS = [w for w in range(1, LANES + 1) if LANES % w == 0]


def samples(order, positions):
    """Numbers 0 .. N-1 of the samples at these positions."""
    first = np.cumsum(order.counts) - order.counts
    _, shard, index = order.addresses(positions).T
    assert (index < order.counts[shard]).all()
    return first[shard] + index


@given(COUNTS, st.integers(0, 2**32 - 1), st.integers(0, 5), st.sampled_from([1, 2, 3, 12, LANES]), st.integers(1, 9))
def test_every_epoch_is_a_permutation(counts, seed, epoch, lanes, mix):
    order = Order(counts, seed, lanes, mix)
    n = order.size
    positions = epoch * n + np.arange(n)
    assert sorted(samples(order, positions)) == list(range(n))
    assert (order.addresses(positions)[:, 0] == epoch).all()


@given(COUNTS, st.integers(0, 2**32 - 1), st.sets(st.integers(0, 500), min_size=1))
def test_an_address_depends_on_seed_and_position_only(counts, seed, positions):
    positions = sorted(positions)
    together = Order(counts, seed).addresses(np.array(positions))
    assert [tuple(row) for row in together.tolist()] == [Order(counts, seed).address(p) for p in positions[::-1]][::-1]


def test_epochs_and_seeds_differ():
    counts = [64] * 20
    lists = [samples(Order(counts, seed), np.arange(1280) + e * 1280) for seed in (0, 1, 2**32 - 1) for e in (0, 1)]
    for i, a in enumerate(lists):
        for b in lists[:i]:
            assert (a == b).mean() < 0.01


def test_the_order_is_pinned():
    """A checkpoint from another version must find the same order."""
    assert samples(Order([5, 0, 3, 7], 3), np.arange(15)).tolist() == [11, 2, 3, 9, 10, 13, 8, 0, 5, 6, 14, 12, 7, 4, 1]


@pytest.mark.parametrize("world", [1, 2, 3, 8, 24, 64, 512])
def test_a_rank_reads_the_shards_of_its_own_lanes_only(world):
    """2^17 samples in 2048 shards: a rank's positions touch few shards beyond its share of the set."""
    order = Order(np.full(2048, 64), 0)
    share = 2048 / world
    for rank in range(0, world, max(1, world // 4)):
        shards = np.unique(order.addresses(np.arange(rank, order.size, world))[:, 1])
        groups = 2 if world & (world - 1) == 0 else 2048 // order.mix  # powers of two own one contiguous part
        assert len(shards) <= min(2048, share + order.mix * groups)


def test_neighbours_come_from_everywhere():
    """Shards are regions, so neighbours in a shard look alike; in the stream they must not.

    Every shard has a mean of its own (half of all variance). Compared with full permutations: correlation of samples
    k apart, the variance of batch means, and how often samples less than 8 apart share a shard.
    """
    rng = np.random.default_rng(0)
    counts = np.full(256, 100)
    value = np.repeat(rng.normal(size=256), 100) + rng.normal(size=25600)
    value = (value - value.mean()) / value.std()
    shard = np.repeat(np.arange(256), 100)
    assert (value[1:] * value[:-1]).mean() > 0.4  # as stored
    stream = samples(Order(counts, 1), np.arange(25600))
    x = value[stream]
    assert all(abs((x[k:] * x[:-k]).mean()) < 0.05 for k in range(1, 17))  # at most 0.02 for full permutations
    for batch in (64, 256):
        assert (
            x.reshape(-1, batch).mean(1).var() * batch < 1.1
        )  # 0.8 to 1.1 for full permutations, 26 and more as stored
    same = [(shard[stream][k:] == shard[stream][:-k]).mean() for k in range(1, 8)]
    assert max(same) < 2 / 256  # 1 / 256 for a full permutation


def test_seed_must_fit():
    with pytest.raises(ValueError, match="seed -1"):
        Order([3], -1)
