"""Files of pixels: what a header says, and the pixels of a window. Every complaint names the file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window


@dataclass(frozen=True)
class Header:
    """Bands, height, width and dtype of a raster; where its pixels lie (None: it does not tell)."""

    count: int
    height: int
    width: int
    dtype: str
    transform: Affine
    crs: str | None


@dataclass(frozen=True)
class Tile:
    """Pixels ``[row, row + size)`` x ``[column, column + size)`` of a grid."""

    row: int
    column: int
    size: int

    def on(self, ratio: float) -> Window:
        """The same ground on a grid whose pixels are ``ratio`` times as wide."""
        row, column, size = (x / ratio for x in (self.row, self.column, self.size))
        return Window(column, row, size, size)


@contextmanager
def opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A raster (GeoTIFF, PNG, JPEG); ValueError where it is missing, damaged or cut short."""
    if not path.is_file():
        raise ValueError(f"the file {path} is missing; get the data again or leave the sample out of the split")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pictures have no place on the ground
            with rasterio.open(path) as raster:
                yield raster
    except RasterioError as error:
        raise ValueError(f"{path} is damaged or no raster ({error}); get the file again") from error


def header(path: Path) -> Header:
    """What the file says about itself; reads no pixel."""
    with opened(path) as raster:
        crs = raster.crs.to_string() if raster.crs else None
        return Header(raster.count, raster.height, raster.width, raster.dtypes[0], raster.transform, crs)


def read(path: Path, channels: Sequence[int] | None = None, window: Window | None = None) -> np.ndarray:
    """``[C, H, W]``: these bands of the file (from 1; None: all) in ``window`` (None: everywhere)."""
    with opened(path) as raster:
        return raster.read(channels and list(channels), window=window)
