import contextlib
import itertools
import logging
import os
import time

import numpy as np
import pytest
import torch

from dinov2.data.shards import Cache, ShardSet, storage
from dinov2.data.stream import Stream
from tests.dinov2.data.samples import S1, S2, make_set

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose


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


def test_samples_without_a_wanted_image_are_left_out_beforehand(shards, caplog):
    """Sentinel-1 is in the samples whose number 3 does not divide: 19 of 29."""
    with caplog.at_level(logging.INFO):
        stream = make_stream(shards, images=[S1.key], draw=lambda sample, key: (sample.key, *sample.images))
    assert [r.message for r in caplog.records] == ["10 of 29 samples have none of sentinel1_rtc-10m and are left out"]
    found = [sample for batch in take(stream, 19) for sample in batch]  # 6 epochs of 19
    assert sorted(found) == sorted([(f"s{i:04d}", S1.key) for i in range(29) if i % 3] * 6)
    with pytest.raises(ValueError, match="19 samples are fewer than the global batch_size of 24"):
        make_stream(shards, images=[S1.key], batch_size=24)


def test_a_set_without_the_wanted_images_has_no_share(shards, tmp_path):
    make_set(tmp_path, 1)  # its one sample has no Sentinel-1
    both = ShardSet.open([shards.parts[0].folder, tmp_path])
    with pytest.raises(ValueError, match=f"{tmp_path}: no sample has any of data.images, so it can have no share"):
        make_stream(both, images=[S1.key], weights=[1, 1])
    assert take(make_stream(both, images=[S1.key], draw=lambda sample, key: sample.key), 1)


def test_sets_are_mixed_by_weight(folder, tmp_path):
    make_set(tmp_path, 10, 5, first=1000)
    both = ShardSet.open([folder, tmp_path])
    batches = take(make_stream(both, weights=[1, 3], batch_size=24, workers=2), 50)
    small = [sample[3] >= "s1000" for batch in batches for sample in batch]
    assert np.mean(small) == pytest.approx(0.75, abs=0.02)
    assert batches == take(make_stream(both, weights=[1, 3], batch_size=24), 50)
    assert batches[20:] == take(make_stream(both, weights=[1, 3], batch_size=24), 30, start_step=20)
    state = make_stream(both, weights=[1, 3]).state(3)
    for options, what in (({"weights": [1, 2]}, "weights"), ({"lanes": 12}, "lanes")):
        with pytest.raises(ValueError, match=f"the checkpoint's {what} .* differ"):
            make_stream(both, **({"weights": [1, 3]} | options)).start_step(state)


def test_every_loader_process_reports_its_memory(shards):
    stream = make_stream(shards, workers=2)
    take(stream, 4)
    assert len(stream.memory) == 2 and all(2**24 < held < 2**36 for held in stream.memory.values())


class TestCache:
    @pytest.fixture()
    def url(self, folder):
        url = f"memory://stream-{os.getpid()}"
        storage.fsspec.filesystem("memory").put(f"{folder}/", url, recursive=True)
        yield url
        storage.fsspec.filesystem("memory").rm(url, recursive=True)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_cached_stream_is_the_same_stream(self, url, shards, tmp_path, workers):
        remote = ShardSet.open(url, cache=Cache(tmp_path, 2**30))
        assert take(make_stream(remote, workers=workers), 12) == take(make_stream(shards), 12)
        assert len([p for p in tmp_path.iterdir() if len(p.name) == 64]) > 0

    def test_shards_are_copied_before_they_are_read(self, url, tmp_path, monkeypatch):
        monkeypatch.setattr("dinov2.data.stream.AHEAD", 29)
        remote = ShardSet.open(url, cache=Cache(tmp_path, 2**30))
        wanted = []
        monkeypatch.setattr(remote.cache, "want", lambda part, number: wanted.append(number))
        stream = make_stream(remote, lanes=1, batch_size=1)
        take(stream, 1)
        _, shard, _ = stream.order.address(29)
        assert shard in wanted

    def test_a_cache_that_would_thrash_is_refused(self, tmp_path):
        folder, url = tmp_path / "many", f"memory://many-{os.getpid()}"
        size = make_set(folder, 29, 1).bytes
        storage.fsspec.filesystem("memory").put(f"{folder}/", url, recursive=True)
        small = ShardSet.open(url, cache=Cache(tmp_path / "cache", size // 2))
        make_stream(ShardSet.open(url)).check_cache(1)  # no cache
        make_stream(ShardSet.open(folder, cache=small.cache)).check_cache(1)  # nothing remote
        with pytest.raises(ValueError, match=r"data.cache_gib .* lower data.lanes 3072 in proportion"):
            make_stream(small).check_cache(1)
        make_stream(small, world=3, lanes=3).check_cache(1)  # one lane per rank: 8 of 29 shards
        with pytest.raises(ValueError, match="lower data.lanes 3 in proportion"):
            make_stream(small, world=3, lanes=3).check_cache(3)
        storage.fsspec.filesystem("memory").rm(url, recursive=True)


@pytest.mark.parametrize("lanes", [0, 3073])
def test_lanes_out_of_range(shards, lanes):
    with pytest.raises(ValueError, match=f"data.lanes {lanes} is not in 1 .. 3072"):
        make_stream(shards, lanes=lanes)


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
