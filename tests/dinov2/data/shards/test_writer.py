import hashlib
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import webdataset

from dinov2.data.shards import ShardSet, ShardWriter, write_shards
from dinov2.data.shards.members import decode_array
from dinov2.data.stats import image_stats, merge_stats
from tests.dinov2.data.samples import S1, S2, assert_equal, make_sample, make_set


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_round_trip(tmp_path, compression):
    shards = make_set(tmp_path, 20, 6, compression=compression)
    assert len(shards) == 20 and shards.counts.tolist() == [6, 6, 6, 2]
    for i in range(20):
        assert_equal(shards.read(i // 6, i % 6), make_sample(i))


def test_any_layout_survives(tmp_path):
    plain = make_sample(0)
    series = np.arange(3 * 4 * 2 * 5, dtype=np.uint16).reshape(3, 4, 5, 2).swapaxes(2, 3)  # not contiguous
    samples = [
        replace(plain, images={S2.key: series}, times={S2.key: ["2021-01-01", "2021-02-01", "2021-03-01"]}),
        replace(plain, key="no-place", footprint=None, crs=None, labels={}, meta={}, times={}),
        replace(plain, key="k" * 150, meta={"count": np.int64(3), "nested": {"a": [None, True, "é"]}}),
    ]
    shards = write_shards(samples, tmp_path)
    for i, sample in enumerate(samples):
        assert_equal(shards.read(0, i), sample)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_plain_webdataset_reads_the_shards(tmp_path, compression):
    make_set(tmp_path, 9, 5, compression=compression)
    urls = [str(p) for p in sorted(tmp_path.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    suffix = "npy" if compression is None else "npy.zst"
    assert [s["__key__"] for s in found] == [make_sample(i).key for i in range(9)]
    for i, s in enumerate(found):
        pixels = s[f"{S2.key}.{suffix}"]
        pixels = pixels if compression is None else decode_array(pixels, compressed=True)
        np.testing.assert_array_equal(pixels, make_sample(i).images[S2.key])
        assert s["json"]["labels"]["scene"] == i % 5 and s["json"]["crs"] == "EPSG:32632"
        assert (f"{S1.key}.{suffix}" in s) == bool(i % 3)


def test_index_says_what_the_set_holds(tmp_path):
    labels = {"scene": {"kind": "class", "classes": list("abcde"), "ignore": -1}}
    shards = make_set(tmp_path, 7, 4, labels=labels, provenance={"seed": 3}, licence="CC-BY-4.0")
    assert list(shards.images) == [S1.key, S2.key] and shards.images[S2.key] == [S2]
    assert shards.labels == labels
    assert (shards.parts[0].provenance, shards.parts[0].licence) == ({"seed": 3}, "CC-BY-4.0")
    samples = [make_sample(i) for i in range(7)]
    direct = merge_stats([image_stats(s.images[k], s.specs[k]) for s in samples for k in s.images])
    assert shards.stats.keys() == direct.keys()
    for band, expected in direct.items():
        got = shards.stats[band]
        assert (got.unit, got.count, got.min, got.max) == (expected.unit, expected.count, expected.min, expected.max)
        assert got.mean == pytest.approx(expected.mean, rel=1e-12) and got.m2 == pytest.approx(expected.m2, rel=1e-9)


def test_bytes_depend_on_the_samples_only(tmp_path):
    for name in "ab":
        make_set(tmp_path / name, 8, 3, compression="zstd")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_shards_may_be_written_in_any_order_by_any_process(tmp_path):
    make_set(tmp_path / "whole", 8, 3)
    writer = ShardWriter(tmp_path / "parts")
    for number in (2, 0, 1):
        writer.write(number, [make_sample(i) for i in range(3 * number, min(3 * number + 3, 8))])
    writer.finish(3)
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


def test_an_empty_shard_is_allowed_and_an_empty_set_is_not(tmp_path):
    writer = ShardWriter(tmp_path / "a")
    writer.write(0, [])
    writer.write(1, [make_sample(0)])
    assert writer.finish(2).counts.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no sample"):
        write_shards([], tmp_path / "b")


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from dinov2.data.shards import write_shards\n"
        "from tests.dinov2.data.samples import make_sample\n"
        "def samples():\n"
        "    for i in range(20):\n"
        "        if i == 15: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield make_sample(i)\n"
        f"write_shards(samples(), Path({str(tmp_path / 'killed')!r}), samples_per_shard=6)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("shard-*")}
    assert sorted(n for n in kept if n.endswith(".tar")) == ["shard-000000.tar", "shard-000001.tar"]
    with pytest.raises(ValueError, match="run the same command again"):
        ShardSet.open(tmp_path / "killed")
    make_set(tmp_path / "killed", 20, 6)
    make_set(tmp_path / "straight", 20, 6)
    assert all((tmp_path / "killed" / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert digests(tmp_path / "killed") == digests(tmp_path / "straight")  # no half-written file is left either


def test_a_kept_shard_does_not_touch_its_samples(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.write(0, [make_sample(0)])
    writer.write(0, (1 / 0 for _ in range(1)))
    assert writer.finish(1).read(0, 0).key == "s0000"


def test_a_damaged_shard_is_written_again(tmp_path):
    make_set(tmp_path, 8, 3)
    before = digests(tmp_path)
    (tmp_path / "shard-000001.tar").write_bytes(b"cut")
    (tmp_path / "shard-000002.idx").unlink()
    make_set(tmp_path, 8, 3)
    assert digests(tmp_path) == before


def test_sets_are_never_mixed(tmp_path):
    make_set(tmp_path, 8, 3, provenance={"seed": 0})
    with pytest.raises(ValueError, match=r"shard-000000\.tar was written with other settings"):
        make_set(tmp_path, 8, 3, provenance={"seed": 1})
    with pytest.raises(ValueError, match=r"shard-000000\.tar holds other samples"):
        make_set(tmp_path, 8, 3, first=5, provenance={"seed": 0})
    with pytest.raises(ValueError, match=r"shard-000002\.tar is left over"):
        make_set(tmp_path, 6, 3, provenance={"seed": 0})
    with pytest.raises(ValueError, match=r"shard-000003\.tar is not complete"):
        ShardWriter(tmp_path, provenance={"seed": 0}).finish(4)


def test_a_fetched_set_is_not_written_over(tmp_path):
    make_set(tmp_path, 8, 3)
    for fragment in tmp_path.glob("*.json"):
        fragment.unlink()
    with pytest.raises(ValueError, match=r"shard-000000\.tar belongs to a finished set"):
        make_set(tmp_path, 8, 3)
    assert len(ShardSet.open(tmp_path)) == 8


def test_duplicate_keys_are_named(tmp_path):
    with pytest.raises(ValueError, match="'s0001' comes twice"):
        write_shards([make_sample(1), make_sample(1)], tmp_path / "within")
    with pytest.raises(ValueError, match=r"'s0001' comes twice \(shard-000000.tar, shard-000002.tar\)"):
        write_shards([make_sample(i) for i in (1, 2, 3, 4, 1)], tmp_path / "across", samples_per_shard=2)


def test_an_image_key_means_one_thing_in_a_set(tmp_path):
    odd = replace(make_sample(3), specs={S2.key: replace(S2, scale=1e-3)})
    for per_shard in (1, 4):
        with pytest.raises(ValueError, match="'sentinel2_l2a-10m' is declared as .*0.001.*earlier"):
            write_shards([make_sample(0), odd], tmp_path / str(per_shard), samples_per_shard=per_shard)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": {"a.b": 1}}, "label 'a.b' must be lower case"),
        ({"labels": {"names": np.array(["x"], dtype=object)}}, "'label_names': .* of dtype object are refused"),
        ({"meta": {"cloud": float("nan")}}, "'s0000': .* do not fit JSON"),
        ({"meta": {"path": object()}}, "'s0000': .* do not fit JSON"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_shards([make_sample(0, **changes)], tmp_path)


def test_a_non_finite_pixel_is_refused(tmp_path):
    sample = make_sample(1)
    sample.images[S1.key][1, 2, 2] = np.inf
    with pytest.raises(ValueError, match=r"'s0001', image 'sentinel1_rtc-10m', band VH: 1 non-finite"):
        write_shards([sample], tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_unknown_compression(tmp_path):
    with pytest.raises(ValueError, match="compression 'gzip'"):
        make_set(tmp_path, compression="gzip")


def test_a_disk_that_is_full_is_named_and_leaves_no_shard(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"shard-000000\.tar"):
            make_set(tmp_path, 20, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert len(make_set(tmp_path, 20, 20)) == 20
