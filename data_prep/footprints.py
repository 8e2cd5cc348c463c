"""``footprints.parquet``: where, when and with which sensors every sample of a shard set was taken.

A row per sample: ``key``, ``shard``, ``west south east north`` in degrees (west > east across the date line; null
without a position), ``time`` (the first date), ``sensors``, ``cloud`` in percent and ``split`` where the source tells.
Made from the samples' JSON members, so it can be made again for any set and pairs and overlaps need no pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.warp import transform

from data_prep.parallel import each
from dinov2.data.shards import storage
from dinov2.data.shards.index import Part, read_index
from dinov2.data.shards.members import JSON, array_name
from dinov2.data.shards.sidecar import Sidecar
from dinov2.files import atomic

NAME = "footprints.parquet"
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "shard": pa.int64(),
        **{side: pa.float64() for side in ("west", "south", "east", "north")},
        "time": pa.string(),
        "sensors": pa.list_(pa.string()),
        "cloud": pa.float64(),
        "split": pa.string(),
    }
)
FEW = 100  # shards, for which starting further processes takes longer than the work
EDGE = 5  # points per side: a straight side in metres is curved in degrees

Box = tuple[float, float, float, float]  # west, south, east, north in degrees; west > east across the date line


def lonlat(crs: str, bounds: Sequence[float]) -> Box:
    """The box in degrees around ``bounds`` (min x, min y, max x, max y in ``crs``)."""
    x0, y0, x1, y1 = bounds
    along_x, along_y = np.linspace(x0, x1, EDGE), np.linspace(y0, y1, EDGE)
    xs = np.concatenate([along_x, along_x, np.full(EDGE, x0), np.full(EDGE, x1)])
    ys = np.concatenate([np.full(EDGE, y0), np.full(EDGE, y1), along_y, along_y])
    if crs != "EPSG:4326":
        xs, ys = (np.array(values) for values in transform(crs, "EPSG:4326", xs, ys))
    if xs.max() - xs.min() > 180:  # both ends of the map: the box lies across the date line
        return float(xs[xs > 0].min()), float(ys.min()), float(xs[xs <= 0].max()), float(ys.max())
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def pieces(box: Box) -> list[Box]:
    """The box as one or two with west <= east."""
    west, south, east, north = box
    return [box] if west <= east else [(west, south, 180.0, north), (-180.0, south, east, north)]


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share more than an edge."""
    return any(p[0] < q[2] and q[0] < p[2] and p[1] < q[3] and q[1] < p[3] for p in pieces(a) for q in pieces(b))


def rows(part: Part, shard: int) -> pa.Table:
    """The rows of one shard's samples."""
    sidecar = Sidecar.unpack(storage.read_file(part.sidecar_path(shard)))
    return pa.Table.from_pylist([_row(part.path(shard), sidecar, i, shard) for i in range(len(sidecar.keys))], SCHEMA)


def _row(path: str, sidecar: Sidecar, index: int, shard: int) -> dict[str, Any]:
    members = sidecar.members(index)
    text = next(m for m in members if m.name == JSON)
    fields = json.loads(bytes(storage.read_range(path, text.start + text.header, text.size)))
    box = lonlat(fields["crs"], fields["footprint"]) if fields["crs"] and fields["footprint"] else (None,) * 4
    names = (array_name(m.name) for m in members if m is not text)
    return {
        "key": sidecar.keys[index],
        "shard": shard,
        **dict(zip(("west", "south", "east", "north"), box, strict=True)),
        "time": min((date for dates in fields["times"].values() for date in dates), default=None),
        "sensors": sorted({name.rsplit("-", 1)[0] for name in names if not name.startswith("label_")}),
        "cloud": fields["meta"].get("cloud"),
        "split": fields["meta"].get("split"),
    }


def write(out: Path, workers: int) -> None:
    """Write the rows of the set in the folder ``out``, in the order of the samples."""
    tables, part = dict[int, pa.Table](), read_index(out)
    shards = len(part.names)
    with atomic(out / NAME) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        following = 0
        for number, table in each(rows, part, range(shards), workers if shards > FEW else 1):
            tables[number] = table  # processes finish out of order
            while following in tables:
                writer.write_table(tables.pop(following))
                following += 1


def read(folder: str | Path) -> pa.Table:
    """The footprints of a set; ValueError where they are absent."""
    path = f"{str(folder).rstrip('/')}/{NAME}"
    try:
        return pq.read_table(pa.BufferReader(storage.read_file(path)))
    except FileNotFoundError:
        raise ValueError(f"{path} is absent: prepare the set with this version, which writes it") from None


def boxes(table: pa.Table) -> Iterator[Box | None]:
    """Every row's box, None without a position."""
    for box in zip(*(table[side].to_pylist() for side in ("west", "south", "east", "north")), strict=True):
        yield None if box[0] is None else box
