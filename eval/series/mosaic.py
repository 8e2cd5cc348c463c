"""Pieces of a region -> one cloud-optimised GeoTIFF, window by window, without seams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from dinov2.data.series_tiles import Tile
from eval.geotiff import BLOCK, Storage, cog
from eval.series.precision import STORAGE, dequantise

TOLERANCE = 1e-3  # pixels by which grids may differ: rounding in files


@dataclass(frozen=True)
class Grid:
    """Reference system, transform and size of a raster."""

    crs: str
    transform: Affine
    height: int
    width: int

    def place(self, other: Affine, crs: str, name: str) -> tuple[int, int]:
        """Row and column of the first pixel of another raster; ValueError where it lies on another grid."""
        if rasterio.CRS.from_user_input(crs) != rasterio.CRS.from_user_input(self.crs):
            raise ValueError(f"{name} is in {crs}, the region in {self.crs}: prepare them on one grid")
        offset = ~self.transform @ other  # pixel of the piece -> pixel of the region
        column, row = offset.c, offset.f
        skewed = max(abs(offset.a - 1), abs(offset.e - 1), abs(offset.b), abs(offset.d)) > TOLERANCE
        if skewed or max(abs(column - round(column)), abs(row - round(row))) > TOLERANCE:
            raise ValueError(
                f"{name} has other pixels than the region ({tuple(other)[:6]}, {tuple(self.transform)[:6]})"
            )
        return round(row), round(column)


@dataclass(frozen=True)
class Piece:
    """Numbers ``[h, w, D]`` or ``[h, w]`` of a part of the region whose first pixel is ``row``, ``column``.

    Where ``scales`` ``[h, w]`` are given, the numbers are codes of :func:`eval.series.precision.quantise`.
    """

    row: int
    column: int
    array: np.ndarray
    scales: np.ndarray | None = None

    def put(self, window: Window, out: np.ndarray) -> None:
        """Copy what overlaps ``window`` into ``out`` ``[rows, columns, ...]``."""
        top, left = max(self.row, window.row_off), max(self.column, window.col_off)
        bottom = min(self.row + self.array.shape[0], window.row_off + window.height)
        right = min(self.column + self.array.shape[1], window.col_off + window.width)
        if top < bottom and left < right:
            own = np.s_[top - self.row : bottom - self.row, left - self.column : right - self.column]
            rows = slice(top - window.row_off, bottom - window.row_off)
            columns = slice(left - window.col_off, right - window.col_off)
            part = self.array[own]
            out[rows, columns] = part if self.scales is None else dequantise(part, self.scales[own])


def region_of(tiles: Sequence[Tile]) -> Grid:
    """The grid that all tiles lie on; ValueError, naming the tile, where one does not."""
    left, top = (min(tile.corners[i] for tile in tiles) for i in (0, 1))
    right, bottom = (max(tile.corners[i] for tile in tiles) for i in (2, 3))
    first = tiles[0]
    origin = Affine(*first.transform) @ Affine.translation(left - first.corners[0], top - first.corners[1])
    grid = Grid(first.crs, origin, bottom - top, right - left)
    for tile in tiles:
        place = grid.place(Affine(*tile.transform), tile.crs, str(tile.folder))
        if place != (tile.corners[1] - top, tile.corners[0] - left):
            raise ValueError(f"{tile.folder} lies elsewhere than its name says: it belongs to another region")
    return grid


def piece_of(tile: Tile, grid: Grid, array: np.ndarray) -> Piece:
    """The result of a tile as a part of the region."""
    return Piece(*grid.place(Affine(*tile.transform), tile.crs, str(tile.folder)), array)


def windows(grid: Grid, block: int = BLOCK) -> Iterator[Window]:
    """All windows of a grid, row by row."""
    for row in range(0, grid.height, block):
        for column in range(0, grid.width, block):
            yield Window(column, row, min(block, grid.width - column), min(block, grid.height - row))


def write_cog(
    path: Path,
    pieces: Sequence[Piece],
    grid: Grid,
    *,
    storage: Storage,
    names: Sequence[str],
    tags: Mapping[str, str],
    shrink: int = 1,
) -> None:
    """Write the mosaic of ``pieces`` with overviews, band ``names`` and ``tags``; the file appears when complete.

    Where no piece lies stays nodata; where several do, they are expected to agree. ``shrink``: mean of so many pixels
    squared, of those with a value, on the grid made as much coarser. One window is held in memory.
    """
    bands, block = len(names), BLOCK // shrink * shrink
    shape, transform = (-(-grid.height // shrink), -(-grid.width // shrink)), grid.transform @ Affine.scale(shrink)
    resampling = "average" if storage.dtype == "float32" else "nearest"  # codes of different scales have no mean
    with cog(path, shape, grid.crs, transform, storage=storage, names=names, tags=tags, resampling=resampling) as file:
        for window in windows(grid, block):
            values = np.full((window.height, window.width, bands), storage.nodata, storage.dtype)
            for piece in pieces:
                piece.put(window, values if piece.array.ndim == 3 else values[..., 0])
            small = block_mean(values, shrink)
            target = Window(window.col_off // shrink, window.row_off // shrink, small.shape[1], small.shape[0])
            file.write(np.moveaxis(small, 2, 0), window=target)


def block_mean(x: np.ndarray, size: int) -> np.ndarray:
    """``[H, W, D]`` -> ``[ceil(H / size), ceil(W / size), D]``: means of the numbers that are not NaN."""
    if size == 1:
        return x
    height, width = (-(-side // size) for side in x.shape[:2])
    whole = np.full((height * size, width * size, x.shape[2]), np.nan, np.float64)
    whole[: x.shape[0], : x.shape[1]] = x
    cells = whole.reshape(height, size, width, size, -1)
    seen = ~np.isnan(cells)
    total, count = np.where(seen, cells, 0).sum((1, 3)), seen.sum((1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


class EmbeddingMap:
    """An open embedding map; of 8-bit codes, with ``<name>_scale.tif`` beside it."""

    def __init__(self, path: Path) -> None:
        self.file = rasterio.open(path)
        codes = self.file.dtypes[0] == "int8"
        self.scales = rasterio.open(path.with_name(f"{path.stem}_scale.tif")) if codes else None

    def __enter__(self) -> EmbeddingMap:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.scales:
            self.scales.close()

    def windows(self) -> Iterator[Window]:
        """All windows."""
        return windows(Grid("", self.file.transform, self.file.height, self.file.width))

    def read(self, window: Window | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
        """Embeddings ``[h, w, D]`` of a window, or of the whole map at ``size``; NaN without observation."""
        x = np.moveaxis(self.file.read(window=window, out_shape=size and (self.file.count, *size)), 0, 2)
        return dequantise(x, self.scales.read(1, window=window, out_shape=size)) if self.scales else x

    def at(self, places: Sequence[tuple[float, float]]) -> np.ndarray:
        """Embeddings ``[N, D]`` at places in the map's reference system; NaN outside of it."""
        x = np.stack(list(self.file.sample(places))).astype(np.float32)
        if self.scales:
            x = dequantise(x, np.stack(list(self.scales.sample(places)))[:, 0])
        left, bottom, right, top = self.file.bounds
        east, north = np.array(places).T
        x[~((east >= left) & (east < right) & (north > bottom) & (north <= top))] = np.nan
        return x


def embedding_names(bands: int) -> list[str]:
    """Band descriptions."""
    return [f"embedding {i:03d}" for i in range(bands)]


def write_embedding(
    path: Path, values: Sequence[Piece], scales: Sequence[Piece], grid: Grid, precision: str, tags: Mapping[str, str]
) -> None:
    """The embedding map, and before it for 8-bit codes ``<name>_scale.tif``: where the map is, both are."""
    bands = values[0].array.shape[2]
    tags = {**tags, "precision": precision}
    if scales:
        beside = path.with_name(f"{path.stem}_scale.tif")
        write_cog(beside, scales, grid, storage=STORAGE["float32"], names=["value of one step of a code"], tags=tags)
    write_cog(path, values, grid, storage=STORAGE[precision], names=embedding_names(bands), tags=tags)
