"""Files in the exact layouts of published sets, with pixels that can be traced; shared by the tests of the sources."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from data_prep.main import main
from dinov2.data.sample import Sample
from dinov2.data.shards import ShardSet, verify

S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
GSD = {"B01": 60, "B09": 60, "B10": 60, **dict.fromkeys(("B02", "B03", "B04", "B08"), 10)}  # others 20 m


def prepared(source: str, src: object, out: Path, *words: str) -> list[Sample]:
    """The samples of a set made by the command line, every byte of it checked."""
    assert main([source, "--src", str(src), "--out", str(out), *words]) == 0
    assert verify(out).problems == []
    shards = ShardSet.open(out)
    return [shards.read(s, i) for s, n in enumerate(shards.counts) for i in range(n)]


def tif(image: np.ndarray, left: float = 500_000, top: float = 4_000_000, gsd: float = 10, crs="EPSG:32631", **profile):
    """Bytes of a GeoTIFF of ``[C, h, w]`` or ``[h, w]``."""
    image = image[None] if image.ndim == 2 else image
    place = {"crs": crs, "transform": from_origin(left, top, gsd, gsd)} if crs else {}
    shape = {"count": image.shape[0], "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", compress="deflate", **shape, **place, **profile) as raster:
            raster.write(image)
        return memory.read()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def majortom(folder: Path, rows: list[dict], metadata: list[dict], per_file: int = 2) -> None:
    """A published Major-TOM modality: one row per row group, ``per_file`` rows per part, ``metadata.parquet``."""
    (folder / "images").mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    for start in range(0, len(rows), per_file):
        name = f"part_{1 + start // per_file:05d}.parquet"
        pq.write_table(table.slice(start, per_file), folder / "images" / name, row_group_size=1)
        for at, entry in enumerate(metadata[start : start + per_file]):
            url = f"https://huggingface.co/datasets/Major-TOM/{folder.name}/resolve/main/images/{name}"
            entry |= {"parquet_url": url, "parquet_row": at}
    pq.write_table(pa.Table.from_pylist(metadata), folder / "metadata.parquet")


def mmearth(folder: Path, arrays: dict[str, np.ndarray], tiles: dict[str, dict], splits: dict[str, list[int]]) -> None:
    """An MMEarth v001 folder: HDF5 with a tile per gzip chunk, splits, statistics and tile information as JSON."""
    folder.mkdir(parents=True)
    with h5py.File(folder / f"{folder.name}.h5", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression="gzip")
        record = np.dtype([("tile_id", "S100"), ("S2_type", "S10")])
        rows = [(name, about["S2_type"]) for name, about in tiles.items()]
        file.create_dataset("metadata", data=np.array(rows, record))
    for what, value in (("splits", splits), ("tile_info", tiles), ("band_stats", {})):
        (folder / f"{folder.name}_{what}.json").write_text(json.dumps(value))


def zarr_zip(path: Path, arrays: dict[str, np.ndarray], chunks: dict[str, tuple[int, ...]] | None = None) -> bytes:
    """A zip of a zarr v2 group; ``chunks`` of some arrays, others are one chunk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store = zarr.storage.ZipStore(path, mode="w")
    group = zarr.create_group(store, zarr_format=2)
    for name, values in arrays.items():
        own = (chunks or {}).get(name, values.shape or (1,))
        group.create_array(name, data=values, chunks=own if values.shape else "auto")
    store.close()
    return path.read_bytes()
