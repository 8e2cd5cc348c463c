"""Large samples cut into chips, all images and masks at the same ground, with keys that stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from data_prep.common import Skip
from data_prep.rasters import chip_suffix
from dinov2.data.crops import coarsest_grid
from dinov2.data.sample import Sample


def tiles(sample: Sample, chip: int | None) -> Iterator[Sample | Skip]:
    """Chips of ``chip`` pixels of the finest image, cut from all images and masks at the same ground."""
    if chip is None:
        yield sample
        return
    rows, columns = coarsest_grid(sample)
    height = max(image.shape[-2] for image in sample.images.values())
    width = max(image.shape[-1] for image in sample.images.values())
    step = height // rows  # finest pixels per coarsest pixel
    if width // columns != step or chip % step:
        raise ValueError(f"--chip {chip}: sample {sample.key!r} needs a multiple of {step}, its coarsest pixel")
    cells = chip // step
    for row in range(-(-rows // cells)):
        for column in range(-(-columns // cells)):
            if (row + 1) * cells > rows or (column + 1) * cells > columns:
                yield Skip(f"at the edge, smaller than --chip {chip}")
            else:
                yield _tile(sample, row, column, cells, (rows, columns))


def _tile(sample: Sample, row: int, column: int, cells: int, grid: tuple[int, int]) -> Sample:
    """The chip in this place of a sample whose coarsest image has ``grid`` pixels."""

    def cut(array: np.ndarray) -> np.ndarray:
        y, x = array.shape[-2] // grid[0] * cells, array.shape[-1] // grid[1] * cells
        return array[..., row * y : (row + 1) * y, column * x : (column + 1) * x]

    footprint = None
    if sample.footprint:
        x0, y0, x1, y1 = sample.footprint
        dx, dy = (x1 - x0) / grid[1] * cells, (y1 - y0) / grid[0] * cells
        footprint = (x0 + column * dx, y1 - (row + 1) * dy, x0 + (column + 1) * dx, y1 - row * dy)
    return replace(
        sample,
        key=sample.key + chip_suffix(row, column),
        images={name: cut(image) for name, image in sample.images.items()},
        labels={name: cut(label) if np.ndim(label) >= 2 else label for name, label in sample.labels.items()},
        footprint=footprint,
    )
