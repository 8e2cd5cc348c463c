"""Cloud-optimised GeoTIFFs that are written window by window and appear when they are complete."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imsave
from rasterio.io import DatasetWriter

BLOCK = 512  # pixels
LOOK = 1024  # pixels per side of a picture, at most
TAILS = (2, 98)  # percentiles of values that get the first and the last colour


@dataclass(frozen=True)
class Storage:
    """Number type in files and what stands for no observation."""

    dtype: str
    nodata: float
    predictor: int  # of the compression


FLOATS = Storage("float32", np.nan, 3)


@contextmanager
def cog(
    path: Path,
    shape: tuple[int, int],
    crs: str | rasterio.CRS | None,
    transform: Affine,
    *,
    storage: Storage,
    names: Sequence[str],
    tags: Mapping[str, str],
    resampling: str,
) -> Iterator[DatasetWriter]:
    """An open GeoTIFF of ``shape`` (height, width), to be filled: ``path`` with overviews when the block has ended.

    ``names`` of the bands, ``tags`` of the file, ``resampling`` of the overviews. After an error nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain, temporary = (path.with_name(f".{path.stem}.{kind}.tif") for kind in ("plain", "cog"))
    profile = dict(
        driver="GTiff", count=len(names), dtype=storage.dtype, nodata=storage.nodata, crs=crs, transform=transform,
        height=shape[0], width=shape[1], tiled=True, blockxsize=BLOCK, blockysize=BLOCK, bigtiff="if_safer",
        interleave="pixel", compress="deflate", zlevel=1, predictor=storage.predictor,
    )  # fmt: skip
    try:
        with rasterio.open(plain, "w", **profile) as file:
            file.update_tags(**tags)
            file.descriptions = tuple(names)
            yield file
        rasterio.shutil.copy(
            plain, temporary, driver="COG", compress="deflate", predictor="yes", blocksize=BLOCK,
            overview_resampling=resampling, bigtiff="if_safer",
        )  # fmt: skip
        os.replace(temporary, path)
    finally:
        plain.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)


def named(texts: Sequence[str]) -> list[Path]:
    """The files that names and globs mean, each once."""
    return list(dict.fromkeys(Path(path) for text in texts for path in sorted(glob(text)) or [text]))


def tags_of(path: Path) -> dict[str, str]:
    """The tags of a raster."""
    with rasterio.open(path) as raster:
        return raster.tags()


def class_tags(names: Sequence[str], colours: np.ndarray) -> dict[str, str]:
    """Names and colours ``[K, 3]`` in [0, 1] of classes as tags of a map."""
    tags: dict[str, str] = {}
    for k, (name, colour) in enumerate(zip(names, colours, strict=True)):
        tags |= {f"class_{k}": name, f"colour_{k}": to_hex(colour)}
    return tags


def classes_in(tags: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
    """The inverse of :func:`class_tags`: names, and colours ``[K, 3]``; of a map of values none."""
    count = sum(re.fullmatch(r"class_\d+", key) is not None for key in tags)
    return [tags[f"class_{k}"] for k in range(count)], np.array([to_rgb(tags[f"colour_{k}"]) for k in range(count)])


def write_legend(path: Path, names: Sequence[str], colours: np.ndarray) -> None:
    """Class names and colours ``[K, 3]`` in [0, 1] of the raster ``path``, in the file beside it that GDAL looks for.

    TIFF has colour tables for unsigned numbers only; in ``path.aux.xml`` GDAL, rasterio and QGIS find one for any.
    """
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    ElementTree.SubElement(band, "ColorInterp").text = "Palette"
    categories, table = (ElementTree.SubElement(band, tag) for tag in ("CategoryNames", "ColorTable"))
    for name, colour in zip(names, colours, strict=True):
        ElementTree.SubElement(categories, "Category").text = name
        entry = {f"c{i}": str(round(255 * float(x))) for i, x in enumerate((*colour, 1.0), 1)}
        ElementTree.SubElement(table, "Entry", entry)
    path.with_name(f"{path.name}.aux.xml").write_bytes(ElementTree.tostring(root))


def write_picture(path: Path, colours: np.ndarray | None) -> None:
    """``<stem>.png`` beside a raster: classes in their ``colours`` ``[K, 3]``, else its values from violet to yellow.

    Where nothing was observed it is transparent.
    """
    with rasterio.open(path) as raster:
        step = max(1, -(-max(raster.shape) // LOOK))
        size = -(-raster.height // step), -(-raster.width // step)
        values, seen = raster.read(1, out_shape=size), raster.read_masks(1, out_shape=size) > 0
    image = np.zeros((*size, 4))
    if colours is not None:
        image[seen] = np.insert(colours, 3, 1, axis=1)[values[seen]]
    elif seen.any():
        low, high = np.percentile(values[seen], TAILS)
        image[seen] = matplotlib.colormaps["viridis"]((values[seen] - low) / (high - low or 1))
    imsave(path.with_suffix(".png"), (255 * image).round().astype(np.uint8))
