import hashlib
import importlib.util
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from data_prep import fetch
from data_prep.main import main
from tests.servers import RangeServer


def made(folder: Path, size: int = 3_000_000) -> dict[str, bytes]:
    """Two files to serve."""
    folder.mkdir()
    files = {"a.bin": hashlib.shake_128(b"a").digest(size), "sub/b.bin": b"short"}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def table(path: Path, url: str, files: dict[str, str | None]) -> str:
    entry = {"url": url, "licence": "CC0-1.0", "source": "here", "size": "3 MB", "files": files}
    path.write_text(yaml.safe_dump({"toy": entry}))
    return str(path)


def checksums(files: dict[str, bytes]) -> dict[str, str | None]:
    return {name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in files.items()}


def test_files_are_fetched_once_and_checked(tmp_path, capsys):
    files = made(tmp_path / "remote")
    with RangeServer(tmp_path / "remote") as server:
        words = ["fetch", "toy", "--to", str(tmp_path / "to"), "--table"]
        words.append(table(tmp_path / "t.yaml", server.url, checksums(files)))
        assert main(words) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "2 files, 3,000,005 bytes, 2 of them fetched now; 0 have no published checksum; licence: CC0-1.0" in said
        before = len([r for r in server.requests if r[1]])
        assert main(words) == 0 and "0 of them fetched now" in capsys.readouterr().out
        assert len([r for r in server.requests if r[1]]) == before
    assert {p.relative_to(tmp_path / "to").as_posix(): p.read_bytes() for p in (tmp_path / "to").rglob("*.*")} == files


def test_a_broken_download_goes_on_where_it_ended(tmp_path, monkeypatch):
    files = made(tmp_path / "remote")
    monkeypatch.setattr(fetch, "CHUNK", 1 << 20)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/a.bin.part").write_bytes(files["a.bin"][: 1 << 20])
    with RangeServer(tmp_path / "remote") as server:
        words = ["fetch", "toy", "--to", str(tmp_path / "to"), "--include", "a*", "--table"]
        main([*words, table(tmp_path / "t.yaml", server.url, checksums(files))])
        ranges = [wanted for path, wanted in server.requests if path == "/a.bin" and wanted]
    assert ranges == ["bytes=1048576-2097151", "bytes=2097152-2999999"]
    assert (tmp_path / "to/a.bin").read_bytes() == files["a.bin"] and not (tmp_path / "to/sub").exists()


def test_wrong_bytes_are_not_kept(tmp_path):
    files = made(tmp_path / "remote")
    with RangeServer(tmp_path / "remote") as server:
        wrong = {**checksums(files), "a.bin": "md5:" + "0" * 32}
        words = ["fetch", "toy", "--to", str(tmp_path / "to"), "--table"]
        words.append(table(tmp_path / "t.yaml", server.url, wrong))
        with pytest.raises(ValueError, match="a.bin: size or checksum differ from the published ones"):
            main(words)
        assert not list((tmp_path / "to").iterdir())
        (tmp_path / "to/a.bin").write_bytes(b"mine")
        with pytest.raises(ValueError, match="a.bin has 4 bytes, the source 3000000: delete it, then fetch again"):
            main(words)


def test_what_cannot_be_fetched_is_one_sentence(tmp_path, capsys):
    with pytest.raises(ValueError, match="no set 'majortom'; known sets: majortom_s2l1c, "):
        main(["fetch", "majortom", "--to", str(tmp_path)])
    with pytest.raises(ValueError, match="--to DIR is missing"):
        main(["fetch", "satlas"])
    if importlib.util.find_spec("huggingface_hub") is None:
        with pytest.raises(ValueError, match="hf://datasets/Major-TOM/Core-DEM: .*huggingface_hub"):
            main(["fetch", "majortom_dem", "--to", str(tmp_path)])
    assert main(["fetch"]) == 0
    assert "mmearth_100k: 48 GB, CC-BY-4.0, https://github.com/vishalned/MMEarth-data" in capsys.readouterr().out
    (tmp_path / "t.yaml").write_text("toy: {url: x, licens: y}")
    with pytest.raises(ValueError, match="t.yaml: .*unexpected keyword argument 'licens'"):
        main(["fetch", "toy", "--to", str(tmp_path), "--table", str(tmp_path / "t.yaml")])


def test_every_set_of_the_table_is_complete():
    for name, entry in fetch.table(fetch.TABLE).items():
        assert entry.licence and entry.size and entry.source.startswith("https://"), name
        assert all(c is None or c.startswith(("md5:", "sha256:")) for c in entry.files.values())
        assert set(entry.rename) <= set(entry.files)


def tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        for member in members:
            file.addfile(member, io.BytesIO(bytes(member.size)) if member.size < 100 else None)
    return path


def member(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_members_that_lead_out_are_refused(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(ValueError, match=f"the name '{name}' leads out of its folder and is refused"):
        fetch.unpack(tar(folder / "x.tar", member("good.txt"), member(name)))
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("good.txt", "x")
        archive.writestr(name, "x")
    with pytest.raises(ValueError, match=f"the name '{name}' leads out of its folder and is refused"):
        fetch.unpack(folder / "x.zip")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["x.tar", "x.zip"]


def test_links_and_bombs_are_refused_and_the_rest_unpacked(tmp_path):
    with pytest.raises(ValueError, match="the member 'link' is neither file nor folder"):
        fetch.unpack(tar(tmp_path / "l.tar", member("link", 0, tarfile.SYMTYPE)))
    path = tar(tmp_path / "b.tar", member("big", 1 << 43))
    with pytest.raises(ValueError, match="b.tar is damaged .unexpected end of data"):
        fetch.unpack(path)
    os.truncate(path, (1 << 43) + 10240)  # a sparse file
    with pytest.raises(ValueError, match="declares 8,796,093,022,208 bytes, .* are free: it is not unpacked"):
        fetch.unpack(path)
    path.unlink()
    fetch.unpack(tar(tmp_path / "g.tar", member("folder/good.txt")))
    assert (tmp_path / "folder/good.txt").read_bytes() == bytes(3)
