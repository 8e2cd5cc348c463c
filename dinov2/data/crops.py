"""Where a crop lies: boxes in whole pixels of a sample's coarsest image, so that all its images see the same ground."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dinov2.data.sample import Sample

ASPECT = 4 / 3  # width / height of a crop lies between 1 / ASPECT and ASPECT


class Box(NamedTuple):
    """A rectangle of a footprint that is divided into ``rows`` x ``columns`` cells; all numbers count cells."""

    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int

    def window(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Row and column slices of an image ``[..., H, W]`` of the footprint; exact as H, W are multiples of cells."""
        y, x = shape[-2] // self.rows, shape[-1] // self.columns  # pixels per cell
        return (
            slice(self.top * y, (self.top + self.height) * y),
            slice(self.left * x, (self.left + self.width) * x),
        )


WHOLE = Box(0, 0, 1, 1, 1, 1)


def coarsest_grid(sample: Sample) -> tuple[int, int]:
    """Rows and columns of the sample's coarsest image; every other image must have a whole multiple of both."""
    shapes = {name: image.shape[-2:] for name, image in sample.images.items()}
    rows, columns = (min(shape[axis] for shape in shapes.values()) for axis in (0, 1))
    for name, (h, w) in shapes.items():
        if h % rows or w % columns:
            raise ValueError(
                f"sample {sample.key!r}, image {name!r}: {h} x {w} pixels are not a multiple of the coarsest image's "
                f"{rows} x {columns}; cut chips at a multiple of the coarsest pixel"
            )
    return rows, columns


def draw_box(grid: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A box covering a fraction of the area uniform in ``scale``, aspect log-uniform, snapped to whole cells.

    The aspect is drawn from the part of 1 / ASPECT .. ASPECT with which the box fits, so that no area is cut off.
    """
    rows, columns = grid
    area = rng.uniform(*scale) * rows * columns
    narrow, wide = np.clip([1 / ASPECT, ASPECT], area / rows**2, columns**2 / area)
    aspect = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
    height = min(rows, max(1, round(math.sqrt(area / aspect))))
    width = min(columns, max(1, round(area / height)))  # from the rounded height: keeps the area
    top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
    return Box(int(top), int(left), height, width, rows, columns)
