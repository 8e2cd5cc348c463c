"""The truth per pixel: stored codes become class numbers, IGNORE where there is no label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.crs import CRS
from torch import Tensor

from eval.datasets import stores
from eval.datasets.base import IGNORE
from eval.datasets.listing import Pattern
from eval.datasets.stores import Header, Tile
from eval.datasets.vectors import draw, near

ALIGNED = 0.1  # pixels by which a mask and its image may differ in place: rounded coordinates
RGB = (1 << 16, 1 << 8, 1)  # what red, green and blue contribute to a colour's number


@dataclass
class Target:
    """Where the truth per pixel is stored, and what its numbers mean."""

    path: str = ""  # below the root, with {field} as in the images' paths; or a file of polygons
    channel: int = 1  # the file's band
    colours: bool = False  # the file is a picture in red, green and blue; codes are colours, 0xRRGGBB
    axes: str = ""  # of npy, HDF5 and zarr arrays
    column: str = ""  # of polygons: what they are; they are drawn on the images' grid in the order of the file
    background: str | None = None  # the class where there is no polygon; None: no label
    codes: list[Any] | None = None  # the stored value (or list of values) of every class; None: 0, 1, 2, ... or names
    ignore: list[Any] = field(default_factory=list)  # stored values that are no label
    ignore_other: bool = False  # values that are no class are no label either, instead of an error
    one_hot: bool = False  # a band per class, 0 where a pixel is of another; codes are bands, 0: none
    change: bool = False  # {date} in the path: where the classes of the first and the last date differ
    scale: float = 1.0  # regression: the value is stored * scale


@dataclass(frozen=True)
class MapReader:
    """Reads the truth of samples: int64 classes with IGNORE, or float32 with NaN where ``classes`` is None."""

    root: Path
    target: Target
    classes: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.classes is not None and len(self.target.codes or self.classes) != len(self.classes):
            raise ValueError(f"target.codes has {len(self.target.codes or ())} entries for {len(self.classes)} classes")
        if self.target.background is not None and self.target.background not in (self.classes or ()):
            raise ValueError(f"target.background {self.target.background!r} is none of the classes")

    def path(self, values: Mapping[str, Any]) -> Path:
        """The file with the truth of a sample."""
        return self.root / Pattern(self.target.path).fill(values)

    def read(self, values: Mapping[str, Any], tile: Tile | None, image: Path, grid: Header) -> np.ndarray:
        """The map ``[H, W]`` of a sample, on the ``grid`` of its ``image``; ValueError names a file that is wrong."""
        first, *last = (self.read_date(dated, tile, image, grid) for dated in self.dated(values))
        return np.where((first == IGNORE) | (last[0] == IGNORE), IGNORE, first != last[0]) if last else first

    def dated(self, values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The values of the files of a sample: its own, or of a change those of the first and the last date."""
        return [{**values, "date": values["date"][i]} for i in (0, -1)] if self.target.change else [values]

    def read_date(self, values: Mapping[str, Any], tile: Tile | None, image: Path, grid: Header) -> np.ndarray:
        """The map of one date."""
        path = self.path(values)
        if self.target.column:
            return self.drawn(path, tile, grid)
        head = stores.header(path, self.target.axes)
        if (head.height, head.width) != (grid.height, grid.width):
            raise ValueError(
                f"{path} has {head.height} x {head.width} pixels, its image {image} has {grid.height} x {grid.width}; "
                "they must be the same"
            )
        if head.crs and grid.crs and displaced(head, grid) > ALIGNED:
            raise ValueError(
                f"{path} (in {head.crs}, {head.transform[:6]}) does not lie where its image {image} does "
                f"({grid.crs}, {grid.transform[:6]}); bring it onto the image's grid"
            )
        window, number = tile and tile.on(1), values.get("n", 0)
        stored = stores.read(path, self.channels, window, self.target.axes, number)
        return self.translated(self.coded(stored), path)

    @property
    def channels(self) -> list[int] | None:
        """The bands that tell the truth (None: all)."""
        return None if self.target.one_hot else [1, 2, 3] if self.target.colours else [self.target.channel]

    def coded(self, stored: np.ndarray) -> np.ndarray:
        """The number of every pixel ``[H, W]`` of these bands ``[C, H, W]``."""
        if self.target.one_hot:
            return np.where(stored.any(0), stored.argmax(0) + 1, 0)
        return np.einsum("chw,c->hw", stored, RGB) if self.target.colours else stored[0]

    def touched(self, values: Mapping[str, Any], tile: Tile | None, grid: Header) -> bool:
        """Whether a polygon touches a sample."""
        return bool(near(self.path(values), self.target.column, grid, tile)[0])

    def drawn(self, path: Path, tile: Tile | None, grid: Header) -> np.ndarray:
        """int64 class numbers of polygons, IGNORE or the background where there is none."""
        assert self.classes is not None
        shapes, labels, place, shape = near(path, self.target.column, grid, tile)
        table = {str(code): number for code, number in self.pairs} | dict.fromkeys(map(str, self.target.ignore), IGNORE)
        unknown = next((label for label in labels if label not in table), None)
        if unknown is not None and not self.target.ignore_other:
            raise ValueError(
                f"{path} has a polygon whose {self.target.column} is {unknown!r}, which is no class "
                f"({', '.join(table)}) nor ignored; correct dataset.classes, target.codes or target.ignore"
            )
        background = IGNORE if self.target.background is None else self.classes.index(self.target.background)
        return draw(shapes, [table.get(label, IGNORE) for label in labels], place, shape, background)

    def translated(self, stored: np.ndarray, where: Path | str) -> np.ndarray:
        """Classes or values of the numbers stored ``where``."""
        return self.values(stored) if self.classes is None else self.numbers(stored, where)

    def values(self, stored: np.ndarray) -> np.ndarray:
        """float32, NaN where there is no value."""
        missing = np.isin(stored, self.target.ignore) | ~np.isfinite(stored)
        return np.where(missing, np.nan, stored * np.float32(self.target.scale)).astype(np.float32)

    def numbers(self, stored: np.ndarray, where: Path | str) -> np.ndarray:
        """int64 class numbers, IGNORE where there is no label."""
        codes, numbers = self.table
        found, inverse = np.unique(stored, return_inverse=True)
        place = np.searchsorted(codes, found).clip(max=len(codes) - 1)
        known = codes[place] == found
        missing = np.isin(found, self.target.ignore) | np.isnan(found)
        if not (known | missing).all() and not self.target.ignore_other:
            raise ValueError(
                f"{where} has the label {self.shown(found[~(known | missing)][0])}, which is no class "
                f"({', '.join(map(self.shown, codes))}) nor ignored; correct target.codes or target.ignore"
            )
        return np.where(known & ~missing, numbers[place], IGNORE)[inverse].reshape(stored.shape)

    def shown(self, code: float) -> str:
        """A stored number as people write it."""
        return f"0x{int(code):06X}" if self.target.colours else f"{code:g}"

    @property
    def pairs(self) -> list[tuple[Any, int]]:
        """Every stored code and its class number."""
        assert self.classes is not None
        given = self.target.codes or (self.classes if self.target.column else range(len(self.classes)))
        several = [codes if isinstance(codes, list) else [codes] for codes in given]
        return [(code, number) for number, codes in enumerate(several) for code in codes]

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Stored codes in ascending order, and the class number of each."""
        codes, numbers = zip(*sorted(self.pairs), strict=True)
        return np.array(codes, float), np.array(numbers)


def displaced(head: Header, grid: Header) -> float:
    """How far a corner of ``head`` lies from the same corner of ``grid``, in pixels of ``grid``; inf in another CRS."""
    if head.crs != grid.crs and CRS.from_string(head.crs) != CRS.from_string(grid.crs):
        return inf
    there = ~grid.transform @ head.transform
    corners = [(x, y) for x in (0, head.width) for y in (0, head.height)]
    return max(abs(a - b) for corner in corners for a, b in zip(there @ corner, corner, strict=True))


def class_numbers(values: Sequence[Any], classes: Sequence[str], where: str) -> list[int]:
    """The number of every class, given by name or by number; ValueError names a value that is neither."""
    table = {str(number): number for number in range(len(classes))} | {name: n for n, name in enumerate(classes)}
    unknown = next((value for value in values if str(value) not in table), None)
    if unknown is not None:
        raise ValueError(f"{where} has the label {unknown!r}, which is none of the classes {', '.join(classes)}")
    return [table[str(value)] for value in values]


def merged(values: Sequence[Any], merge: Mapping[str, str], classes: Sequence[str]) -> list[list[str]]:
    """Several labels per sample as classes: those that they ``merge`` into, or are; all others are no label."""
    known = {name: name for name in classes} | dict(merge)
    several = (value.split(";") if isinstance(value, str) else value for value in values)
    return [[known[label] for label in labels if label in known] for labels in several]


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
