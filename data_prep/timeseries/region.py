"""A region of interest on a grid of pixels, and its tiles."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import shapely
from affine import Affine
from rasterio.warp import transform_geom
from shapely.geometry.base import BaseGeometry

from dinov2.data.series_tiles import Corners

WGS84 = "EPSG:4326"
VECTORS = (".geojson", ".json", ".gpkg", ".shp")


@dataclass(frozen=True)
class Region:
    """``inside`` bool ``[H, W]`` on a north-up grid of square pixels, in metres."""

    crs: str
    transform: Affine
    inside: np.ndarray

    def identity(self) -> dict[str, Any]:
        """What tells it from other regions, as JSON values: reference system, transform, and which pixels."""
        pixels = hashlib.sha256(np.packbits(self.inside).tobytes()).hexdigest()[:12]
        return {"crs": self.crs, "transform": self.transform[:6], "shape": self.inside.shape, "inside": pixels}

    def tiles(self, size: int) -> Iterator[Corners]:
        """Tiles of at most ``size`` pixels that hold a pixel of the region, row by row."""
        height, width = self.inside.shape
        for top in range(0, height, size):
            for left in range(0, width, size):
                corners = left, top, min(left + size, width), min(top + size, height)
                if self.part(corners).any():
                    yield corners

    def part(self, corners: Corners) -> np.ndarray:
        """The tile's pixels of ``inside``."""
        left, top, right, bottom = corners
        return self.inside[top:bottom, left:right]

    def place(self, corners: Corners) -> Affine:
        """The tile's transform."""
        return self.transform @ Affine.translation(*corners[:2])

    def footprint(self, corners: Corners | None = None) -> BaseGeometry:
        """Outline of a tile, or of the whole grid, in degrees."""
        height, width = self.inside.shape
        left, top, right, bottom = corners or (0, 0, width, height)
        ring = [self.transform @ p for p in ((left, top), (right, top), (right, bottom), (left, bottom))]
        return to_degrees(shapely.Polygon(ring), self.crs)


def to_degrees(shape: BaseGeometry, crs: str) -> BaseGeometry:
    """A geometry in longitude and latitude."""
    return shapely.geometry.shape(transform_geom(crs, WGS84, shapely.geometry.mapping(shape)))


def read_region(path: Path, resolution: float, crs: str | None) -> Region:
    """A vector file, or a raster whose pixels of value 1 are the region and whose grid it keeps.

    ``crs``: of the grid; by default the UTM zone of the region's centre. Raises ValueError where the region is empty,
    has no reference system or covers no pixel.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such region of interest")
    if path.suffix.lower() in (".tif", ".tiff"):
        return _of_raster(path, resolution)
    if path.suffix.lower() not in VECTORS:
        raise ValueError(f"{path}: a region of interest is a {', '.join(VECTORS)} or .tif")
    shape, own = read_shape(path)
    degrees = to_degrees(shape, own)
    crs = crs or utm(degrees.centroid.x, degrees.centroid.y)
    shape = shapely.geometry.shape(transform_geom(own, crs, shapely.geometry.mapping(shape)))
    left, bottom, right, top = (  # whole pixels of the zone's grid, so that neighbouring regions share it
        rounded(v / resolution) * resolution
        for v, rounded in zip(shape.bounds, (math.floor, math.floor, math.ceil, math.ceil), strict=True)
    )
    transform = Affine(resolution, 0, left, 0, -resolution, top)
    size = round((top - bottom) / resolution), round((right - left) / resolution)
    inside = rasterio.features.rasterize([shape], size, transform=transform, dtype="uint8") == 1
    if not inside.any():
        raise ValueError(f"{path}: the region holds no pixel centre at {resolution:g} m")
    return Region(crs, transform, inside)


def read_shape(path: Path) -> tuple[BaseGeometry, str]:
    """The union of a vector file's polygons, and its reference system."""
    import pyogrio  # not at the start: it looks for pandas, which takes half a second

    meta, _, geometry, _ = pyogrio.raw.read(path, columns=[])
    shape = shapely.union_all(shapely.make_valid(shapely.from_wkb(geometry)))
    if shape is None or shape.area == 0:
        raise ValueError(f"{path}: the region of interest is empty (it has no polygon)")
    if not meta["crs"]:
        raise ValueError(f"{path} does not tell its reference system")
    return shape, meta["crs"]


def _of_raster(path: Path, resolution: float) -> Region:
    """The region that a raster draws."""
    with rasterio.open(path) as raster:
        if raster.crs is None or not raster.crs.is_projected:
            raise ValueError(f"{path}: a region's raster needs a projected reference system")
        if raster.transform.b or raster.transform.d or raster.transform.e > 0 or raster.res != (resolution, resolution):
            raise ValueError(f"{path}: a region's raster must be north-up with pixels of --resolution {resolution:g}")
        inside = raster.read(1) == 1
        if not inside.any():
            raise ValueError(f"{path}: the region of interest is empty (no pixel is 1)")
        return Region(raster.crs.to_string(), raster.transform, inside)


def utm(lon: float, lat: float) -> str:
    """The UTM zone of a place."""
    zone = int((lon + 180) // 6) % 60 + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"
