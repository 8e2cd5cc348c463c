"""GeoTIFFs and other pictures: opened where they lie, decoded from bytes, cut into chips."""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from data_prep.common import Refused
from data_prep.store import READ
from dinov2.data.shards.members import MAX_BYTES
from dinov2.data.shards.storage import is_url

# of the acquisition; TIFFTAG_DATETIME is that of the file, which a later export renews
DATE_TAGS = ("datetime", "start_time", "ACQUISITION_DATE", "DATE_ACQUIRED")
DRIVERS = ["GTiff", "PNG", "JPEG"]  # others (a VRT that names further files) are not opened from bytes of a data set
STORED_NODATA = -32768  # of integer images whose baseline offset was taken off (0 is then a reflectance)
BASELINE_OFFSET = 1000  # stored by Sentinel-2 products since processing baseline 04.00
DETECTED_ABOVE = 900  # smallest stored number of an image that carries it

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Chip:
    """``row``, ``column`` of a chip of ``size`` pixels in ``path`` (``size`` None: the whole raster)."""

    path: str
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
        return "" if self.size is None else chip_suffix(self.row, self.column)


def chip_suffix(row: int, column: int) -> str:
    """What the key of a chip carries after that of the whole."""
    return f"_r{row:03d}c{column:03d}"


def chips(path: str, size: int | None, shape: tuple[int, int]) -> Iterator[Chip]:
    """All chips of a raster of ``shape`` (height, width), those that its edge cuts included."""
    if size is None:
        yield Chip(path)
        return
    for row in range(-(-shape[0] // size)):
        for column in range(-(-shape[1] // size)):
            yield Chip(path, row, column, size)


def open_raster(path: str) -> rasterio.DatasetReader:
    """A raster file or URL, of which only the windows that are read are fetched."""
    return rasterio.open(path, opener=fsspec.open) if is_url(path) else rasterio.open(path)


def read_window(
    path: str, raster: rasterio.DatasetReader, window: Window, bands: Sequence[int] | None = None
) -> np.ndarray:
    """Pixels ``[C, h, w]`` of a window of the open ``path``; counted with the window's share of the file's bytes."""
    filesystem, inner = fsspec.core.url_to_fs(path)
    share = window.width * window.height / (raster.width * raster.height) * len(bands or raster.indexes) / raster.count
    READ.bytes += share * filesystem.size(inner)
    return raster.read(bands, window=window)


@dataclass(frozen=True)
class Raster:
    """A decoded file: pixels ``[C, h, w]``, where they lie (``bounds`` in ``crs``; None where unknown), its nodata."""

    pixels: np.ndarray
    bounds: Bounds | None
    crs: str | None
    nodata: float | None
    gsd_m: float | None
    tags: Mapping[str, str]


def decode(data: bytes, what: str) -> Raster:
    """The raster in the bytes of a file called ``what``; Refused where they are damaged or declare too much."""
    try:
        with warnings.catch_warnings(), MemoryFile(data) as memory:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a PNG or JPEG has no position
            with memory.open(driver=DRIVERS) as raster:
                declared = raster.count * raster.height * raster.width * np.dtype(raster.dtypes[0]).itemsize
                if declared > MAX_BYTES:
                    raise Refused(f"{what} declares {declared} bytes of pixels (limit {MAX_BYTES})")
                bounds, crs = place(raster, Window(0, 0, raster.width, raster.height))
                gsd = raster.res[0] * raster.crs.linear_units_factor[1] if crs and raster.crs.is_projected else None
                return Raster(raster.read(), bounds, crs, raster.nodata, gsd and round(gsd, 2), raster.tags())
    except RasterioError as error:
        raise Refused(f"{what} is damaged: {error}") from error


def stack(rasters: Sequence[Raster], what: str) -> np.ndarray:
    """Single-band rasters of one shape and type as ``[C, h, w]``."""
    kinds = {(raster.pixels.shape, raster.pixels.dtype.name) for raster in rasters}
    if len(kinds) > 1 or rasters[0].pixels.shape[0] != 1:
        raise Refused(f"{what}: bands of one resolution differ in shape or type: {sorted(kinds)}")
    stored = np.concatenate([raster.pixels for raster in rasters])
    return stored.astype(np.float32) if stored.dtype == np.float64 else stored


def place(raster: rasterio.DatasetReader, window: Window) -> tuple[Bounds | None, str | None]:
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


def date_of(tags: Mapping[str, str], what: str) -> str | None:
    """ISO date of the acquisition from the tags that carry one, else None; ValueError where it is no day."""
    for name in DATE_TAGS:
        if match := re.match(r"(\d{4})[-:](\d{2})[-:](\d{2})", tags.get(name, "")):
            try:
                return datetime.date(*map(int, match.groups())).isoformat()
            except ValueError as error:
                raise ValueError(f"{what} has the tag {name}={tags[name]}, which is no date: {error}") from error
    return None


def without_offset(stored: np.ndarray, offset: float, nodata: float | None) -> np.ndarray:
    """int16 numbers less ``offset``, ``nodata`` becoming ``STORED_NODATA``; reflectance 3.3 saturates."""
    moved = np.clip(stored.astype(np.int32) - int(offset), STORED_NODATA + 1, 32767).astype(np.int16)
    if nodata is not None:
        moved[stored == nodata] = STORED_NODATA
    return moved


def carried_offset(stored: np.ndarray, choice: str) -> int:
    """What Sentinel-2 numbers carry added: 1000 or 0 (``detect``: by the lowest valid one; ``remove``, ``none``)."""
    if choice != "detect":
        return BASELINE_OFFSET if choice == "remove" else 0
    valid = stored[stored != 0]
    return BASELINE_OFFSET if valid.size and valid.min() >= DETECTED_ABOVE else 0
