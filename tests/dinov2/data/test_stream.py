import contextlib
import itertools
import logging
import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.data.order import LANES
from dinov2.data.shards import ShardSet
from dinov2.data.shards.index import Part
from dinov2.data.stream import Stream
from tests.dinov2.data.samples import S1, S2, make_set

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
WORLDS = [w for w in range(1, 25) if LANES % w == 0]


def draw(sample, key):
    """What a batch keeps of a sample here: everything that the data of a run could depend on."""
    return (*key, sample.key, int(sample.images[S2.key].sum()))


def make_stream(shards, **options):
    return Stream(shards, **({"draw": draw, "collate": list, "batch_size": 6, "seed": 5} | options))


def take(stream, batches, start_step=0):
    with contextlib.closing(stream.batches(start_step)) as iterator:
        return list(itertools.islice(iterator, batches))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("set")
    make_set(out, 29, 4)
    return out


@pytest.fixture(scope="module")
def shards(folder):
    return ShardSet.open(folder)


@st.composite
def runs(draw_value):
    """(samples, batch size, seed, world sizes of consecutive legs, steps of each leg)."""
    world = st.sampled_from(WORLDS)
    worlds = draw_value(st.lists(world, min_size=1, max_size=4))
    batch = int(np.lcm.reduce(worlds)) * draw_value(st.integers(1, 3))
    samples = draw_value(st.integers(batch, 4 * batch + 50))
    steps = draw_value(st.lists(st.integers(0, 6), min_size=len(worlds), max_size=len(worlds)))
    return samples, batch, draw_value(st.integers(0, 2**32 - 1)), worlds, steps


def listed(samples):
    """A set of shards of one sample each, of which nothing is read."""
    names, ones = [f"shard-{i:06d}.tar" for i in range(samples)], np.ones(samples, np.int64)
    held = [frozenset({S2.key})], ones[:, None]
    return ShardSet([Part("nowhere", names, [""] * samples, ones, ones, ones, *held, {}, {}, {}, {}, "")])


@given(runs())
@settings(deadline=None)
def test_no_sample_is_lost_or_repeated_on_any_ranks_that_change_midway(run):
    samples, batch, seed, worlds, steps = run
    shards, seen, state = listed(samples), [], None
    for world, leg in zip(worlds, steps, strict=True):
        ranks = [make_stream(shards, batch_size=batch, seed=seed, rank=r, world=world) for r in range(world)]
        step = ranks[0].start_step(state) if state else 0
        legs = [list(itertools.islice(rank.positions(step), leg * rank.accumulation)) for rank in ranks]
        assert len({len(positions) for positions in legs}) == 1  # equal batch counts
        seen += [p for positions in legs for micro in positions for p in micro.tolist()]
        state = ranks[0].state(step + leg)
    assert sorted(seen) == list(range(sum(steps) * batch))  # with test_order: every sample exactly once per epoch


def test_each_sample_once_per_epoch_over_ranks_and_workers(shards):
    found = [
        sample[3]
        for rank in range(3)
        for batch in take(make_stream(shards, rank=rank, world=3, workers=2), 29)  # 6 epochs: 29 steps of 6 samples
        for sample in batch
    ]
    assert len(found) == 29 * 6
    assert sorted(found) == sorted(key for s in range(len(shards.counts)) for key in shards.keys(s) for _ in range(6))


def test_the_number_of_workers_changes_nothing(shards):
    expected = take(make_stream(shards), 12)
    assert {len(batch) for batch in expected} == {6}
    assert [sample[2] for batch in expected for sample in batch] == list(range(72))
    for workers in (1, 2, 3):
        assert take(make_stream(shards, workers=workers), 12) == expected


def test_ranks_share_a_step_and_micro_batches_share_a_rank(shards):
    whole = take(make_stream(shards, batch_size=12), 5)
    parts = [take(make_stream(shards, batch_size=12, rank=r, world=2, micro_batch=2), 5 * 3) for r in range(2)]
    for step, batch in enumerate(whole):
        assert all(len(micro) == 2 for part in parts for micro in part)
        shares = [sample for part in parts for micro in part[step * 3 : step * 3 + 3] for sample in micro]
        assert sorted(shares) == sorted(batch)


@pytest.mark.parametrize(
    ("micro", "expected"), [(None, (1, 12)), (12, (1, 12)), (11, (2, 6)), (5, (3, 4)), (1, (12, 1))]
)
def test_accumulation_is_derived(shards, micro, expected):
    stream = make_stream(shards, batch_size=24, world=2, micro_batch=micro)
    assert (stream.accumulation, stream.micro_batch) == expected


@pytest.mark.parametrize("step", [0, 1, 4, 5, 11, 1000])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_any_step_is_the_same_tail(shards, step, workers):
    straight = make_stream(shards)
    resumed = make_stream(shards, workers=workers)
    start = resumed.start_step(straight.state(step))
    tail = take(straight, 12)[step:] if step < 12 else take(straight, 3, start_step=step)
    assert take(resumed, len(tail), start) == tail


def test_resume_far_into_a_run_is_immediate(shards):
    begin = time.perf_counter()
    assert take(make_stream(shards), 1, start_step=10**12)[0][0][2] == 6 * 10**12
    assert time.perf_counter() - begin < 1


def test_a_state_of_another_stream_is_refused(shards, tmp_path):
    stream = make_stream(shards)
    state = stream.state(7)
    assert make_stream(shards, batch_size=7).start_step(state) == 6
    for options, sentence in (({"seed": 6}, "seed"), ({"batch_size": 4}, "42 samples, no multiple of batch_size 4")):
        with pytest.raises(ValueError, match=sentence):
            make_stream(shards, **options).start_step(state)
    with pytest.raises(ValueError, match="shard sets"):
        make_stream(make_set(tmp_path, 29, 4, first=1)).start_step(state)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 30}, "29 samples are fewer than the global batch_size of 30: lower data.batch_size or"),
        ({"batch_size": 10, "world": 5}, "5 ranks must divide 3072"),
        ({"batch_size": 10, "world": 4}, "4 ranks must divide 3072 and batch_size 10"),
    ],
)
def test_what_cannot_work_is_one_sentence(shards, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_stream(shards, **options)


def test_more_workers_than_shards_are_capped(shards, caplog):
    with caplog.at_level(logging.INFO):
        assert make_stream(shards, workers=50).workers == 8
    assert [r.message for r in caplog.records] == ["50 workers are more than shards: 8 are used"]


def test_a_stream_leaves_the_global_generator_alone(shards):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    take(make_stream(shards, workers=1), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_end_with_the_iterator(shards):
    stream = make_stream(shards, workers=2, draw=lambda sample, key: os.getpid())
    workers = {pid for batch in take(stream, 8) for pid in batch}
    assert len(workers) == 2 and os.getpid() not in workers
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_keeps_its_sentence(shards, workers):
    def refuse(sample, key):
        raise ValueError(f"sample {sample.key} is refused")

    with pytest.raises(ValueError) as caught:
        take(make_stream(shards, workers=workers, draw=refuse), 9)
    assert str(caught.value).endswith("is refused") and "Traceback" not in str(caught.value)
    assert "Traceback" in caught.value.__notes__[0]


class TestDamage:
    """Samples 8 and 9 (shard 2) are damaged; every other one is whole."""

    @pytest.fixture()
    def damaged(self, tmp_path):
        shards = make_set(tmp_path, 29, 4)
        path = tmp_path / "shard-000002.tar"
        data = bytearray(path.read_bytes())
        for key in (b"s0008.sentinel2", b"s0009.sentinel2"):
            data[data.index(key) + 700] ^= 1
        path.write_bytes(data)
        return shards

    @pytest.mark.parametrize("workers", [0, 2])
    def test_it_is_replaced_counted_and_logged_once(self, damaged, shards, workers, caplog):
        stream = make_stream(damaged, workers=workers, max_damage=0.05)
        good, got = take(make_stream(shards), 29), take(stream, 29)  # 6 epochs
        assert stream.seen == 29 * 6
        assert 2 * 6 <= stream.damaged < 3 * 6  # a replacement may be damaged as well
        assert [r.message[:24] for r in caplog.records] == ["damaged sample replaced:"] * 2
        assert {r.message.split("sample '")[1][:5] for r in caplog.records} == {"s0008", "s0009"}
        assert all("shard-000002.tar" in r.message for r in caplog.records)
        for a, b in zip(itertools.chain(*good), itertools.chain(*got), strict=True):
            assert a[:3] == b[:3]  # seed, epoch and position stay those of the sample that was to come
            assert a == b if a[3] not in ("s0008", "s0009") else b[3] not in ("s0008", "s0009")

    def test_the_replacement_is_always_the_same(self, damaged):
        assert take(make_stream(damaged), 15) == take(make_stream(damaged, workers=2), 15)

    def test_the_run_ends_past_the_limit(self, damaged):
        with pytest.raises(ValueError, match=r"[12] of \d+ samples were damaged.*shard-000002\.tar, sample 's000[89]'"):
            take(make_stream(damaged, max_damage=0), 5)
        stream = make_stream(damaged, max_damage=0.005)  # 5 of the first 1000
        with pytest.raises(ValueError, match=r"6 of \d+ samples were damaged, more than max_damage 0.005 allows"):
            take(stream, 1000)

    def test_a_lost_sidecar_loses_its_samples_only(self, damaged, tmp_path, caplog):
        (tmp_path / "shard-000005.idx").unlink()
        (tmp_path / "shard-000006.tar").unlink()
        stream = make_stream(damaged, max_damage=1)
        keys = {sample[3] for batch in take(stream, 15) for sample in batch}
        assert not keys & {f"s{i:04d}" for i in [8, 9, *range(20, 28)]} and len(keys) == 19

    def test_a_set_that_is_gone_ends_the_run(self, damaged, tmp_path):
        for path in tmp_path.glob("*.tar"):
            path.unlink()
        with pytest.raises(ValueError, match="100 samples in a row are damaged"):
            take(make_stream(damaged, max_damage=1), 1)
