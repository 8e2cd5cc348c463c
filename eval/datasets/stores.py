"""Files of pixels: what a header says, and the pixels of a window. Every complaint names the file.

Rasters (GeoTIFF, PNG, JPEG) are read by rasterio. Arrays (npy, npz, HDF5, zarr) need to be told what their axes
are: ``C``, ``H`` and ``W`` of an image, ``T`` for dates, ``N`` for samples; ``stack.h5::images`` is the array
``images`` of a file. Rasters and HDF5 files may lie in a tortilla: ``set.tortilla::sample_1/image`` or
``set.tortilla::sample_1/series::images`` (eval/datasets/tortilla.py).
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import zarr
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from eval.datasets import tortilla


@dataclass(frozen=True)
class Header:
    """Samples, dates, bands, height, width and dtype of a file; where its pixels lie (``crs`` None: unknown)."""

    samples: int
    dates: int
    count: int
    height: int
    width: int
    dtype: str
    transform: Affine = Affine.identity()
    crs: str | None = None


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


def header(path: Path, axes: str = "") -> Header:
    """What the file says about itself; reads no pixel. ``axes`` (of an array) are explained above."""
    if axes:
        with opened_array(path) as array:
            shape, dtype = array.shape, str(array.dtype)
        if len(shape) != len(axes):
            raise ValueError(f"{path} has the shape {shape}, but its axes are given as {axes}")
        sizes = dict(zip(axes, shape, strict=True))
        n, t, c, h, w = (sizes.get(axis, 1) for axis in "NTCHW")
        return Header(n, t, c, h, w, dtype)
    with opened(path) as raster:
        crs = raster.crs.to_string() if raster.crs else None
        return Header(1, 1, raster.count, raster.height, raster.width, raster.dtypes[0], raster.transform, crs)


def read(
    path: Path, channels: Sequence[int] | None = None, window: Window | None = None, axes: str = "", sample: int = 0
) -> np.ndarray:
    """``[C, H, W]``, or ``[T, C, H, W]`` with dates, in ``window`` (None: everywhere).

    ``channels`` are bands of the file, from 1 (None: all); ``sample`` is the number along the axis ``N``.
    """
    if not axes:
        with opened(path) as raster:
            return raster.read(channels and list(channels), window=window)
    rows, columns = window.toslices() if window else (slice(None), slice(None))
    place: dict[str, Any] = {"N": sample, "H": rows, "W": columns}
    with opened_array(path) as array:
        image = np.asarray(array[tuple(place.get(axis, slice(None)) for axis in axes)])
    left = axes.replace("N", "")
    image = image.transpose([left.index(axis) for axis in "TCHW" if axis in left])
    image = image if "C" in axes else image[..., None, :, :]
    return image if channels is None else image[..., [c - 1 for c in channels], :, :]


@contextmanager
def opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A raster; ValueError where it is missing, damaged or cut short."""
    require(path)
    name = tortilla.subfile(path) if disk(path).suffix == tortilla.SUFFIX else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pictures have no place on the ground
            # read at once, a PNG that is cut short would be garbage without an error
            with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False), rasterio.open(name) as raster:
                yield raster
    except RasterioError as error:
        raise ValueError(f"{path} is damaged or no raster ({error}); get the file again") from error


@contextmanager
def opened_array(path: Path) -> Iterator[Any]:
    """An array, nothing of it read yet; ValueError where it is missing, damaged or cut short. Pickles are refused."""
    file, member = disk(path), str(path).rpartition("::")[2]
    require(path)
    try:
        if file.suffix == tortilla.SUFFIX:
            with tortilla.stream(whole(path)) as stream, h5py.File(stream) as group:
                yield group[member]
        elif file.suffix == ".npy":
            yield np.load(file, mmap_mode="r", allow_pickle=False)
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                yield arrays[member]
        elif file.suffix in (".h5", ".hdf5", ".nc"):
            with h5py.File(file) as group:
                yield group[member]
        else:
            yield zarr.open_group(file, mode="r")[member]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or no such array ({error}); get the file again") from error


def disk(path: Path) -> Path:
    """The file on the disk that holds ``path``."""
    return Path(str(path).partition("::")[0])


def whole(path: Path) -> Path:
    """The file in a tortilla that holds the array ``path``."""
    return Path("::".join(str(path).split("::")[:2]))


def exists(path: Path) -> bool:
    """Whether there is such a file, on the disk or in a tortilla."""
    file = disk(path)
    return file.exists() and (file.suffix != tortilla.SUFFIX or tortilla.find(whole(path))[1] is not None)


def require(path: Path) -> None:
    """ValueError where a file is missing."""
    if not exists(path):
        raise ValueError(f"the file {path} is missing; get the data again or leave the sample out of the split")
