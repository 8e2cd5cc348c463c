"""Copies of remote shards. The store is fsspec's memory file system, and where processes share it an HTTP server."""

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from dinov2.data.shards import Cache, ShardSet, storage
from dinov2.data.shards.cache import _download
from dinov2.data.shards.index import read_index
from tests.dinov2.data.samples import assert_equal, make_sample, make_set
from tests.servers import RangeServer

GIB = 2**30


@pytest.fixture()
def store(tmp_path):
    """A set of 4 shards of 3 samples under a memory:// URL of its own."""
    make_set(tmp_path / "origin", 12, 3)
    url = f"memory://{tmp_path.name}-{os.getpid()}"
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{tmp_path}/origin/", url, recursive=True)
    yield url
    filesystem.rm(url, recursive=True)


def copies(cache):
    """Complete copies by name."""
    return {p.name: p for p in cache.folder.iterdir() if len(p.name) == 64}


def held(cache):
    return sum(p.stat().st_size for p in cache.folder.iterdir())


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_a_copy_is_the_tar_with_its_sidecar_and_verified(store, tmp_path):
    cache, part = Cache(tmp_path / "cache", GIB), read_index(store)
    assert all(cache.fetch(part, n) for n in range(4))
    assert set(copies(cache)) == set(part.sha256)
    for n, digest in enumerate(part.sha256):
        data = (cache.folder / digest).read_bytes()
        origin = tmp_path / "origin" / part.names[n]
        assert data == origin.read_bytes() + origin.with_suffix(".idx").read_bytes()
        assert hashlib.sha256(data[: part.bytes[n]]).hexdigest() == digest


def test_samples_are_the_same_before_and_after_the_copy(store, tmp_path):
    shards = ShardSet.open(store, cache=Cache(tmp_path / "cache", GIB))
    for i in range(12):
        assert_equal(shards.read(i // 3, i % 3), make_sample(i))  # by ranges, while the copy is made
    wait_for(lambda: len(copies(shards.cache)) == 4)
    fsspec.filesystem("memory").rm(f"{store}/shard-000002.tar")
    fresh = ShardSet(shards.parts, cache=shards.cache)
    for i in range(12):
        assert_equal(fresh.read(i // 3, i % 3), make_sample(i))  # the store is not asked any more
    assert fresh.keys(2) == [f"s{i:04d}" for i in (6, 7, 8)]


def test_the_folder_never_outgrows_its_limit_and_the_longest_unused_goes(store, tmp_path):
    part = read_index(store)
    sizes = [int(a + b) for a, b in zip(part.bytes, part.sidecar_bytes, strict=True)]
    cache = Cache(tmp_path / "cache", sizes[0] + sizes[1] + sizes[2])
    (cache.folder / "thesis.txt").write_text("not ours")
    for n in range(3):
        assert cache.fetch(part, n)
        os.utime(cache.folder / part.sha256[n], (n, n))
    cache.read(part.sha256[0], 0, 10)  # used just now
    assert cache.fetch(part, 3)
    assert set(copies(cache)) == {part.sha256[n] for n in (0, 2, 3)}
    assert sum(p.stat().st_size for p in copies(cache).values()) <= cache.limit
    assert (cache.folder / "thesis.txt").read_text() == "not ours"


def test_a_shard_that_never_fits_is_not_kept(store, tmp_path):
    cache, part = Cache(tmp_path / "cache", 1000), read_index(store)
    assert not cache.fetch(part, 0)
    assert held(cache) == 0
    shards = ShardSet.open(store, cache=cache)
    assert_equal(shards.read(1, 1), make_sample(4))


def test_a_part_in_the_making_counts_in_full_and_an_abandoned_one_makes_room(store, tmp_path):
    part = read_index(store)
    size = int(part.bytes[0] + part.sidecar_bytes[0])
    cache = Cache(tmp_path / "cache", int(size * 1.5))
    other = cache.folder / f"{'0' * 64}.{size}.part"
    with open(other, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody is at work, although nothing is there yet
        assert not cache.fetch(part, 0)
        assert other.exists()
    assert cache.fetch(part, 0)
    assert not other.exists()


def test_a_broken_download_goes_on_where_it_stopped(store, tmp_path, monkeypatch):
    cache, part = Cache(tmp_path / "cache", GIB), read_index(store)
    size = int(part.bytes[1] + part.sidecar_bytes[1])
    whole = (tmp_path / "origin" / part.names[1]).read_bytes()
    read_range, asked = storage.read_range, []
    monkeypatch.setattr(storage, "read_range", lambda *a: asked.append(a[2]) or read_range(*a))
    for begun in (1, 1000, int(part.bytes[1]), size - 1, size):
        (cache.folder / part.sha256[1]).unlink(missing_ok=True)
        data = whole + (tmp_path / "origin" / part.names[1]).with_suffix(".idx").read_bytes()
        (cache.folder / f"{part.sha256[1]}.{size}.part").write_bytes(data[:begun])
        asked.clear()
        assert cache.fetch(part, 1)
        assert sum(asked) == size - begun
        assert (cache.folder / part.sha256[1]).read_bytes() == data


def test_bytes_that_went_wrong_on_the_way_are_fetched_once_more(store, tmp_path):
    cache, part = Cache(tmp_path / "cache", GIB), read_index(store)
    size = int(part.bytes[0] + part.sidecar_bytes[0])
    (cache.folder / f"{part.sha256[0]}.{size}.part").write_bytes(b"wrong")
    assert cache.fetch(part, 0)
    assert hashlib.sha256((cache.folder / part.sha256[0]).read_bytes()[: part.bytes[0]]).hexdigest() == part.sha256[0]


def test_a_sidecar_that_went_wrong_on_the_way_is_fetched_once_more(store, tmp_path):
    cache, part = Cache(tmp_path / "cache", GIB), read_index(store)
    tar = tmp_path / "origin" / part.names[0]
    data = bytearray(tar.read_bytes() + tar.with_suffix(".idx").read_bytes())
    data[-20] ^= 1
    (cache.folder / f"{part.sha256[0]}.{len(data)}.part").write_bytes(data)
    assert cache.fetch(part, 0)
    assert ShardSet([part], cache=cache).keys(0) == ["s0000", "s0001", "s0002"]


def test_a_download_goes_on_behind_what_others_wrote_while_it_waited(store, tmp_path):
    part = read_index(store)
    data, path = (tmp_path / "origin" / part.names[0]).read_bytes(), tmp_path / "part"
    with open(path, "ab") as file:  # and now it waits for the lock
        path.write_bytes(data[:1000])
        assert _download(file, [(part.path(0), len(data))])
    assert path.read_bytes() == data


@pytest.mark.parametrize("damage", ["flip", "cut", "absent"])
def test_a_damaged_shard_is_not_kept_and_its_good_samples_are_read(store, tmp_path, caplog, monkeypatch, damage):
    monkeypatch.setattr(storage, "WAITS", ())
    filesystem, url = fsspec.filesystem("memory"), f"{store}/shard-000001.tar"
    shards = ShardSet.open(store, cache=Cache(tmp_path / "cache", GIB))
    data = bytearray(filesystem.cat_file(url))
    data[-5000] ^= 1  # in the last sample
    filesystem.rm(url)
    if damage != "absent":
        filesystem.pipe_file(url, bytes(data if damage == "flip" else data[:-9000]))
    assert not shards.cache.fetch(shards.parts[0], 1)
    assert copies(shards.cache) == {}
    assert f"{url}: its bytes are not those of the index, and no copy is kept" in caplog.text
    if damage != "absent":
        assert_equal(shards.read(1, 0), make_sample(3))
    with pytest.raises(ValueError, match=r"shard-000001\.tar, sample 's0005'"):
        shards.read(1, 2)


def test_what_stops_a_copy_stops_the_reader(store, tmp_path, monkeypatch):
    shards = ShardSet.open(store, cache=Cache(tmp_path / "cache", GIB))

    def full(file, sources):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dinov2.data.shards.cache._download", full)
    shards.read(0, 0)
    with pytest.raises(
        storage.StorageError, match=r"data.cache .*cache: No space left on device; lower data.cache_gib"
    ):
        wait_for(lambda: shards.read(1, 0) is None)


def test_prefetch_copies_ahead_and_leaves_local_sets_alone(store, tmp_path):
    cache = Cache(tmp_path / "cache", GIB)
    shards = ShardSet.open([store, str(tmp_path / "origin")], cache=cache)
    shards.prefetch({1, 3, 6})
    wait_for(lambda: len(copies(cache)) == 2)
    assert set(copies(cache)) == {shards.parts[0].sha256[1], shards.parts[0].sha256[3]}
    assert_equal(shards.read(6, 0), make_sample(6))


def test_threads_that_want_the_same_shard_download_it_once(store, tmp_path, monkeypatch):
    cache, part = Cache(tmp_path / "cache", GIB), read_index(store)
    asked = []
    read_range = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda *a: asked.append(a) or time.sleep(0.05) or read_range(*a))
    threads = [threading.Thread(target=cache.fetch, args=(part, 2)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 2  # the tar and its sidecar
    assert set(copies(cache)) == {part.sha256[2]}


PROGRAM = """
import sys
from dinov2.data.shards import Cache, ShardSet, cache
cache.CHUNK = 2000
url, folder, limit, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
shards = ShardSet.open(url, cache=Cache(folder, limit))
for turn in range(3):
    for n in range(4):
        shard = (n + first) % 4
        shards.cache.fetch(shards.parts[0], shard)
        for i in range(3):
            assert shards.read(shard, i).key == f"s{3 * shard + i:04d}"
print("done")
"""


def test_processes_share_a_small_cache_and_one_of_them_is_killed(tmp_path):
    make_set(tmp_path / "origin", 12, 3)
    part = read_index(tmp_path / "origin")
    limit = 2 * int((part.bytes + part.sidecar_bytes).max())  # of four shards two fit
    with RangeServer(tmp_path / "origin") as server:
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, server.url, tmp_path / "cache", str(limit), str(first)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for first in range(3)
        ]
        peak = 0
        cache = Cache(tmp_path / "cache", limit)
        wait_for(lambda: list(cache.folder.glob("*.part")))
        runs[0].kill()
        while any(run.poll() is None for run in runs[1:]):
            with cache._locked():  # nothing is half renamed
                peak = max(peak, held(cache))
            time.sleep(0.005)
        for run in runs[1:]:
            out, err = run.communicate()
            assert run.returncode == 0 and out == "done\n", err
        runs[0].communicate()
    assert 0 < peak <= limit
    assert {p.name for p in cache.folder.iterdir()} - {"lock"} <= {
        *part.sha256,
        *(f"{s}.{int(a + b)}.part" for s, a, b in zip(part.sha256, part.bytes, part.sidecar_bytes, strict=True)),
    }
