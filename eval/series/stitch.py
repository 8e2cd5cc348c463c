"""``eval/embed.py stitch``: existing folders of .npy representations onto the grid of a reference GeoTIFF."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio
from rasterio.io import DatasetReader

from dinov2.data.series_tiles import load
from eval.series.mosaic import Grid, Piece, embedding_names, write_cog
from eval.series.precision import STORAGE


def stitch(argv: list[str]) -> int:
    """``<tile>.npy`` ``[h, w, D]``, with codes also ``<tile>_scales.npy`` ``[h, w]``, placed by the tiles' roi.tiff."""
    p = argparse.ArgumentParser(prog="eval/embed.py stitch", description=stitch.__doc__)
    add = p.add_argument
    add("--input", type=Path, required=True, help="folder of <tile>.npy")
    add("--tiles", type=Path, required=True, help="folder of <tile>/roi.tiff")
    add("--reference", type=Path, required=True, help="GeoTIFF whose grid the map gets")
    add("--output", type=Path, required=True, help="the map")
    add("--downsample", type=int, default=1, help="pixels per side whose mean becomes one (%(default)s)")
    args = p.parse_args(argv)
    if args.downsample < 1:
        raise ValueError(f"--downsample {args.downsample} must be at least 1")
    with rasterio.open(args.reference) as raster:
        grid = Grid(system(raster), raster.transform, raster.height, raster.width)
    found = sorted(path for path in args.input.glob("*.npy") if not path.stem.endswith("_scales"))
    if not found:
        raise ValueError(f"{args.input} holds no <tile>.npy")
    pieces = [piece(path, args.tiles, grid) for path in found]
    bands = pieces[0].array.shape[2]
    for path, other in zip(found, pieces, strict=True):
        if other.array.shape[2] != bands:
            raise ValueError(f"{path} has {other.array.shape[2]} dimensions, {found[0]} has {bands}")
    tags = {"tiles": str(len(pieces)), "source": args.input.name}
    write_cog(
        args.output, pieces, grid, storage=STORAGE["float32"], names=embedding_names(bands), tags=tags,
        shrink=args.downsample,
    )  # fmt: skip
    missing = sorted({t.parent.name for t in args.tiles.glob("*/roi.tiff")} - {path.stem for path in found})
    print(f"{args.output}: {len(pieces)} tiles; no representation of {', '.join(missing) or 'none'}")
    return 0


def system(raster: DatasetReader) -> str:
    """The reference system; ValueError where there is none."""
    if raster.crs is None:
        raise ValueError(f"{raster.name} has no reference system: give it one (gdal_edit.py -a_srs)")
    return raster.crs.to_string()


def piece(path: Path, tiles: Path, grid: Grid) -> Piece:
    """One representation; ValueError where its tile is absent, of another size or not on the grid."""
    place = tiles / path.stem / "roi.tiff"
    if not place.is_file():
        raise ValueError(f"{place} is missing: it says where {path} lies")
    array, beside = load(path), path.with_name(f"{path.stem}_scales.npy")
    with rasterio.open(place) as raster:
        if array.ndim != 3 or array.shape[:2] != raster.shape:
            raise ValueError(f"{path} has shape {array.shape}, its tile {raster.shape} pixels")
        row, column = grid.place(raster.transform, system(raster), str(place))
    scales = load(beside) if beside.is_file() else None
    if scales is None and array.dtype == np.int8:
        raise ValueError(f"{path} holds codes, and {beside.name} is missing")
    return Piece(row, column, array, scales)
