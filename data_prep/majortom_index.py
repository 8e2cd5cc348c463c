"""Which patches a Major-TOM folder has: ``metadata.parquet`` as published, or the tree of the extracted layout.

    <folder>/metadata.parquet, images/part_00001.parquet        published: one row group per patch
    <folder>/[...]/<row>/<cell>/[<product>/]B02.tif             extracted; an index is rebuilt from the names

Pickled indices that some tools leave beside extracted files are not opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from data_prep.footprints import Box
from data_prep.store import Store

METADATA = "metadata.parquet"
CELL = re.compile(r"\d+[UD]_\d+[RL]")
TIME = re.compile(r"(\d{4})(\d{2})(\d{2})T\d{6}")
COLUMNS = ("product_id", "timestamp", "cloud_cover", "nodata", "orbit_state", "centre_lon", "centre_lat")
HALF_SIDE = 5340.0  # metres: cells of 10 km with a margin
DEGREE = 111_195.0  # metres per degree of latitude on the grid's sphere of 6378.137 km, rounded down


@dataclass(frozen=True, slots=True)
class Patch:
    """One grid cell as one modality saw it: what is known before its pixels are read, and where they are.

    ``row`` is a row group of the parquet file ``part``; -1 where ``part`` is a folder of GeoTIFFs.
    """

    cell: str
    product: str | None
    date: str | None
    cloud: float | None  # percent
    nodata: float | None  # fraction
    orbit: str | None
    box: Box | None
    part: str
    row: int


def patches(store: Store, folder: str) -> Iterator[Patch]:
    """Every patch of a modality's folder."""
    published, known = store.exists(f"{folder}/images"), store.exists(f"{folder}/{METADATA}")
    if published and not known:
        raise ValueError(f"{store.path(folder)}/{METADATA} is missing: fetch it beside images/")
    if published:
        yield from _metadata(store, folder)
        return
    rows = {(p.cell, p.product): p for p in _metadata(store, folder)} if known else {}
    for cell, product, path in sorted(_tree(store, folder)):
        row = rows.get((cell, product))
        date = row.date if row else _date(product)
        about = (row.cloud, row.nodata, row.orbit, row.box) if row else (None,) * 4
        yield Patch(cell, product, date, *about, path, -1)


def _metadata(store: Store, folder: str) -> Iterator[Patch]:
    """The rows of ``metadata.parquet``, in their order."""
    with store.open(f"{folder}/{METADATA}") as file:
        table = pq.ParquetFile(file, pre_buffer=False)
        names = table.schema_arrow.names
        if lacking := {"grid_cell", "parquet_url", "parquet_row"} - set(names):
            raise ValueError(f"{store.path(folder)}/{METADATA} has no column {', '.join(sorted(lacking))}")
        wanted = [name for name in ("grid_cell", "parquet_url", "parquet_row", *COLUMNS) if name in names]
        for batch in table.iter_batches(columns=wanted, use_threads=False):
            for row in batch.to_pylist():
                box = _box(row["centre_lon"], row["centre_lat"]) if "centre_lon" in row else None
                yield Patch(
                    row["grid_cell"],
                    row.get("product_id"),
                    _date(str(row.get("timestamp"))),
                    row.get("cloud_cover"),
                    row.get("nodata"),
                    row.get("orbit_state"),
                    box,
                    f"{folder}/images/{row['parquet_url'].rsplit('/', 1)[-1]}",
                    row["parquet_row"],
                )


def _tree(store: Store, folder: str) -> set[tuple[str, str | None, str]]:
    """``(cell, product, folder)`` of all GeoTIFFs below a folder."""
    found = set()
    for name in store.files((".tif",), folder):
        parents = name.split("/")[:-1]
        at = next((i for i, part in enumerate(parents) if CELL.fullmatch(part)), None)
        if at is not None:
            found.add((parents[at], parents[at + 1] if at + 1 < len(parents) else None, "/".join(parents)))
    if not found:
        raise ValueError(f"{store.path(folder)} has neither images/part_*.parquet nor <row>/<cell>/<product>/*.tif")
    return found


def _date(text: str | None) -> str | None:
    """ISO date of the first ``YYYYMMDDTHHMMSS`` or ISO time in a product's name or time stamp."""
    if match := TIME.search(text or "") or re.match(r"(\d{4})-(\d{2})-(\d{2})", text or ""):
        return "-".join(match.groups())
    return None


def _box(lon: float, lat: float) -> Box:
    """The cell's box in degrees around its centre, a little too large rather than too small."""
    high = HALF_SIDE / DEGREE
    if abs(lat) + high > 89.9:  # all meridians meet
        return -180.0, max(-90.0, lat - high), 180.0, min(90.0, lat + high)
    wide = high / math.cos(math.radians(abs(lat) + high))
    west, east = lon - wide, lon + wide
    return west + 360 * (west < -180), lat - high, east - 360 * (east > 180), lat + high
