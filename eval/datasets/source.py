"""The samples of one split, read from files row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinov2.data.sample import ImageSpec, Sample
from eval.datasets.layers import Layer
from eval.datasets.stores import Tile
from eval.datasets.targets import MapReader


def tile_of(values: Mapping[str, Any], size: int | None) -> Tile | None:
    """The pixels of a row on the finest grid, None for whole files."""
    return Tile(values["row"], values["column"], size) if size else None


@dataclass(frozen=True)
class Source:
    """The samples of one split; loader processes can pickle it.

    ``layers``: image key -> how the images that are shown are stored; ``finest``: the layer on whose grid maps and
    tiles lie.
    """

    root: Path
    layers: Mapping[str, tuple[Layer, ImageSpec]]
    finest: Layer
    rows: pa.Table
    tile: int | None
    maps: MapReader | None

    def values(self, i: int) -> dict[str, Any]:
        """Row ``i``."""
        return {name: self.rows[name][i].as_py() for name in self.rows.column_names}

    def sample(self, i: int) -> Sample:
        """Sample ``i``."""
        values, images, times = self.values(i), {}, {}
        for key, (layer, spec) in self.layers.items():
            tile = tile_of(values, self.tile)
            images[key] = layer.read(self.root, values, spec, tile and tile.on(layer.gsd_m / self.finest.gsd_m))
            times[key] = layer.times(values)
        specs = {key: spec for key, (_, spec) in self.layers.items()}
        return Sample(values["key"], images, specs, times, meta={"id": values["id"]})

    def map(self, i: int) -> np.ndarray:
        """The truth ``[H, W]`` of sample ``i``; ValueError where it is not on the grid of the finest image."""
        assert self.maps is not None
        values = self.values(i)
        image, grid = self.finest.files(self.root, values)[0][0], self.finest.header(self.root, values)
        return self.maps.read(values, tile_of(values, self.tile), image, grid)
