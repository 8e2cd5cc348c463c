"""GeoTIFFs cut into chips: what the sources that read rasters share."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

# of the acquisition; TIFFTAG_DATETIME is that of the file, which a later export renews
DATE_TAGS = ("datetime", "start_time", "ACQUISITION_DATE", "DATE_ACQUIRED")
STORED_NODATA = -32768  # of integer images whose baseline offset was taken off (0 is then a reflectance)


@dataclass(frozen=True)
class Chip:
    """``row``, ``column`` of a chip of ``size`` pixels in ``path`` (``size`` None: the whole raster)."""

    path: Path
    row: int = 0
    column: int = 0
    size: int | None = None

    def window(self, raster: rasterio.DatasetReader) -> Window:
        """The chip's pixels; smaller than ``size`` where the raster ends."""
        if self.size is None:
            return Window(0, 0, raster.width, raster.height)
        x, y = self.column * self.size, self.row * self.size
        return Window(x, y, min(self.size, raster.width - x), min(self.size, raster.height - y))

    def is_cut(self, raster: rasterio.DatasetReader) -> bool:
        """Whether the raster ends inside the chip."""
        window = self.window(raster)
        return self.size is not None and (window.width, window.height) != (self.size, self.size)

    @property
    def suffix(self) -> str:
        """What the key of a chip carries after the name of its raster."""
        return "" if self.size is None else f"_r{self.row:03d}c{self.column:03d}"


def chips(path: Path, size: int | None, shape: tuple[int, int]) -> Iterator[Chip]:
    """All chips of a raster of ``shape`` (height, width), those that its edge cuts included."""
    if size is None:
        yield Chip(path)
        return
    for row in range(-(-shape[0] // size)):
        for column in range(-(-shape[1] // size)):
            yield Chip(path, row, column, size)


def place(
    raster: rasterio.DatasetReader, window: Window
) -> tuple[tuple[float, float, float, float] | None, str | None]:
    """Footprint and reference system of a window; (None, None) for a raster without one."""
    if raster.crs is None:
        return None, None
    left, bottom, right, top = raster.window_bounds(window)
    return (min(left, right), min(bottom, top), max(left, right), max(bottom, top)), raster.crs.to_string()


def same_place(a: rasterio.DatasetReader, b: rasterio.DatasetReader) -> bool:
    """Whether two rasters cover the same ground, to a tenth of a pixel; True where one of them does not tell."""
    if a.crs is None or b.crs is None:
        return True
    return a.crs == b.crs and np.abs(np.subtract(a.bounds, b.bounds)).max() <= 0.1 * min(a.res)


def date_of(raster: rasterio.DatasetReader) -> str | None:
    """ISO date of the acquisition from the tags that carry one, else None; ValueError where it is no day."""
    tags = raster.tags()
    for name in DATE_TAGS:
        if match := re.match(r"(\d{4})[-:](\d{2})[-:](\d{2})", tags.get(name, "")):
            try:
                return datetime.date(*map(int, match.groups())).isoformat()
            except ValueError as error:
                raise ValueError(f"{raster.name} has the tag {name}={tags[name]}, which is no date: {error}") from error
    return None


def without_offset(stored: np.ndarray, offset: float, nodata: float | None) -> np.ndarray:
    """int16 numbers less ``offset``, ``nodata`` becoming ``STORED_NODATA``; reflectance 3.3 saturates."""
    moved = np.clip(stored.astype(np.int32) - int(offset), STORED_NODATA + 1, 32767).astype(np.int16)
    if nodata is not None:
        moved[stored == nodata] = STORED_NODATA
    return moved
