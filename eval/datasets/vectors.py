"""Polygons (GeoPackage, GeoJSON, shapefile) as the truth of rasters: drawn on their grid, in their reference system."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from affine import Affine
from pyogrio.errors import DataSourceError
from rasterio.features import rasterize
from rasterio.transform import array_bounds
from rasterio.warp import transform
from shapely import STRtree

from eval.datasets.stores import Header, Tile


@lru_cache(maxsize=8)
def load(path: Path, column: str, crs: str, modified_ns: int) -> tuple[STRtree, list[str]]:
    """The polygons of a file in the reference system ``crs``, in its order, and their values of ``column``."""
    try:
        meta, _, wkb, fields = pyogrio.raw.read(path)
    except DataSourceError as error:
        raise ValueError(f"{path} cannot be read ({error}); give a GeoPackage, GeoJSON or shapefile") from error
    names = list(meta["fields"])
    if column not in names:
        raise ValueError(f"{path} has no column {column!r}; it has {', '.join(names)}")
    shapes = shapely.from_wkb(wkb)
    empty = np.flatnonzero(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    if empty.size or meta["crs"] is None:
        what = f"feature {empty[0]} has no polygon" if empty.size else "it does not tell its reference system"
        raise ValueError(f"{path}: {what}; repair the file")

    def project(points: np.ndarray) -> np.ndarray:
        return np.stack(transform(meta["crs"], crs, *points.T), 1)

    values = [f"{v:g}" if isinstance(v, float) else str(v) for v in fields[names.index(column)].tolist()]
    return STRtree(shapely.transform(shapely.force_2d(shapes), project)), values


def near(
    path: Path, column: str, head: Header, tile: Tile | None
) -> tuple[list[Any], list[str], Affine, tuple[int, int]]:
    """Polygons that touch a tile (None: all) of a raster, in the order of the file, and their values of ``column``.

    Also the tile's transform and its height and width.
    """
    if not path.exists():
        raise ValueError(f"the file {path} is missing; correct target.path")
    if head.crs is None:
        raise ValueError(f"polygons of {path} cannot be drawn on images without a reference system")
    place, shape = head.transform, (head.height, head.width)
    if tile:
        place, shape = place @ Affine.translation(tile.column, tile.row), (tile.size, tile.size)
    tree, values = load(path, column, head.crs, path.stat().st_mtime_ns)
    found = np.sort(tree.query(shapely.box(*array_bounds(*shape, place)), predicate="intersects"))
    return tree.geometries[found].tolist(), [values[i] for i in found], place, shape


def draw(shapes: list[Any], numbers: list[int], place: Affine, shape: tuple[int, int], background: int) -> np.ndarray:
    """int64 ``[H, W]``: the number of the last polygon that holds a pixel's centre, else ``background``."""
    if not shapes:
        return np.full(shape, background, np.int64)
    pairs = list(zip(shapes, numbers, strict=True))
    return rasterize(pairs, shape, fill=background, transform=place, dtype="int32").astype(np.int64)
