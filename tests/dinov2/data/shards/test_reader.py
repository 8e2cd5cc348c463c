import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard

from dinov2.data.shards import DamagedSample, ShardSet, index, storage, verify
from dinov2.data.shards.index import read_index
from dinov2.data.shards.members import MAX_BYTES, decode_array, encode_array
from dinov2.data.shards.sidecar import Member, Sidecar
from tests.dinov2.data.samples import S1, S2, assert_equal, make_sample, make_set


def flip(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x10
    path.write_bytes(data)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    shards = make_set(tmp_path, 6, 6)
    assert len(shards.keys(0)) == 6  # the sidecar is in memory
    reads = []
    whole = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda path, start, size: reads.append(size) or whole(path, start, size))
    full = shards.read(0, 1)
    assert len(reads) == 1  # the members of a sample are adjacent
    part = shards.read(0, 1, images=[S2.key], labels=())
    assert set(part.images) == {S2.key} and set(part.labels) == {"scene", "shares"}
    assert sum(reads[1:]) < reads[0] - full.images[S1.key].nbytes - full.labels["cover"].nbytes
    np.testing.assert_array_equal(part.images[S2.key], full.images[S2.key])
    with pytest.raises(ValueError, match="'s0003' has none of the images sentinel1_rtc-10m") as caught:
        shards.read(0, 3, images=[S1.key])
    assert not isinstance(caught.value, DamagedSample)


def test_several_sets_are_one(tmp_path):
    make_set(tmp_path / "a", 7, 3)
    make_set(tmp_path / "b", 5, 2, first=100)
    shards = ShardSet.open([tmp_path / "a", str(tmp_path / "b")])
    assert shards.counts.tolist() == [3, 3, 1, 2, 2, 1] and len(shards) == 12
    keys = [shards.read(s, i).key for s, n in enumerate(shards.counts) for i in range(n)]
    assert keys == [f"s{i:04d}" for i in [*range(7), *range(100, 105)]]
    assert keys == [k for s in range(6) for k in shards.keys(s)]
    assert shards.bytes == sum(path.stat().st_size for path in tmp_path.glob("*/*.tar"))
    assert shards.images[S2.key] == [S2] and len(shards.images[S1.key]) == 1
    single = [ShardSet.open(tmp_path / n).stats["sentinel2_l2a", "B02"].count for n in "ab"]
    assert shards.stats["sentinel2_l2a", "B02"].count == sum(single)
    assert shards.digest != ShardSet.open([tmp_path / "b", tmp_path / "a"]).digest


def test_labels_that_contradict_each_other(tmp_path):
    for name, classes in (("a", ["x"]), ("b", ["y"])):
        make_set(tmp_path / name, 2, 2, labels={"scene": {"kind": "class", "classes": classes}})
    with pytest.raises(ValueError, match="label 'scene' is described otherwise"):
        _ = ShardSet.open([tmp_path / "a", tmp_path / "b"]).labels


def test_any_fsspec_url(tmp_path):
    make_set(tmp_path, 7, 3)
    filesystem = storage.fsspec.filesystem("memory")
    filesystem.put(f"{tmp_path}/", "/set/", recursive=True)
    shards = ShardSet.open("memory://set")
    for i in range(7):
        assert_equal(shards.read(i // 3, i % 3), make_sample(i))
    assert verify("memory://set").problems == []
    filesystem.rm("/set/shard-000001.idx")
    with pytest.raises(ValueError, match=r"memory://set/shard-000001\.idx is listed .* but absent"):
        ShardSet.open("memory://set")
    filesystem.rm("/set", recursive=True)


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("shard-000001.tar", lambda p: p.unlink(), "absent"),
        ("shard-000001.idx", lambda p: p.unlink(), "absent"),
        ("shard-000002.tar", lambda p: p.write_bytes(p.read_bytes()[:-700]), "bytes, index.parquet lists"),
        ("shard-000000.idx", lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, index.parquet lists"),
        ("index.parquet", lambda p: p.unlink(), "absent"),
        ("index.parquet", lambda p: p.write_bytes(b"PAR1" + bytes(50)), "damaged"),
    ],
)
def test_what_is_missing_or_cut_is_found_on_opening(tmp_path, file, damage, sentence):
    make_set(tmp_path, 8, 3)
    damage(tmp_path / file)
    with pytest.raises(ValueError, match=f"{file} .*{sentence}"):
        ShardSet.open(tmp_path)


def test_a_cut_at_a_member_boundary_is_found(tmp_path):
    make_set(tmp_path, 3, 3)
    path = tmp_path / "shard-000000.tar"
    last = Sidecar.unpack(path.with_suffix(".idx").read_bytes()).members(2)[0]
    path.write_bytes(path.read_bytes()[: last.start])  # webdataset reads this as two samples without a word
    with pytest.raises(ValueError, match=r"shard-000000\.tar has \d+ bytes, index\.parquet lists \d+"):
        ShardSet.open(tmp_path)
    assert any("shard-000000.tar has" in problem for problem in verify(tmp_path).problems)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_any_flipped_byte_of_a_sample_is_found(tmp_path, compression):
    shards = make_set(tmp_path, 3, 3, compression=compression)
    path = tmp_path / "shard-000000.tar"
    good = path.read_bytes()
    own = Sidecar.unpack(path.with_suffix(".idx").read_bytes()).members(1)
    for byte in range(own[0].start, own[-1].end, 37):  # headers, payloads, padding
        flip(path, byte)
        with pytest.raises(DamagedSample, match=r"shard-000000\.tar, sample 's0001': the checksum of .* differs"):
            shards.read(0, 1)
        assert_equal(shards.read(0, 0), make_sample(0))
        assert_equal(shards.read(0, 2), make_sample(2))
        path.write_bytes(good)


def test_any_flipped_byte_of_a_sidecar_is_found(tmp_path):
    make_set(tmp_path, 3, 3)
    data = (tmp_path / "shard-000000.idx").read_bytes()
    for byte in range(len(data)):
        broken = bytearray(data)
        broken[byte] ^= 1
        with pytest.raises(ValueError, match="damaged"):
            Sidecar.unpack(bytes(broken))
    flip(tmp_path / "shard-000000.idx", 40)
    with pytest.raises(DamagedSample, match=r"shard-000000\.idx: the sidecar is damaged"):
        ShardSet.open(tmp_path).read(0, 0)


def test_a_shard_that_vanishes_or_shrinks_while_it_is_open(tmp_path):
    shards = make_set(tmp_path, 6, 3)
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(DamagedSample, match=r"shard-000000\.tar, sample 's0002'"):
        shards.read(0, 2)
    (tmp_path / "shard-000001.tar").write_bytes(b"")
    with pytest.raises(DamagedSample, match="bytes too early"):
        shards.read(1, 0)


def test_a_rewritten_set_is_read_afresh(tmp_path):
    assert make_set(tmp_path, 3, 3).read(0, 0).key == "s0000"
    for path in tmp_path.iterdir():
        path.unlink()
    assert make_set(tmp_path, 3, 3, first=50).read(0, 0).key == "s0050"


@pytest.mark.parametrize("bit", [1, 64])
def test_any_flipped_bit_of_an_index_is_found_or_harmless(tmp_path, bit):
    make_set(tmp_path, 8, 3, labels={"scene": {"kind": "class"}}, provenance={"seed": 1})
    data, good = (tmp_path / "index.parquet").read_bytes(), repr(read_index(tmp_path))
    found = 0
    for byte in range(0, len(data), 23):
        broken = bytearray(data)
        broken[byte] ^= bit
        (tmp_path / "index.parquet").write_bytes(broken)
        try:
            assert repr(read_index(tmp_path)) == good  # columns that reading does not need, page statistics
        except ValueError as error:
            assert "index.parquet" in str(error)
            found += 1
    assert found > len(data) / 23 / 3


def test_an_index_must_not_lead_elsewhere(tmp_path):
    make_set(tmp_path, 3, 3)
    table = pq.read_table(tmp_path / "index.parquet")
    names = table.schema.get_field_index("name")
    pq.write_table(table.set_column(names, "name", [["../shard-000000.tar"]]), tmp_path / "index.parquet")
    with pytest.raises(ValueError, match=r"lists the shard '\.\./shard-000000\.tar'"):
        ShardSet.open(tmp_path)


def test_an_index_of_something_else_or_of_another_version(tmp_path, monkeypatch):
    make_set(tmp_path, 3, 3)
    monkeypatch.setattr(index, "FORMAT_VERSION", 3)
    with pytest.raises(ValueError, match="index.parquet has format version 2, this program reads 3"):
        ShardSet.open(tmp_path)
    table = pq.read_table(tmp_path / "index.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "index.parquet")
    with pytest.raises(ValueError, match="index.parquet is not the index of a shard set"):
        ShardSet.open(tmp_path)
    with pytest.raises(ValueError, match="no shard set is given"):
        ShardSet.open([])


def test_pickles_and_bombs_are_refused():
    array = np.arange(1000, dtype=np.uint16)
    np.testing.assert_array_equal(decode_array(encode_array(array, "zstd"), compressed=True), array)
    objects = encode_array(array, None).replace(b"'<u2'", b"'|O' ")
    with pytest.raises(ValueError, match="dtype object is refused"):
        decode_array(objects, compressed=False)
    with pytest.raises(ValueError, match="cannot hold an array of shape"):
        decode_array(encode_array(array, None)[:-2], compressed=False)
    with pytest.raises(ValueError, match="not an .npy file"):
        decode_array(b"\x80\x04K\x01.        ", compressed=False)
    undeclared = zstandard.ZstdCompressor(write_content_size=False).compress(encode_array(array, None))
    with pytest.raises(ValueError, match="declares -1 bytes is refused"):
        decode_array(undeclared, compressed=True)
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little")  # a frame header that declares 1 TiB
    with pytest.raises(ValueError, match="declares 1099511627776 bytes is refused"):
        decode_array(bomb, compressed=True)


def test_samples_without_a_wanted_image_are_left_out(tmp_path):
    """Sentinel-1 is in the samples whose number 3 does not divide."""
    shards = make_set(tmp_path, 11, 4)
    some = shards.having({S1.key})
    assert some.counts.tolist() == [2, 3, 2] and len(shards.having(None)) == 11
    keys = [key for shard in range(3) for key in some.keys(shard)]
    assert keys == [f"s{i:04d}" for i in (1, 2, 4, 5, 7, 8, 10)]
    assert [some.read(shard, i).key for shard, n in enumerate(some.counts) for i in range(n)] == keys
    assert_equal(some.read(1, 2), make_sample(7))
    assert len(shards.having({S2.key})) == 11 and len(shards.having({"dem-30m"})) == 0
    assert shards.parts[0].combinations == [frozenset({S1.key, S2.key}), frozenset({S2.key})]
    assert shards.parts[0].held.tolist() == [[2, 2], [3, 1], [2, 1]]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.npy", "a/b.npy", "x.pickle", "x.npy.gz", ".npy"])
def test_a_member_of_another_name_is_refused(name):
    sidecar = Sidecar.build([("s0", [Member(0, 512, 8, 0, name)])])
    with pytest.raises(ValueError, match=f"lists a member '{name}', which is refused"):
        Sidecar.unpack(sidecar.pack())


def test_a_member_that_declares_too_much_is_refused(tmp_path):
    huge = Sidecar.build([("s0", [Member(0, 512, MAX_BYTES + 1, 0, "json")])])
    with pytest.raises(ValueError, match=f"declares a member of {MAX_BYTES + 1} bytes .limit {MAX_BYTES}."):
        Sidecar.unpack(huge.pack())
    shards = make_set(tmp_path, 2, 2)
    path = tmp_path / "shard-000000.idx"
    sidecar = Sidecar.unpack(path.read_bytes())
    beyond = [m._replace(size=m.size + 10**8) for m in sidecar.members(1)]
    path.write_bytes(Sidecar.build([("s0000", sidecar.members(0)), ("s0001", beyond)]).pack())
    with pytest.raises(DamagedSample, match=r"sample 's0001': .* is said to end at byte \d+ of \d+"):
        ShardSet.open(tmp_path).read(0, 1)
    assert_equal(shards.read(0, 0), make_sample(0))
