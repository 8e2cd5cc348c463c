"""The truth per pixel: stored codes become class numbers, IGNORE where there is no label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.datasets import stores
from eval.datasets.base import IGNORE
from eval.datasets.listing import Pattern
from eval.datasets.stores import Tile


@dataclass
class Target:
    """Where the truth per pixel is stored, and what its numbers mean."""

    path: str = ""  # below the root, with {field} as in the images' paths
    channel: int = 1  # the file's band
    axes: str = ""  # of npy, HDF5 and zarr arrays
    codes: list[Any] | None = None  # the stored number (or list of numbers) of every class; None: 0, 1, 2, ...
    ignore: list[float] = field(default_factory=list)  # stored numbers that are no label
    ignore_other: bool = False  # numbers that are no class are no label either, instead of an error
    scale: float = 1.0  # regression: the value is stored * scale


@dataclass(frozen=True)
class MapReader:
    """``reader(values, tile)``: the map ``[H, W]`` of a sample.

    int64 class numbers with IGNORE, or float32 values with NaN where ``classes`` is None.
    """

    root: Path
    target: Target
    classes: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.classes is not None and len(self.target.codes or self.classes) != len(self.classes):
            raise ValueError(f"target.codes has {len(self.target.codes or ())} entries for {len(self.classes)} classes")

    def __call__(self, values: Mapping[str, Any], tile: Tile | None, image: Path, axes: str) -> np.ndarray:
        """Read one map, on the grid of the file ``image`` with ``axes``; ValueError names a file that does not fit."""
        path = self.root / Pattern(self.target.path).fill(values)
        heads = stores.header(path, self.target.axes), stores.header(image, axes)
        sizes = [(head.height, head.width) for head in heads]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{path} has {sizes[0]} pixels, its image {image} has {sizes[1]}; they must be the same")
        window, number = tile and tile.on(1), values.get("n", 0)
        stored = stores.read(path, [self.target.channel], window, self.target.axes, number)[0]
        return self.values(stored) if self.classes is None else self.numbers(stored, path)

    def values(self, stored: np.ndarray) -> np.ndarray:
        """float32, NaN where there is no value."""
        missing = np.isin(stored, self.target.ignore) | ~np.isfinite(stored)
        return np.where(missing, np.nan, stored * np.float32(self.target.scale)).astype(np.float32)

    def numbers(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """int64 class numbers, IGNORE where there is no label."""
        codes, numbers = self.table
        found, inverse = np.unique(stored, return_inverse=True)
        place = np.searchsorted(codes, found).clip(max=len(codes) - 1)
        known = codes[place] == found
        missing = np.isin(found, self.target.ignore) | np.isnan(found)
        if not (known | missing).all() and not self.target.ignore_other:
            raise ValueError(
                f"{path} has the label {found[~(known | missing)][0]:g}, which is no class "
                f"({', '.join(f'{c:g}' for c in codes)}) nor ignored; correct target.codes or target.ignore"
            )
        return np.where(known & ~missing, numbers[place], IGNORE)[inverse].reshape(stored.shape)

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Stored codes in ascending order, and the class number of each."""
        assert self.classes is not None
        given = self.target.codes or range(len(self.classes))
        several = [codes if isinstance(codes, list) else [codes] for codes in given]
        pairs = sorted((code, number) for number, codes in enumerate(several) for code in codes)
        return np.array([code for code, _ in pairs], float), np.array([number for _, number in pairs])


def class_numbers(values: Sequence[Any], classes: Sequence[str], where: str) -> list[int]:
    """The number of every class, given by name or by number; ValueError names a value that is neither."""
    table = {str(number): number for number in range(len(classes))} | {name: n for n, name in enumerate(classes)}
    unknown = next((value for value in values if str(value) not in table), None)
    if unknown is not None:
        raise ValueError(f"{where} has the label {unknown!r}, which is none of the classes {', '.join(classes)}")
    return [table[str(value)] for value in values]


def image_labels(values: Sequence[Any], kind: str, classes: Sequence[str], where: str) -> Tensor:
    """The truth per sample as :class:`eval.datasets.Split` takes it; several labels are a list or divided by ";"."""
    if kind == "regression":
        return torch.tensor([float(value) for value in values])
    if kind == "classification":
        return torch.tensor(class_numbers(values, classes, where))
    out = torch.zeros(len(values), len(classes), dtype=torch.bool)
    for row, value in zip(out, values, strict=True):
        row[class_numbers(value.split(";") if isinstance(value, str) else value, classes, where)] = True
    return out
