"""A run that is killed anywhere and goes on with other ranks and workers consumes every sample once per epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dinov2.data.shards import ShardSet
from dinov2.data.shards.index import Part
from dinov2.data.stream import Stream
from tests.dinov2.data.samples import S2, make_set


def part(counts):
    """A set of which nothing is read."""
    counts = np.asarray(counts, np.int64)
    names, held = [f"shard-{i:06d}.tar" for i in range(len(counts))], [frozenset({S2.key})]
    return Part("nowhere", names, [""] * len(counts), counts, counts, counts, held, counts[:, None], {}, {}, {}, {}, "")


@st.composite
def runs(draw):
    """Sets (samples of each shard) with weights or as one, lanes, seed, batch size, and the legs of a run.

    A leg is (world, workers, micro-batch limit, steps to its last checkpoint, steps lost after it).
    """
    counts = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)
    sets = draw(st.lists(counts, min_size=1, max_size=3))
    weights = draw(st.none() | st.lists(st.sampled_from([0.2, 1, 3]), min_size=len(sets), max_size=len(sets)))
    lanes = draw(st.sampled_from([1, 4, 12, 48, 3072]))
    worlds = [w for w in (1, 2, 3, 4, 6, 8, 12) if lanes % w == 0]
    leg = st.tuples(
        st.sampled_from(worlds), st.integers(0, 5), st.none() | st.integers(1, 7), st.integers(0, 4), st.integers(0, 2)
    )
    legs = draw(st.lists(leg, min_size=1, max_size=4))
    batch = int(np.lcm.reduce([world for world, *_ in legs])) * draw(st.integers(1, 3))
    samples = sum(map(sum, sets))
    if samples < batch:  # a stream that cannot be is refused elsewhere
        sets[0] = sets[0] + [batch - samples]
    return sets, weights, lanes, draw(st.integers(0, 2**32 - 1)), batch, legs


def loaded(stream, start, steps):
    """Positions of the micro-batches in the order in which ``workers`` processes that take turns hand them over."""
    batches = stream.positions(start)
    wanted = [next(batches) for _ in range(steps * stream.accumulation)]
    if not stream.workers:
        return wanted
    queues = [iter(wanted[w :: stream.workers]) for w in range(stream.workers)]
    return [next(queues[i % stream.workers]) for i in range(len(wanted))]


def check(run):
    sets, weights, lanes, seed, batch, legs = run
    shards, consumed, state = ShardSet([part(counts) for counts in sets]), [], None
    for world, workers, micro, kept, lost in legs:
        options = {"weights": weights, "lanes": lanes, "seed": seed, "batch_size": batch, "micro_batch": micro}
        ranks = [
            Stream(shards, draw=None, collate=None, rank=r, world=world, workers=workers, **options)
            for r in range(world)
        ]
        start = ranks[0].start_step(state) if state else 0
        got = [loaded(rank, start, kept + lost) for rank in ranks]
        assert {(len(g), *{len(micro) for micro in g}) for g in got} == {(len(got[0]), *{len(m) for m in got[0]})}
        for rank, batches in zip(ranks, got, strict=True):  # what came after the checkpoint is lost with the process
            consumed += [p for micro in batches[: kept * rank.accumulation] for p in micro.tolist()]
        state = ranks[0].state(start + kept)
    total = sum(kept for *_, kept, _ in legs) * batch
    assert sorted(consumed) == list(range(total))
    order, counts = ranks[0].order, np.concatenate(sets)
    addresses = order.addresses(np.array(consumed, np.int64))
    seen = Counter(map(tuple, addresses.tolist()))
    assert not seen or max(seen.values()) == 1, "a sample came twice in an epoch"
    assert (addresses[:, 2] < counts[addresses[:, 1]]).all()
    if weights is None:  # every whole epoch holds every sample
        for epoch in range(total // order.size):
            assert sum(e == epoch for e, *_ in seen) == order.size


@given(runs())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_some_runs(run):
    check(run)


@pytest.mark.slow
@given(runs())
@settings(deadline=None, max_examples=2500, suppress_health_check=[HealthCheck.too_slow])
def test_many_runs(run):
    check(run)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_real_loaders_that_are_dropped_anywhere(tmp_path):
    """The same with real files and processes: 40 random runs of three legs over two sets."""
    sets = [make_set(tmp_path / "a", 23, 4), make_set(tmp_path / "b", 11, 3, first=500)]
    both, rng = ShardSet([part for shards in sets for part in shards.parts]), np.random.default_rng(0)
    for _ in range(40):
        seed, weights = int(rng.integers(100)), [None, [2, 1]][rng.integers(2)]
        consumed, state = [], None
        for _ in range(3):
            world, workers = int(rng.choice([1, 2, 3, 4])), int(rng.integers(3))
            kept, lost = rng.integers(3, size=2).tolist()
            for rank in range(world):
                stream = Stream(
                    both,
                    draw=lambda sample, key: (*key, sample.key),
                    collate=list,
                    batch_size=12,
                    seed=seed,
                    rank=rank,
                    world=world,
                    workers=workers,
                    micro_batch=2,
                    weights=weights,
                )
                start = stream.start_step(state) if state else 0
                batches = stream.batches(start)
                got = [next(batches) for _ in range((kept + lost) * stream.accumulation)]
                batches.close()
                consumed += [sample for micro in got[: kept * stream.accumulation] for sample in micro]
            state = stream.state(start + kept)
        assert sorted(position for _, _, position, _ in consumed) == list(range(len(consumed)))
        assert len({(epoch, key) for _, epoch, _, key in consumed}) == len(consumed)
