import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.data.mix import SLOTS, Mixture
from dinov2.data.order import LANES, Order

COUNTS = [np.array([5, 0, 7]), np.array([40]), np.array([3] * 9)]  # 12, 40 and 27 samples
WEIGHTS = [0.5, 0.3, 0.2]


def drawn(order, positions):
    """(set, epoch, number of the sample within its set) at these positions, each ``[n]``."""
    epoch, shard, index = order.addresses(positions).T
    ends = np.cumsum([len(c) for c in COUNTS])
    which = ends.searchsorted(shard, side="right")
    counts = np.concatenate(COUNTS)
    assert (index < counts[shard]).all()
    first = np.concatenate([np.cumsum(c) - c for c in COUNTS])
    return which, epoch, first[shard] + index


def test_one_set_alone_is_the_plain_order():
    positions = np.arange(0, 10**7, 9_777)
    mixed = Mixture([np.array([5, 0, 7])], [2.5], 3).addresses(positions)
    assert (mixed == Order([5, 0, 7], 3).addresses(positions)).all()


@pytest.mark.parametrize("lanes", [1, 12, LANES])
def test_shares_are_the_weights_and_no_set_repeats_a_sample(lanes):
    cycle = lanes * SLOTS
    order = Mixture(COUNTS, WEIGHTS, 0, lanes)
    positions = np.arange(min(cycle, 30_000))
    which, epoch, number = drawn(order, positions)
    for k, share in enumerate(WEIGHTS):
        mine = which == k
        assert mine.mean() == pytest.approx(share, abs=0.01)
        visits = {}
        for e, n in zip(epoch[mine].tolist(), number[mine].tolist(), strict=True):
            assert visits.setdefault((e, n), 0) == 0, "a sample came twice in an epoch of its set"
            visits[e, n] = 1
        if lanes <= 12:  # no lane is more than 4 samples, of at least 1 per epoch, ahead of another
            whole = int(epoch[mine].max()) - 4
            assert whole > 10 and sum(e <= whole for e, _ in visits) == (whole + 1) * COUNTS[k].sum()


def test_after_a_cycle_every_set_is_consumed_without_a_gap():
    """SLOTS rounds of 4 lanes take from each set the first 4 * slots positions of its own stream, exactly."""
    order = Mixture(COUNTS, WEIGHTS, 7, 4)
    which, epoch, number = drawn(order, np.arange(4 * SLOTS))
    assert order.slots.tolist() == [1562, 938, 625]
    for k, counts in enumerate(COUNTS):
        own = Order(counts, 7, 4).addresses(np.arange(4 * order.slots[k]))
        first = np.cumsum(counts) - counts
        expected = sorted(zip(own[:, 0], first[own[:, 1]] + own[:, 2], strict=True))
        assert sorted(zip(epoch[which == k], number[which == k], strict=True)) == expected


@pytest.mark.parametrize("world", [2, 3, 8, 48])
def test_every_rank_and_every_batch_gets_the_mixture(world):
    positions = np.arange(256 * 100)
    which, _, _ = drawn(Mixture(COUNTS, WEIGHTS, 1), positions)
    for rank in range(world):
        mine = which[rank::world]
        noise = 3.5 * np.sqrt(0.25 / len(mine))  # of drawing at random
        assert all(abs((mine == k).mean() - share) < noise for k, share in enumerate(WEIGHTS))
    batches = which.reshape(100, 256)
    assert all((batches == k).mean(1).std() < np.sqrt(s * (1 - s) / 256) * 1.5 for k, s in enumerate(WEIGHTS))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
@settings(deadline=None, max_examples=20)
def test_an_address_depends_on_seed_and_position_only(seed, positions):
    together = Mixture(COUNTS, WEIGHTS, seed, 12).addresses(np.array(positions))
    alone = [Mixture(COUNTS, WEIGHTS, seed, 12).addresses(np.array([p]))[0].tolist() for p in positions]
    assert together.tolist() == alone


def test_a_replacement_comes_from_the_same_set():
    order = Mixture(COUNTS, WEIGHTS, 0)
    for shard, allowed in ((2, {0, 2}), (3, {3}), (10, set(range(4, 13)))):
        found = {order.another(2, shard, word)[0] for word in range(200)}
        assert found == allowed


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1, 1], "one number above 0 per set .3 sets."),
        ([1, 0, 1], "one number above 0 per set"),
        ([1, float("nan"), 1], "one number above 0"),
        ([2, 1e-5, 1], "a share below 1/3125 is never drawn"),
    ],
)
def test_weights_that_cannot_be_meant(weights, sentence):
    with pytest.raises(ValueError, match=f"data.weights .*{sentence}"):
        Mixture(COUNTS, weights, 0)
