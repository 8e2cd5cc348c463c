"""Open-Canopy (Fogel et al. 2024, arXiv 2407.09392): squares of 1 km in scenes of SPOT 6-7, heights of the canopy.

``geometries.geojson`` says of every square its place, its split, its scene and the year; squares in a buffer around the
test squares are in no split. Heights are whole decimetres on a grid of 1.5 m, that of the images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from dinov2.data.sample import ImageSpec, Sample
from dinov2.env import expand
from eval.datasets import stores
from eval.datasets.base import SPLITS, EvalDataset, Split, chosen_specs
from eval.datasets.layers import Pixels
from eval.datasets.listing import state

SPOT, LIDAR = "compressed_pansharpened_", "compressed_lidar_"  # how the two files of a scene begin


def squares(
    *,
    root: str,
    layers: dict[str, Pixels],  # the one image
    kind: str = "regression",
    classes: list[str],
    unit: str = "m",
    pixels: int = 667,  # width of a square: 1 km in pixels of 1.5 m, rounded up
    bands: list[str] | None = None,
    size: int | None = None,
    title: str | None = None,
    split_hash: str | None = None,
) -> EvalDataset:
    """The squares of train, val and test; ``bands`` and ``size`` as in EvalDataset."""
    folder, layer = Path(expand(root)).resolve(), next(iter(layers.values()))
    path = folder / "geometries.geojson"
    stores.require(path)
    text = path.read_bytes()
    every = [dict(f["properties"], corner=corner(f["geometry"])) for f in json.loads(text)["features"]]
    by_split = {name: [s for s in every if s["split"] == name] for name in SPLITS}
    if not all(by_split.values()):
        raise ValueError(f"{path} has no square in one of {', '.join(SPLITS)}; get the file again")
    spec = layer.spec(stores.header(folder / scene(by_split["train"][0])[0]).dtype)
    splits = {}
    for name, part in by_split.items():
        source = Source(folder, layer, spec, part, pixels)
        splits[name] = Split([source.key(i) for i in range(len(part))], None, source.sample, source.height)
    return EvalDataset(
        name=title or folder.name,
        classes=tuple(classes),
        splits=splits,
        specs=chosen_specs({spec.key: spec}, None, bands),
        bands=tuple(bands) if bands else None,
        size=size,
        data_hash=data_hash(text + repr((spec, pixels)).encode(), folder, every),
        kind=kind,
        unit=unit,
    ).require(split_hash)


def data_hash(described: bytes, folder: Path, squares: Iterable[Mapping[str, Any]]) -> str:
    """Twelve hex digits of the table and of size and time of modification of every image and every map of heights."""
    files = sorted({name for square in squares for name in scene(square)})
    return hashlib.sha256(described + repr([state(folder / name) for name in files]).encode()).hexdigest()[:12]


def corner(geometry: Mapping[str, Any]) -> tuple[float, float]:
    """Its least x and its greatest y, in metres of Lambert-93."""
    x, y = zip(*geometry["coordinates"][0], strict=True)
    return min(x), max(y)


def scene(square: Mapping[str, Any]) -> tuple[str, str]:
    """The image and the heights that a square is cut out of."""
    name, year = square["image_name"], square["lidar_year"]
    return f"{year}/spot/{name}", f"{year}/lidar/{name.replace(SPOT, LIDAR)}"


@dataclass(frozen=True)
class Source:
    """The squares of one split; loader processes can pickle it."""

    folder: Path
    layer: Pixels
    spec: ImageSpec
    squares: list[dict[str, Any]]
    pixels: int

    def key(self, i: int) -> str:
        """Its scene's year and its upper left corner in kilometres."""
        x, y = self.squares[i]["corner"]
        return f"{self.squares[i]['lidar_year']}_{x / 1000:g}_{y / 1000:g}".replace(".", "-")

    def cut(self, path: Path, corner: tuple[float, float]) -> np.ndarray:
        """``[C, H, W]`` of a raster, from the pixel whose own corner is nearest; ValueError where it does not reach."""
        head = stores.header(path)
        column, row = (round(x) for x in ~head.transform @ corner)
        if min(column, row) < 0 or column + self.pixels > head.width or row + self.pixels > head.height:
            raise ValueError(f"{path} does not hold the square at {corner}; get the file and geometries.geojson again")
        return stores.read(path, window=Window(column, row, self.pixels, self.pixels))

    def sample(self, i: int) -> Sample:
        """Square ``i``."""
        square = self.squares[i]
        path = self.folder / scene(square)[0]
        image = self.layer.fitted(self.cut(path, square["corner"]), self.spec, path)
        return Sample(
            self.key(i), {self.spec.key: image}, {self.spec.key: self.spec}, meta={"id": square["image_name"]}
        )

    def height(self, i: int) -> np.ndarray:
        """float32 ``[H, W]`` metres of square ``i``."""
        return self.cut(self.folder / scene(self.squares[i])[1], self.squares[i]["corner"])[0] * np.float32(0.1)
