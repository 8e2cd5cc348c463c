"""Chips whose classes a linear probe must tell apart, or whose labels nobody can learn, and writers of their files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from eval.datasets.base import IGNORE


@dataclass
class Expected:
    """What a dataset must give for a sample: image key -> pixels, the map, image key -> dates."""

    images: dict[str, np.ndarray]
    target: np.ndarray
    times: dict[str, list[str]] = field(default_factory=dict)


class Chip:
    """Class numbers ``truth [H, W]`` and what they look like (or other ones, scrambled).

    The first pixel has no label, unless all are ``labelled``.
    """

    def __init__(
        self, seed: int, classes: int, shape: tuple[int, int], scrambled: bool = False, labelled: bool = False
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.seen = self.rng.integers(0, classes, shape)
        self.truth = self.rng.integers(0, classes, shape) if scrambled else self.seen.copy()
        if not labelled:
            self.truth[0, 0] = IGNORE

    def stored(self, codes: Sequence[int], ignore: int, dtype: str = "uint8") -> np.ndarray:
        """The map with the numbers that stand for the classes."""
        return np.where(self.truth == IGNORE, ignore, np.array(codes)[self.truth]).astype(dtype)

    def image(self, bands: int, dtype: str, low: float = 500, gap: float = 400, every: int = 1) -> np.ndarray:
        """``[C, H, W]``: a band shows a digit to the base 3 of the class, so that every class has its own colour.

        ``every``: the pixel size as a multiple of the map's.
        """
        seen = self.seen[::every, ::every]
        digits = np.stack([seen // 3 ** (b % 3) % 3 for b in range(bands)])
        return (low + gap * digits + gap * self.rng.uniform(0, 0.1, digits.shape)).astype(dtype)


def tif(path: Path, array: np.ndarray, nodata: float | None = None) -> None:
    """A GeoTIFF of ``[C, H, W]`` or ``[H, W]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array if array.ndim == 3 else array[None]
    size = dict(zip(("count", "height", "width"), array.shape, strict=True))
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", dtype=array.dtype, nodata=nodata, **size, **place) as raster:
        raster.write(array)


def npy(path: Path, array: np.ndarray) -> None:
    """A numpy file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
