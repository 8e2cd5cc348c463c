"""Streams from stores that are slow, break, vanish, come back or refuse: a real S3 server and a real HTTP server."""

import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dinov2.data.shards import Cache, ShardSet, storage
from dinov2.data.stream import Stream
from tests import tiny
from tests.dinov2.data.samples import S2, assert_equal, make_sample, make_set
from tests.servers import Proxy, RangeServer, S3Server

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("set")
    make_set(out, 29, 4)
    return out


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    with S3Server() as running:
        yield running


@pytest.fixture(scope="module")
def url(server, folder):
    return server.upload(folder)


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # clients keep the endpoint they were made with
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def keys(shards, steps, **options):
    options = {"batch_size": 6, "seed": 5} | options
    stream = Stream(shards, draw=lambda s, key: (s.key, int(s.images[S2.key].sum())), collate=list, **options)
    batches = stream.batches()
    found = list(itertools.islice(batches, steps))
    batches.close()
    return found


def test_a_stream_from_s3_is_the_local_stream(url, folder, tmp_path):
    expected = keys(ShardSet.open(folder), 10)
    assert keys(ShardSet.open(url), 10, workers=2) == expected
    assert keys(ShardSet.open(url, cache=Cache(tmp_path, 2**30)), 10, workers=2) == expected
    assert keys(ShardSet.open(url, cache=Cache(tmp_path, 2**30)), 10) == expected  # from the copies


def test_a_slow_store_only_takes_longer(server, url, folder, monkeypatch):
    with Proxy(server.port, pause=0.005) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow.url)
        assert keys(ShardSet.open(url), 2) == keys(ShardSet.open(folder), 2)


@pytest.mark.parametrize("store", ["s3", "http"])
def test_answers_that_break_off_are_asked_for_again(server, url, folder, tmp_path, monkeypatch, store):
    monkeypatch.setattr(storage, "WAITS", (0.01,) * 8)
    with RangeServer(folder) as http:
        port = server.port if store == "s3" else int(http.url.rsplit(":", 1)[1])
        with Proxy(port) as broken:
            monkeypatch.setenv("AWS_ENDPOINT_URL", broken.url)
            shards = ShardSet.open(url if store == "s3" else broken.url, cache=Cache(tmp_path, 2**30))
            broken.broken = 3
            assert shards.cache.fetch(shards.parts[0], 3)
            assert broken.broken == 0
            assert_equal(shards.read(3, 1), make_sample(13))


def test_https_needs_no_listing_and_sees_damage_on_reading(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS", ())
    make_set(tmp_path, 8, 4)
    with RangeServer(tmp_path) as http:
        shards = ShardSet.open(http.url)
        assert_equal(shards.read(1, 3), make_sample(7))
        (tmp_path / "shard-000001.tar").write_bytes((tmp_path / "shard-000001.tar").read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"http://.*/shard-000001\.tar, sample 's0007': .*ends"):
            shards.read(1, 3)
    with RangeServer(folder, ranges=False) as http:
        with pytest.raises(storage.StorageError, match=r"http://.*the server ignores byte ranges"):
            ShardSet.open(http.url).read(1, 1)


def test_a_truncated_object_is_found_on_opening_or_on_reading(server, folder, tmp_path):
    url = server.upload(folder, "truncated")
    shards = ShardSet.open(url)
    whole = (folder / "shard-000002.tar").read_bytes()
    server.client().put_object(Bucket="truncated", Key="set/shard-000002.tar", Body=whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{url}/shard-000002\.tar has \d+ bytes, index\.parquet lists {len(whole)}"):
        ShardSet.open(url)
    assert_equal(shards.read(2, 0), make_sample(8))
    with pytest.raises(ValueError, match=rf"{url}/shard-000002\.tar, sample 's0011'"):
        shards.read(2, 3)


def test_an_object_that_is_gone_is_waited_for_once(server, folder, monkeypatch, caplog):
    url = server.upload(folder, "holes")
    shards = ShardSet.open(url)
    server.client().delete_object(Bucket="holes", Key="set/shard-000001.tar")
    monkeypatch.setattr(storage, "WAITS", (0.01, 0.01))
    for _ in range(3):
        with pytest.raises(ValueError, match=rf"{url}/shard-000001\.tar, sample 's0005'"):
            shards.read(1, 1)
    assert len([r for r in caplog.records if "trying again" in r.message]) == 2


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://bucket/nothing", r"s3://bucket/nothing/index\.parquet is absent: not a shard set"),
        ("gs://bucket/set", r"gs://bucket/set/index\.parquet: .*install gcsfs"),
        ("what://bucket/set", r"what://bucket/set/index\.parquet: Protocol not known"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_sentence(url, address, sentence):
    with pytest.raises(ValueError, match=sentence):
        ShardSet.open(address)


@pytest.mark.slow  # the client's own attempts take 20 s
def test_a_store_that_stays_away_stops_the_stream_by_name(folder, monkeypatch, caplog):
    monkeypatch.setattr(storage, "WAITS", (0.01,))
    with S3Server() as own:
        url = own.upload(folder)
        for name, value in own.environment.items():
            monkeypatch.setenv(name, value)
        shards = ShardSet.open(url)
        own.kill()
        with pytest.raises(storage.StorageError, match=rf"{url}/shard-.*the store cannot be read .*Could not connect"):
            keys(shards, 5, workers=1)


class TestTraining:
    """train.py with a tiny model on s3://."""

    def run(self, tmp_path, name, url, server, *options, seconds=240):
        raw = tiny.raw_config("byol", url, steps=24, save_every=100, health_every=100)
        config = tiny.write_config(tmp_path / f"{name}.yaml", raw)
        command = [sys.executable, "train.py", "--config-file", config, "--output-dir", tmp_path / name, *options]
        environment = {**os.environ, **server.environment}
        run = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.timer = threading.Timer(seconds, run.kill)
        self.timer.start()
        return run

    def losses(self, folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    def finish(self, run):
        out, err = run.communicate()
        self.timer.cancel()
        return run.returncode, out, err

    @pytest.mark.slow
    @pytest.mark.parametrize("cached", [False, True])
    def test_a_run_outlives_its_store(self, tmp_path, cached):
        """The server is killed in mid-epoch and comes back empty; the objects are uploaded again."""
        shards = tiny.shards(tmp_path / "set", 72)
        cache = [f"data.cache={tmp_path / 'cache'}", "data.cache_gib=0.001"] if cached else []
        with S3Server() as server:
            url = server.upload(shards)
            with Proxy(server.port, pause=0.01) as slow:
                server.environment["AWS_ENDPOINT_URL"], direct = slow.url, server.environment["AWS_ENDPOINT_URL"]
                run = self.run(tmp_path, "s3", url, server, "data.workers=1", *cache)
                metrics = tmp_path / "s3" / "metrics.jsonl"
                while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
                    assert run.poll() is None, run.communicate()[1]
                    time.sleep(0.02)
                server.kill()
                time.sleep(3)
                assert run.poll() is None and len(metrics.read_text().splitlines()) < 24  # it waits
                server.start()
                server.environment["AWS_ENDPOINT_URL"] = direct
                server.upload(shards)
                code, _, err = self.finish(run)
        assert code == 0, err
        code, _, err = self.finish(self.run(tmp_path, "local", str(shards), server))
        assert code == 0, err
        assert self.losses(tmp_path / "s3") == self.losses(tmp_path / "local")

    @pytest.mark.slow
    def test_wrong_credentials_are_one_sentence(self, tmp_path):
        with S3Server() as server:
            url = server.upload(tiny.shards(tmp_path / "set"))
            server.refuse_everybody()
            code, _, err = self.finish(self.run(tmp_path, "refused", url, server))
        assert code == 2
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {url}/index.parquet: access is denied") and "credentials" in line
        assert "Traceback" not in err


def test_the_log_of_a_retry_names_the_url(server, url, monkeypatch, caplog):
    monkeypatch.setattr(storage, "WAITS", (0.01,))
    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError):
        storage.read_range(f"{url}/no-such-object", 0, 10)
    assert [r.message for r in caplog.records if "no-such-object: FileNotFoundError" in r.message]
