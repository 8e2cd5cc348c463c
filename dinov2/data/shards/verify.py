"""Full check of shard sets: every byte, every member, every sample."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from dinov2.data.shards.index import REMEDY, read_index
from dinov2.data.shards.reader import DamagedSample, ShardSet

CHUNK = 1 << 20


@dataclass(frozen=True)
class Report:
    """What was checked, and one sentence per problem (none: all is well)."""

    shards: int
    samples: int
    problems: list[str]


def verify(paths: str | Path | Sequence[str | Path]) -> Report:
    """Check sizes, SHA-256, member names, checksums, decoding, finite pixels and counts; lists what is wrong."""
    parts = [read_index(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    problems = [problem for part in parts for problem in part.problems()]
    if not problems:  # a file that is absent or cut is named once, not once per sample
        shards = ShardSet(parts)
        problems = [problem for shard in range(len(shards.counts)) for problem in _shard_problems(shards, shard)]
    return Report(sum(len(part.names) for part in parts), int(sum(part.samples.sum() for part in parts)), problems)


def _shard_problems(shards: ShardSet, shard: int) -> Iterator[str]:
    """What is wrong with one shard whose files have the right size."""
    part, number = shards.locate(shard)
    path = part.path(number)
    digest = hashlib.sha256()
    with fsspec.open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != part.sha256[number]:
        yield f"{path}: the SHA-256 differs from the index; {REMEDY}"
    try:
        keys = shards.keys(shard)
    except DamagedSample as error:
        yield str(error)
        return
    for index in range(len(keys)):
        try:
            shards.read(shard, index).check_finite()
        except ValueError as error:
            yield str(error) if isinstance(error, DamagedSample) else f"{path}: {error}"
    yield from _name_problems(path, keys)


def _name_problems(path: str, keys: Sequence[str]) -> Iterator[str]:
    """Member names that lead out of a folder, or that belong to no sample of the sidecar."""
    known, seen = set(keys), set()
    try:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.name.startswith("/") or ".." in member.name.split("/") or not member.isreg():
                    yield f"{path}: the member {member.name!r} is refused; do not unpack this file"
                seen.add(member.name.split(".")[0])
    except tarfile.TarError as error:
        yield f"{path}: {error}; {REMEDY}"
        return
    if stray := sorted(known ^ seen):
        yield f"{path}: {len(stray)} samples are not in both tar and sidecar (first: {stray[0]!r}); {REMEDY}"
