"""Write shard sets: deterministic bytes, every file atomic, restartable shard by shard."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards.index import FORMAT_VERSION, INDEX, stats_from_json, stats_to_json, write_index
from dinov2.data.shards.members import BLOCK, COMPRESSIONS, encode, padded, tar_record
from dinov2.data.shards.reader import ShardSet
from dinov2.data.shards.sidecar import Member, Sidecar
from dinov2.data.stats import Stats, image_stats, merge_stats
from dinov2.files import atomic


def _same_spec(spec: ImageSpec, known: dict[str, dict[str, Any]], where: str) -> None:
    """Note the spec of an image key; ValueError where the key already has another one."""
    raw = spec.to_dict()
    first = known.setdefault(spec.key, raw)
    # compared as text because a nodata of NaN differs from itself
    if json.dumps(first, sort_keys=True) != json.dumps(raw, sort_keys=True):
        raise ValueError(f"{where}: image {spec.key!r} is declared as {raw}, earlier in the set as {first}")


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of one set, in any order and from any number of processes (the object can be pickled).

    ``labels``: name -> ``{"kind": "class" | "mask" | "scalar", "classes": [...], "ignore": -1}``; ``provenance``: where
    the samples come from, seeds and filters included (JSON values): shards of another recipe are never mixed in.
    """

    out: Path
    compression: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression {self.compression!r} is not one of {COMPRESSIONS}")

    @property
    def recipe(self) -> str:
        """Digest of everything that shards of this set have in common."""
        common = [FORMAT_VERSION, self.compression, self.labels, self.provenance, self.licence]
        return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()

    def path(self, number: int) -> Path:
        """Path of a shard."""
        return Path(self.out) / f"shard-{number:06d}.tar"

    def complete(self, number: int) -> bool:
        """Whether a finished shard is there; ValueError where it belongs to another set."""
        path = self.path(number)
        if not path.with_suffix(".json").exists():
            if path.exists() and path.with_name(INDEX).exists():  # somebody's finished set, fetched without fragments
                raise ValueError(f"{path} belongs to a finished set: choose another output folder or delete this one")
            return False
        row = self.row(number)
        if row["recipe"] != self.recipe:
            raise ValueError(
                f"{path} was written with other settings (source files, seed, labels, compression, ...): "
                "choose another output folder or delete this one"
            )
        files = {path: row["bytes"], path.with_suffix(".idx"): row["sidecar_bytes"]}
        return all(file.exists() and file.stat().st_size == size for file, size in files.items())

    def write(self, number: int, samples: Iterable[Sample], notes: Mapping[str, Any] | None = None) -> None:
        """Write shard ``number``; a complete one is kept, and then ``samples`` is not touched.

        ``notes`` (JSON values, looked at after the last sample) are kept in the shard's :meth:`row`.
        ValueError for a key that comes twice, an image whose spec changes, or a non-finite pixel.
        """
        if self.complete(number):
            return
        path = self.path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / INDEX).unlink(missing_ok=True)  # the set is not whole until finish() writes it again
        contents = _Contents()
        with atomic(path) as file:
            for sample in samples:
                file.write(contents.add(sample, self.compression))
            file.write(contents.end())
        sidecar = Sidecar.build(contents.samples).pack()
        with atomic(path.with_suffix(".idx")) as file:
            file.write(sidecar)
        row = {"name": path.name, "sidecar_bytes": len(sidecar), "recipe": self.recipe, **contents.summary()}
        row["notes"] = notes or {}
        with atomic(path.with_suffix(".json")) as file:
            file.write(json.dumps(row, sort_keys=True).encode())

    def row(self, number: int) -> dict[str, Any]:
        """The shard's row of the index, with its recipe, specs, statistics and ``notes``."""
        return json.loads(self.path(number).with_suffix(".json").read_text())

    def keys(self, number: int) -> list[str]:
        """Keys of a complete shard."""
        return Sidecar.unpack(self.path(number).with_suffix(".idx").read_bytes()).keys

    def finish(self, shards: int) -> ShardSet:
        """Join shards ``0 .. shards-1`` to a set: check keys and specs across them and write the index last."""
        for number in range(shards):
            if not self.complete(number):
                raise ValueError(f"{self.path(number)} is not complete: run the preparation again")
        if self.path(shards).exists():
            raise ValueError(
                f"{self.path(shards)} is left over from a longer run, this one has {shards} shards: "
                "delete the folder or choose another"
            )
        for temporary in Path(self.out).glob(".shard-*.tmp"):  # of killed processes: every shard is complete
            temporary.unlink(missing_ok=True)
        rows = [self.row(n) for n in range(shards)]
        if not any(row["samples"] for row in rows):
            raise ValueError(f"{self.out}: there is no sample to write")
        images: dict[str, dict[str, Any]] = {}
        for row in rows:
            for spec in row["specs"].values():
                _same_spec(ImageSpec.from_dict(spec), images, row["name"])
        self._refuse_duplicates(shards)
        stats = merge_stats([stats_from_json(row["stats"]) for row in rows])
        info = {"images": images, "labels": self.labels, "stats": stats_to_json(stats)}
        write_index(Path(self.out), rows, {**info, "provenance": self.provenance, "licence": self.licence})
        return ShardSet.open(self.out)

    def _refuse_duplicates(self, shards: int) -> None:
        """ValueError naming a key that two samples of the set share (64-bit digests: 8 bytes per sample)."""
        digests = [
            np.array([int.from_bytes(hashlib.blake2b(k.encode(), digest_size=8).digest()) for k in self.keys(n)], "<u8")
            for n in range(shards)
        ]
        values, counts = np.unique(np.concatenate(digests), return_counts=True)
        twice = values[counts > 1]
        if not len(twice):
            return
        holders = [(n, int(i)) for n in range(shards) for i in np.flatnonzero(np.isin(digests[n], twice[:1]))]
        key = self.keys(holders[0][0])[holders[0][1]]
        files = ", ".join(self.path(n).name for n, _ in holders)
        raise ValueError(f"{self.out}: the key {key!r} comes twice ({files}); sample keys must be unique in a set")


class _Contents:
    """What a shard holds so far."""

    def __init__(self) -> None:
        self.samples: list[tuple[str, list[Member]]] = []
        self.specs: dict[str, dict[str, Any]] = {}
        self.stats: Stats = {}
        self.places: list[tuple[str | None, tuple[float, float, float, float] | None]] = []
        self.keys: set[str] = set()
        self.combinations: Counter[str] = Counter()  # image keys joined by blanks
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def add(self, sample: Sample, compression: str | None) -> bytes:
        """Note a sample and return its tar records."""
        if sample.key in self.keys:
            raise ValueError(f"the key {sample.key!r} comes twice; sample keys must be unique in a set")
        self.keys.add(sample.key)
        sample.check_finite()
        for name, image in sample.images.items():
            _same_spec(sample.specs[name], self.specs, f"sample {sample.key!r}")
            self.stats = merge_stats([self.stats, image_stats(image, sample.specs[name])])
        self.combinations[" ".join(sorted(sample.images))] += 1
        self.places.append((sample.crs, sample.footprint))
        members, records = [], []
        for name, payload in encode(sample, compression):
            record = tar_record(f"{sample.key}.{name}", payload)
            header = len(record) - padded(len(payload))
            members.append(Member(self.bytes, header, len(payload), crc32c(record), name))
            self.bytes += len(record)
            records.append(record)
        self.samples.append((sample.key, members))
        data = b"".join(records)
        self.sha256.update(data)
        return data

    def end(self) -> bytes:
        """The two zero blocks that end a tar file."""
        data = bytes(2 * BLOCK)
        self.bytes += len(data)
        self.sha256.update(data)
        return data

    def summary(self) -> dict[str, Any]:
        """The shard's row of the index, its specs and its statistics."""
        crs, bounds = _union(self.places)
        return {
            "samples": len(self.samples),
            "bytes": self.bytes,
            "sha256": self.sha256.hexdigest(),
            "images": sorted(self.specs),
            "combinations": self.combinations,
            "specs": self.specs,
            "stats": stats_to_json(self.stats),
            "crs": crs,
            "bounds": bounds,
        }


def _union(places: Sequence[tuple[str | None, tuple[float, float, float, float] | None]]) -> tuple[Any, Any]:
    """``(crs, bounds)`` around all footprints, or two None where there are none or several reference systems."""
    if len({crs for crs, _ in places}) != 1 or any(crs is None or box is None for crs, box in places):
        return None, None
    boxes = np.array([box for _, box in places])  # [S, 4]
    return places[0][0], [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]


def write_shards(
    samples: Iterable[Sample], out: str | Path, *, samples_per_shard: int = 256, **recipe: Any
) -> ShardSet:
    """Write a whole set; ``recipe``: compression, labels, provenance and licence of :class:`ShardWriter`.

    Called again after a kill it keeps complete shards (their samples are drawn again only to compare keys).
    """
    writer, rest, number = ShardWriter(Path(out), **recipe), iter(samples), 0
    while head := list(islice(rest, 1)):
        shard = chain(head, islice(rest, samples_per_shard - 1))
        if not writer.complete(number):
            writer.write(number, shard)
        elif [sample.key for sample in shard] != writer.keys(number):
            raise ValueError(f"{writer.path(number)} holds other samples: delete the folder or choose another")
        number += 1
    return writer.finish(number)
