"""``index.parquet``: a row per shard, and what holds for the whole set as JSON in the schema's metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google_crc32c import value as crc32c

from dinov2 import __version__
from dinov2.data.sample import ImageSpec
from dinov2.data.shards import storage
from dinov2.data.stats import BandStats, Stats
from dinov2.files import atomic

FORMAT_VERSION = 2
INDEX = "index.parquet"
METADATA, CHECKSUM = b"eo-ssl", b"eo-ssl-crc32c"
SHARD_NAME = re.compile(r"shard-[0-9]{6}\.tar")  # never a path: an index from elsewhere must not lead out of its folder
REMEDY = "fetch or write this set again"
SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "samples": pa.int64(),
        "first": pa.int64(),  # position of the shard's first sample in the set
        "bytes": pa.int64(),
        "sha256": pa.string(),
        "sidecar_bytes": pa.int64(),
        "images": pa.list_(pa.string()),
        "combinations": pa.list_(pa.int64()),  # samples that hold exactly the images of each of the set's combinations
        "crs": pa.string(),  # null where the samples of the shard have none or several
        "bounds": pa.list_(pa.float64()),  # min x, min y, max x, max y in crs
    }
)
COLUMNS = ["name", "samples", "bytes", "sha256", "sidecar_bytes", "combinations"]  # others are for catalogues


def sidecar_name(shard: str) -> str:
    """File name of a shard's sidecar."""
    return shard.removesuffix(".tar") + ".idx"


def stats_to_json(stats: Stats) -> list[list[Any]]:
    """Statistics as ``[[sensor, band, numbers], ...]``."""
    return [[sensor, band, asdict(s)] for (sensor, band), s in sorted(stats.items())]


def stats_from_json(raw: Sequence[Sequence[Any]]) -> Stats:
    """The inverse of :func:`stats_to_json`."""
    return {(sensor, band): BandStats(**numbers) for sensor, band, numbers in raw}


@dataclass(frozen=True)
class Part:
    """One shard set on its own: ``names``, ``sha256`` and the arrays ``[S]`` have an entry per shard."""

    folder: str
    names: list[str]
    sha256: list[str]
    samples: np.ndarray  # [S]
    bytes: np.ndarray  # [S]
    sidecar_bytes: np.ndarray  # [S]
    combinations: list[frozenset[str]]  # [K] image keys that samples of the set hold together
    held: np.ndarray  # [S, K] samples of each shard that hold exactly these
    images: dict[str, ImageSpec]
    labels: dict[str, Any]
    stats: Stats
    provenance: dict[str, Any]
    licence: str

    def path(self, shard: int) -> str:
        """Path or URL of a shard."""
        return f"{self.folder}/{self.names[shard]}"

    def sidecar_path(self, shard: int) -> str:
        """Path or URL of a shard's sidecar."""
        return f"{self.folder}/{sidecar_name(self.names[shard])}"

    def samples_with(self, images: Collection[str] | None) -> np.ndarray:
        """``[S]`` samples of each shard that hold at least one of these images (None: all)."""
        if images is None:
            return self.samples
        return self.held[:, [not combination.isdisjoint(images) for combination in self.combinations]].sum(1)

    def problems(self) -> Iterator[str]:
        """A sentence for every listed file that is absent or has another size (none where a server has no listing)."""
        found = storage.sizes(self.folder)
        if found is None:
            return
        for shard, name in enumerate(self.names):
            for file, size in ((name, self.bytes[shard]), (sidecar_name(name), self.sidecar_bytes[shard])):
                if file not in found:
                    yield f"{self.folder}/{file} is listed in {INDEX} but absent: {REMEDY}"
                elif found[file] != size:
                    yield f"{self.folder}/{file} has {found[file]} bytes, {INDEX} lists {size}: {REMEDY}"


def write_index(out: Path, rows: Sequence[Mapping[str, Any]], info: Mapping[str, Any]) -> None:
    """Write the set's index; ``info`` holds images, labels, stats, provenance and licence as JSON values.

    A row is a row of the index but for ``combinations``, which maps image keys joined by blanks to a number of samples.
    """
    first = np.cumsum([0] + [row["samples"] for row in rows])
    held = sorted({combination for row in rows for combination in row["combinations"]})
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names if name != "first"}
    columns["first"] = first[:-1].tolist()
    columns["combinations"] = [[row.get(c, 0) for c in held] for row in columns["combinations"]]
    own = {"format_version": FORMAT_VERSION, "created_by": f"eo-ssl {__version__}"}
    head = {**own, "combinations": [c.split() for c in held], **info}
    text = json.dumps(head, sort_keys=True).encode()
    schema = SCHEMA.with_metadata({METADATA: text, CHECKSUM: _checksum(text)})
    with atomic(out / INDEX) as file:
        pq.write_table(pa.table(columns, schema=schema), file, write_page_checksum=True)


def read_index(folder: str | Path) -> Part:
    """Open one set's index; ValueError says what is missing or not readable."""
    folder = str(folder).rstrip("/")
    path = f"{folder}/{INDEX}"
    table, info = _load(path)
    names = table["name"].to_pylist()
    if strange := next((name for name in names if not SHARD_NAME.fullmatch(name)), None):
        raise ValueError(f"{path} lists the shard {strange!r}: names must be shard-000000.tar and so on")
    return Part(
        folder,
        names,
        table["sha256"].to_pylist(),
        table["samples"].to_numpy(),
        table["bytes"].to_numpy(),
        table["sidecar_bytes"].to_numpy(),
        [frozenset(combination) for combination in info["combinations"]],
        table["combinations"].combine_chunks().flatten().to_numpy().reshape(len(names), len(info["combinations"])),
        {key: ImageSpec.from_dict(spec) for key, spec in info["images"].items()},
        info["labels"],
        stats_from_json(info["stats"]),
        info["provenance"],
        info["licence"],
    )


def _load(path: str) -> tuple[pa.Table, dict[str, Any]]:
    """Columns and set-level values of an index, every byte of both checked."""
    try:
        data = storage.read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is absent: not a shard set, or its preparation was not finished (run the same command again)"
        ) from None
    try:
        # ParquetFile, not read_table, which loads 40 MB of dataset machinery into every process; BufferReader, not
        # BytesIO, whose reads run on a thread of Arrow's that can abort a process which ends at the same moment
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True)
        table = file.read(COLUMNS, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): {REMEDY}") from error
    texts = table.schema.metadata or {}
    if METADATA not in texts:
        raise ValueError(f"{path} is not the index of a shard set")
    if texts.get(CHECKSUM) != _checksum(texts[METADATA]):
        raise ValueError(f"{path} is damaged (the checksum of its metadata differs): {REMEDY}")
    info = json.loads(texts[METADATA])
    if info["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {info['format_version']}, this program reads {FORMAT_VERSION}: "
            "write the set again with this version"
        )
    if not table.schema.equals(pa.schema([SCHEMA.field(name) for name in COLUMNS])):
        raise ValueError(f"{path} is damaged (its columns are {table.schema.names}): {REMEDY}")
    return table, info


def _checksum(text: bytes) -> bytes:
    """CRC-32C in hexadecimal: parquet checks its pages, but not the metadata in its footer."""
    return b"%08x" % crc32c(text)
