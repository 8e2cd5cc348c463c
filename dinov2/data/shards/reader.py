"""Random access to the samples of one or several shard sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from dinov2.data.sample import IMAGE_KEY, ImageSpec, Sample
from dinov2.data.shards import storage
from dinov2.data.shards.cache import Cache
from dinov2.data.shards.index import INDEX, REMEDY, Part, read_index
from dinov2.data.shards.members import JSON, LABEL_PREFIX, array_name, decode
from dinov2.data.shards.sidecar import Member, Sidecar
from dinov2.data.stats import Stats, merge_stats


class DamagedSample(ValueError):
    """A sample (or a whole sidecar) whose bytes are not those that were written; the message names shard and key."""


def _runs(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Groups of members that lie back to back: one read each."""
    run: list[Member] = []
    for member in members:
        if run and member.start != run[-1].end:
            yield run
            run = []
        run.append(member)
    yield run


class ShardSet:
    """One or several shard sets as one: shards are numbered through, each sample carries the specs of its own set.

    ``counts`` int64 ``[S]`` samples per shard; ``images`` image key -> the specs it has in these sets; ``stats`` the
    merged per-band statistics; ``labels`` name -> description; ``parts`` the single sets (provenance, licence).
    Samples with none of ``only`` (image keys; None: all) are left out as if they were not there. Remote shards are
    copied to ``cache`` while they are read. ``checksums=False`` trusts every byte (benchmarks).
    """

    def __init__(
        self,
        parts: Sequence[Part],
        checksums: bool = True,
        only: Collection[str] | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.parts, self.checksums, self.only, self.cache = list(parts), checksums, only, cache
        self.counts = np.concatenate([part.samples_with(only) for part in parts])  # [S]
        self._ends = np.cumsum([len(part.names) for part in parts])  # [parts] shards up to and with each part
        self._sidecar = lru_cache(maxsize=256)(self._open_sidecar)

    def __getstate__(self) -> dict[str, Any]:
        """All but the opened sidecars: loader processes open their own."""
        return {name: value for name, value in vars(self).items() if name != "_sidecar"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._sidecar = lru_cache(maxsize=256)(self._open_sidecar)

    @classmethod
    def open(
        cls, paths: str | Path | Sequence[str | Path], checksums: bool = True, cache: Cache | None = None
    ) -> ShardSet:
        """Open folders or fsspec URLs and check that every listed file is there with its size (ValueError)."""
        parts = [read_index(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
        if not parts:
            raise ValueError("no shard set is given")
        for part in parts:
            for problem in part.problems():
                raise ValueError(problem)
        return cls(parts, checksums, cache=cache)

    def having(self, images: Collection[str] | None) -> ShardSet:
        """The same shards without the samples that hold none of ``images`` (None: with all)."""
        return ShardSet(self.parts, self.checksums, images, self.cache)

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return int(sum(part.bytes.sum() for part in self.parts))

    @property
    def counts_by_set(self) -> list[np.ndarray]:
        """``counts`` of each single set."""
        return np.split(self.counts, self._ends[:-1])

    @cached_property
    def images(self) -> dict[str, list[ImageSpec]]:
        """Image key -> its distinct specs."""
        # compared as text because a nodata of NaN differs from itself
        distinct = {json.dumps(spec.to_dict()): spec for part in self.parts for spec in part.images.values()}
        keys = sorted({spec.key for spec in distinct.values()})
        return {key: [spec for spec in distinct.values() if spec.key == key] for key in keys}

    @cached_property
    def stats(self) -> Stats:
        """Per-band statistics over all sets."""
        return merge_stats([part.stats for part in self.parts])

    @cached_property
    def labels(self) -> dict[str, Any]:
        """Label name -> description; sets that disagree raise."""
        merged: dict[str, Any] = {}
        for part in self.parts:
            for name, description in part.labels.items():
                if merged.setdefault(name, description) != description:
                    raise ValueError(f"{part.folder}: label {name!r} is described otherwise in {self.parts[0].folder}")
        return merged

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the shards' own: equal only for the same shards in the same order."""
        return hashlib.sha256("".join(s for part in self.parts for s in part.sha256).encode()).hexdigest()

    def locate(self, shard: int) -> tuple[Part, int]:
        """The set that holds a shard, and the shard's number within it."""
        which = int(np.searchsorted(self._ends, shard, side="right"))
        return self.parts[which], shard - int(self._ends[which - 1] if which else 0)

    def path(self, shard: int) -> str:
        """Path or URL of a shard."""
        part, number = self.locate(shard)
        return part.path(number)

    def keys(self, shard: int) -> list[str]:
        """Keys of a shard's samples."""
        sidecar, rows = self._sidecar(shard)
        return [sidecar.keys[row] for row in rows]

    def prefetch(self, shards: Collection[int]) -> None:
        """Begin to copy these shards to the cache, where there is one; returns at once."""
        if self.cache:
            for shard in shards:
                part, number = self.locate(shard)
                self.cache.want(part, number)

    def read(
        self,
        shard: int,
        index: int,
        images: Collection[str] | None = None,
        labels: Collection[str] | None = None,
    ) -> Sample:
        """Sample ``index`` of ``shard`` with these images and label arrays (None: all); the rest is not read.

        Labels that are numbers always come along. Raises :class:`DamagedSample`.
        """
        part, number = self.locate(shard)
        sidecar, rows = self._sidecar(shard)
        key, path = sidecar.keys[rows[index]], part.path(number)
        wanted = [m for m in sidecar.members(rows[index]) if _chosen(m.name, images, labels)]
        if not any(IMAGE_KEY.fullmatch(array_name(m.name)) for m in wanted):
            raise ValueError(
                f"{path}, sample {key!r} has none of the images {', '.join(images or ())}: ask the set with .having()"
            )
        try:
            payloads = {m.name: p for run in _runs(wanted) for m, p in self._payloads(part, number, run)}
            return decode(key, payloads, part.images)
        except storage.StorageError:
            raise
        except (OSError, EOFError, KeyError, ValueError) as error:
            raise DamagedSample(f"{path}, sample {key!r}: {error}; {REMEDY}") from error

    def _payloads(self, part: Part, number: int, run: Sequence[Member]) -> Iterator[tuple[Member, memoryview]]:
        """Members that lie back to back, each with its payload."""
        start, end = run[0].start, run[-1].end
        if end > part.bytes[number]:
            raise ValueError(f"{run[-1].name} is said to end at byte {end} of {part.bytes[number]}")
        buffer = self._range(part, number, start, end - start)
        for m in run:
            record = buffer[m.start - start : m.end - start]
            if self.checksums and crc32c(record) != m.crc:
                raise ValueError(f"the checksum of {m.name} differs")
            yield m, record[m.header : m.header + m.size].data

    def _open_sidecar(self, shard: int) -> tuple[Sidecar, Sequence[int]]:
        """A shard's sidecar and which of its samples are in this set."""
        part, number = self.locate(shard)
        path, size = part.sidecar_path(number), int(part.sidecar_bytes[number])
        try:
            sidecar = Sidecar.unpack(self._range(part, number, int(part.bytes[number]), size).tobytes())
            rows = range(len(sidecar.keys)) if self.only is None else sidecar.holding(self.only).tolist()
            if len(rows) != self.counts[shard]:
                raise ValueError(f"the sidecar has {len(rows)} samples, {INDEX} counts {self.counts[shard]}")
        except storage.StorageError:
            raise
        except (OSError, EOFError, ValueError) as error:
            raise DamagedSample(f"{path}: {error}; {REMEDY}") from error
        return sidecar, rows

    def _range(self, part: Part, number: int, start: int, size: int) -> np.ndarray:
        """Bytes of a shard and, behind its end, of its sidecar: from the local copy, or else from where they are."""
        if self.cache and storage.is_url(part.folder):
            try:
                return self.cache.read(part.sha256[number], start, size)
            except FileNotFoundError:  # not yet, or not any more
                self.cache.want(part, number)
        beyond = start - int(part.bytes[number])
        if beyond >= 0:
            return storage.read_range(part.sidecar_path(number), beyond, size)
        return storage.read_range(part.path(number), start, size)


def _chosen(member: str, images: Collection[str] | None, labels: Collection[str] | None) -> bool:
    """Whether a member is asked for."""
    name = array_name(member)
    if name.startswith(LABEL_PREFIX):
        return labels is None or name.removeprefix(LABEL_PREFIX) in labels
    return name == JSON or images is None or name in images
