"""``eval/predict.py mosaic``: maps of many scenes as one, on the grid of the first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds

from eval.geotiff import FLOATS, Storage, classes_in, cog, named, write_legend, write_picture
from eval.series.mosaic import Grid, windows

SLACK = 1e-3  # pixels: rounding in files
KEPT = ("class_", "colour_", "unit", "model_digest")  # tags of maps that belong together


def mosaic(argv: list[str]) -> int:
    """One map of many, in the reference system and pixels of the first; where several have a value, the first counts.

    Maps on other grids are brought to it by nearest neighbour. All must be of one model.
    """
    p = argparse.ArgumentParser(prog="eval/predict.py mosaic", description=mosaic.__doc__)
    p.add_argument("--input", nargs="+", required=True, help="maps, globs; the first ones lie on top")
    p.add_argument("--output", type=Path, required=True, help="the mosaic")
    args = p.parse_args(argv)
    paths = [path for path in named(args.input) if path.resolve() != args.output.resolve()]  # a former mosaic
    if not paths:
        raise ValueError(f"--input names no map beside --output {args.output}")
    with ExitStack() as stack:
        maps = [stack.enter_context(rasterio.open(path)) for path in paths]
        tags = alike(maps)
        grid = covering(maps)
        place = dict(crs=grid.crs, transform=grid.transform, width=grid.width, height=grid.height)
        warped = [(stack.enter_context(WarpedVRT(m, **place)), box(m, grid)) for m in maps]
        first = maps[0]
        storage = FLOATS if first.dtypes[0] == "float32" else Storage(first.dtypes[0], first.nodata, 2)
        shape, kind = (grid.height, grid.width), "average" if storage is FLOATS else "mode"
        how = dict(storage=storage, names=first.descriptions, tags=tags, resampling=kind)
        out = stack.enter_context(cog(args.output, shape, grid.crs, grid.transform, **how))
        out.scales = first.scales
        for window in windows(grid):
            out.write(merged(warped, window, first), window=window)
    names, colours = classes_in(tags)
    if names:
        write_legend(args.output, names, colours)
    write_picture(args.output, colours if names else None)
    print(f"{args.output}: {len(maps)} maps, {grid.width} x {grid.height} pixels")
    return 0


def merged(warped: Sequence[tuple[WarpedVRT, Window]], window: Window, like: DatasetReader) -> np.ndarray:
    """``[C, h, w]`` of a window: of every pixel the first map's value that is one."""
    values = np.full((like.count, window.height, window.width), like.nodata, like.dtypes[0])
    for source, reach in warped:
        if overlap(window, reach):
            empty = np.isnan(values) if np.isnan(like.nodata) else values == like.nodata
            values = np.where(empty, source.read(window=window), values)
    return values


def alike(maps: Sequence[DatasetReader]) -> dict[str, str]:
    """The tags that belong to the mosaic; ValueError, naming the map, where one is of another kind or lies nowhere."""
    first = maps[0]
    kept = [{k: v for k, v in m.tags().items() if k.startswith(KEPT)} for m in maps]
    for m, tags in zip(maps, kept, strict=True):
        if (m.dtypes, m.descriptions, tags) != (first.dtypes, first.descriptions, kept[0]):
            raise ValueError(f"{m.name} is a map of another model than {first.name}; make a mosaic of each")
        if m.crs is None or m.nodata is None:
            lacks = "reference system" if m.crs is None else "nodata value"
            raise ValueError(f"{m.name} has no {lacks}: it cannot be a part of a mosaic")
    return kept[0]


def covering(maps: Sequence[DatasetReader]) -> Grid:
    """The grid of the first map, made so large that all maps lie in it."""
    first = maps[0]
    if first.transform.b or first.transform.d:
        raise ValueError(f"{first.name} is rotated: a mosaic needs a first map that is not")
    boxes = [pixels_of(m, first.crs.to_string(), first.transform) for m in maps]
    left, top = (min(b[i] for b in boxes) for i in (0, 1))
    right, bottom = (max(b[i] for b in boxes) for i in (2, 3))
    return Grid(first.crs.to_string(), first.transform @ Affine.translation(left, top), bottom - top, right - left)


def pixels_of(raster: DatasetReader, crs: str, transform: Affine) -> tuple[int, int, int, int]:
    """First column and row, and those after the last, of a map on another grid."""
    window = from_bounds(*transform_bounds(raster.crs, crs, *raster.bounds), transform)
    ends = window.col_off + window.width, window.row_off + window.height
    left, top = (int(np.floor(x + SLACK)) for x in (window.col_off, window.row_off))
    return left, top, *(int(np.ceil(x - SLACK)) for x in ends)  # type: ignore[return-value]


def box(raster: DatasetReader, grid: Grid) -> Window:
    """Where a map lies on the grid."""
    left, top, right, bottom = pixels_of(raster, grid.crs, grid.transform)
    return Window(left, top, right - left, bottom - top)


def overlap(a: Window, b: Window) -> bool:
    """Whether two windows share a pixel."""
    apart = a.col_off >= b.col_off + b.width or b.col_off >= a.col_off + a.width
    return not (apart or a.row_off >= b.row_off + b.height or b.row_off >= a.row_off + a.height)
