"""``fetch``: known downloads, continued after any break, checked by size and checksum, unpacked without trust.

Files come by ranges of a few MB into ``NAME.part``, which is renamed once size and checksum are right. Sets that are
not in configs/data_prep/datasets.yaml can be given by ``--table``.

Example: python data_prep/main.py fetch satlas --to data/satlas --include "*metadata*" --unpack
         python data_prep/main.py fetch
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import yaml

from data_prep.parallel import Meter
from dinov2.data.shards import storage

TABLE = Path(__file__).resolve().parents[1] / "configs/data_prep/datasets.yaml"
CHUNK = 8 << 20  # bytes per request


@dataclass(frozen=True)
class Download:
    """A set of the table. ``files``: name -> ``md5:...``, ``sha256:...`` or None; empty: all that the folder lists."""

    url: str
    licence: str
    source: str
    size: str
    files: Mapping[str, str | None] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """One file to fetch."""

    url: str
    name: str  # below --to
    bytes: int
    checksum: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    add = parser.add_argument
    add("name", nargs="?", help="a set of the table; without it the table is shown")
    add("--to", type=Path, help="folder to fetch into")
    add("--include", default="*", help="only files whose name matches, for example 'images/part_0000*'")
    add("--unpack", action="store_true", help="unpack tar and zip files beside themselves")
    add("--table", type=Path, default=TABLE, help="another table of sets")


def table(path: Path) -> dict[str, Download]:
    """The sets of a table; ValueError names what is wrong in it."""
    raw = yaml.safe_load(path.read_text())
    try:
        return {name: Download(**entry) for name, entry in raw.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def listed(download: Download, include: str) -> list[File]:
    """Names, sizes and checksums of all files of a set, as the store tells them."""
    protocol = fsspec.utils.get_protocol(download.url)
    fsspec.config.conf.setdefault(protocol, {}).update(download.options)
    try:
        filesystem, inner = fsspec.core.url_to_fs(download.url)
    except (ImportError, ValueError) as error:  # the package of this scheme is not installed
        raise ValueError(f"{download.url}: {error}") from error
    paths = [f"{inner}/{name}" for name in download.files] or filesystem.find(inner)
    found = []
    for path in paths:
        name = path[len(inner) :].lstrip("/")
        target = download.rename.get(name, name)
        if not fnmatch.fnmatch(target, include):
            continue
        safe(target, download.url)
        info = filesystem.info(path)
        if info.get("size") is None:
            raise ValueError(f"{download.url}/{name}: the server does not tell a size; fetch it by hand")
        lfs = (info.get("lfs") or {}).get("sha256")
        checksum = download.files.get(name) or (lfs and f"sha256:{lfs}")
        found.append(File(f"{download.url}/{name}", target, info["size"], checksum))
    if not found:
        raise ValueError(f"{download.url} has no file that matches {include!r}")
    return found


def safe(name: str, where: str) -> None:
    """ValueError for a name that leads out of its folder."""
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts or ":" in name.split("/")[0]:
        raise ValueError(f"{where}: the name {name!r} leads out of its folder and is refused")


def fetch(args: argparse.Namespace) -> str:
    """Fetch a set; what was done as a sentence."""
    sets = table(args.table)
    if args.name is None:
        return "\n".join(f"{name}: {d.size}, {d.licence}, {d.source}" for name, d in sets.items())
    if args.name not in sets or args.to is None:
        known = f"known sets: {', '.join(sets)}"
        raise ValueError("--to DIR is missing" if args.name in sets else f"no set {args.name!r}; {known}")
    files = listed(sets[args.name], args.include)
    missing = [f for f in files if not there(f, args.to)]
    needed = sum(f.bytes - part(f, args.to).stat().st_size if part(f, args.to).exists() else f.bytes for f in missing)
    args.to.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(args.to).free):
        raise ValueError(f"{args.to} has {free:,} bytes free, {needed:,} are needed: take less with --include")
    with Meter(args.name, sum(-(-f.bytes // CHUNK) for f in missing), "MB") as meter:
        for file in missing:
            _download(file, args.to, meter)
    if args.unpack:
        for file in files:
            unpack(args.to / file.name)
    unchecked = sum(f.checksum is None for f in files)
    return (
        f"{args.to}: {len(files)} files, {sum(f.bytes for f in files):,} bytes, {len(missing)} of them fetched now; "
        f"{unchecked} have no published checksum; licence: {sets[args.name].licence} ({sets[args.name].source})"
    )


def part(file: File, to: Path) -> Path:
    """Where a file lies until it is whole."""
    return to / f"{file.name}.part"


def there(file: File, to: Path) -> bool:
    """Whether a file was fetched before; ValueError where another one has its name."""
    path = to / file.name
    if path.exists() and path.stat().st_size != file.bytes:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, the source {file.bytes}: delete it, then fetch again"
        )
    return path.exists()


def _download(file: File, to: Path, meter: Meter) -> None:
    """One file, from where an earlier attempt ended."""
    partial = part(file, to)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "ab") as target:
        done = target.tell()
        while done < file.bytes:
            data = storage.read_range(file.url, done, min(CHUNK, file.bytes - done))
            target.write(data.data)
            done += len(data)
            meter.advance(len(data) // 1_000_000)
        target.flush()
        os.fsync(target.fileno())
    if done != file.bytes or (file.checksum and digest(partial, file.checksum) != file.checksum):
        partial.unlink()
        raise ValueError(f"{file.url}: size or checksum differ from the published ones; it was deleted, fetch it again")
    partial.rename(to / file.name)


def digest(path: Path, checksum: str) -> str:
    """``algorithm:hex`` of a file by the algorithm of ``checksum``."""
    algorithm = checksum.split(":")[0]
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def unpack(path: Path) -> None:
    """Unpack an archive beside itself (other files are left alone).

    ValueError, before anything is written, for a member that is absolute, leads out by ``..``, is a link or a device,
    and for declared sizes that do not fit on the disk.
    """
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            try:
                members = tar.getmembers()
            except tarfile.TarError as error:
                raise ValueError(f"{path} is damaged ({error}): delete it, then fetch again") from error
            if odd := next((m for m in members if not (m.isreg() or m.isdir())), None):
                raise ValueError(f"{path}: the member {odd.name!r} is neither file nor folder and is refused")
            _check_members(path, {m.name: m.size for m in members})
            tar.extractall(path.parent, filter="data")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_members(path, {m.filename: m.file_size for m in archive.infolist()})
            archive.extractall(path.parent)


def _check_members(path: Path, sizes: Mapping[str, int]) -> None:
    for name in sizes:
        safe(name, str(path))
    if sum(sizes.values()) > (free := shutil.disk_usage(path.parent).free):
        raise ValueError(f"{path} declares {sum(sizes.values()):,} bytes, {free:,} are free: it is not unpacked")
