import hashlib
import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from dinov2.data.shards import verify
from dinov2.data.shards.members import tar_record
from dinov2.data.shards.sidecar import Sidecar
from tests.dinov2.data.samples import make_set


def relist(folder, shard=0):
    """Make the index agree with a tampered shard, as somebody would who tampers on purpose."""
    table = pq.read_table(folder / "index.parquet")
    rows = table.to_pydict()
    data = (folder / rows["name"][shard]).read_bytes()
    rows["bytes"][shard], rows["sha256"][shard] = len(data), hashlib.sha256(data).hexdigest()
    pq.write_table(type(table).from_pydict(rows, schema=table.schema), folder / "index.parquet")


def test_a_good_set_has_no_problem(tmp_path):
    make_set(tmp_path / "a", 8, 3, compression="zstd")
    make_set(tmp_path / "b", 2, 3)
    report = verify([tmp_path / "a", tmp_path / "b"])
    assert (report.shards, report.samples, report.problems) == (4, 10, [])


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    make_set(tmp_path, 2, 2)
    path = tmp_path / "shard-000000.tar"
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for byte in [*rng.integers(0, len(good), 20), len(good) - 1]:  # the last one is in the end-of-file blocks
        bad = bytearray(good)
        bad[byte] ^= 1
        path.write_bytes(bad)
        assert any("shard-000000.tar: the SHA-256 differs" in p for p in verify(tmp_path).problems)


def test_damage_is_located(tmp_path):
    make_set(tmp_path, 6, 3)
    path = tmp_path / "shard-000001.tar"
    member = Sidecar.unpack(path.with_suffix(".idx").read_bytes()).members(1)[0]
    data = bytearray(path.read_bytes())
    data[member.start + member.header + 200] ^= 1
    path.write_bytes(data)
    problems = verify(tmp_path).problems
    assert len(problems) == 2 and "sample 's0004'" in problems[1] and member.name in problems[1]


def test_a_corrupt_header_in_the_middle_is_found(tmp_path):
    make_set(tmp_path, 6, 6)
    path = tmp_path / "shard-000000.tar"
    start = Sidecar.unpack(path.with_suffix(".idx").read_bytes()).members(2)[0].start
    data = bytearray(path.read_bytes())
    data[start : start + 512] = b"x" * 512
    path.write_bytes(data)
    relist(tmp_path)  # even where the digest agrees
    problems = verify(tmp_path).problems
    assert any("4 samples are not in both tar and sidecar (first: 's0002')" in p for p in problems)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../outside.npy"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    make_set(tmp_path, 2, 2)
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(tar_record(name, b"x") + path.read_bytes())
    relist(tmp_path)
    assert any(f"the member {name!r} is refused" in problem for problem in verify(tmp_path).problems)


def test_links_are_refused(tmp_path):
    make_set(tmp_path, 2, 2)
    path = tmp_path / "shard-000000.tar"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("s0000.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    path.write_bytes(buffer.getvalue()[:512] + path.read_bytes())
    relist(tmp_path)
    assert any("'s0000.json' is refused" in problem for problem in verify(tmp_path).problems)


def test_sample_count_must_agree(tmp_path):
    make_set(tmp_path, 5, 3)
    table = pq.read_table(tmp_path / "index.parquet")
    rows = table.to_pydict()
    rows["samples"][1] = 3
    pq.write_table(type(table).from_pydict(rows, schema=table.schema), tmp_path / "index.parquet")
    assert any("the sidecar has 2 samples, index.parquet counts 3" in problem for problem in verify(tmp_path).problems)
