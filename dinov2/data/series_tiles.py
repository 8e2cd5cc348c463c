"""Tile folders of pixel time series: the d-pixel layout of BTFM and TESSERA, and beside it what it does not say.

A tile is ``<xmin>_<ymin>_<xmax>_<ymax>/`` (pixels of the region's grid) with arrays that any reader of that layout can
use, and ``tile.json``, written last: full dates, bands, units, the place, and where the numbers come from.

``bands.npy``             ``[T, H, W, C]`` optical numbers         ``doys.npy`` ``[T]`` days of the year
``masks.npy``             ``[T, H, W]`` 1 = clear
``sar_ascending.npy``     ``[Ta, H, W, 2]`` radar                  ``sar_ascending_doy.npy`` ``[Ta]``
``sar_descending.npy``    likewise
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio

from dinov2.data.sample import ImageSpec
from dinov2.data.series import Observed
from dinov2.files import atomic, write_atomic

INFO = "tile.json"
OPTICAL, MASKS = "bands", "masks"
LAYERS = {OPTICAL: "doys", "sar_ascending": "sar_ascending_doy", "sar_descending": "sar_descending_doy"}
FORMAT = "eossl-tile/1"

Corners = tuple[int, int, int, int]  # first column and row in the region's grid, and those after the last


@dataclass(frozen=True)
class Layer:
    """What the numbers of one array are, and its ISO dates."""

    spec: ImageSpec
    dates: tuple[str, ...]


class Dates(Sequence[np.ndarray]):
    """The arrays of ``length`` dates, each made when it is asked for."""

    def __init__(self, length: int, make: Callable[[int], np.ndarray]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self.length:
            raise IndexError(number)
        return self.make(number)


@dataclass(frozen=True)
class Tile:
    """An open tile; ``transform`` are the six numbers of its affine transform, ``provenance`` JSON values."""

    folder: Path
    corners: Corners
    crs: str
    transform: tuple[float, ...]
    layers: Mapping[str, Layer]
    provenance: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        left, top, right, bottom = self.corners
        return bottom - top, right - left

    def block(self, first: int, last: int) -> list[Observed]:
        """All layers for the rows ``first`` to ``last`` - 1, pixels row by row; nothing else is read."""
        observed = []
        for name, layer in self.layers.items():
            stored = self.array(name)[:, first:last]  # [T, h, W, C]
            clear = None
            if name == OPTICAL:
                clear = self.array(MASKS)[:, first:last].reshape(len(stored), -1) == 1
            flat = stored.reshape(len(stored), -1, stored.shape[-1])  # [T, P, C]
            observed.append(Observed(flat, layer.spec, layer.dates, clear))
        return observed

    def inside(self) -> np.ndarray:
        """bool ``[H, W]``: the pixels of the region, which ``roi.tiff`` tells; ValueError where its size is another."""
        with rasterio.open(self.folder / "roi.tiff") as raster:
            inside: np.ndarray = raster.read(1) > 0
        if inside.shape != self.shape:
            raise ValueError(f"{self.folder}/roi.tiff has {inside.shape} pixels, the tile {self.shape}")
        return inside

    def array(self, name: str) -> np.ndarray:
        """One array of the tile, mapped, not read; ValueError where it is absent, damaged or of another shape."""
        owner = self.layers[OPTICAL if name == MASKS else name]
        bands = () if name == MASKS else (len(owner.spec.bands),)
        array = load(self.folder / f"{name}.npy")
        want = (len(owner.dates), *self.shape, *bands)
        if array.shape != want:
            raise ValueError(f"{self.folder / name}.npy has shape {array.shape}, {INFO} says {want}")
        return array


def load(path: Path) -> np.ndarray:
    """An ``.npy`` file, mapped; ValueError where it is absent or unreadable."""
    if not path.is_file():
        hint = "; without it clouds would count as clear" if path.stem == MASKS else ""
        raise ValueError(f"{path} is missing{hint}")
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error
    return mapped


def name_of(corners: Corners) -> str:
    """The folder's name."""
    return "_".join(map(str, corners))


def days_of_year(dates: tuple[str, ...]) -> np.ndarray:
    """int32 ``[T]``, 1..366, of ISO dates."""
    day = np.array(dates, "datetime64[D]")
    return (day - day.astype("datetime64[Y]")).astype(np.int32) + np.int32(1)


def write_tile(tile: Tile, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write ``arrays`` (of every layer, and the masks), then ``tile.json``: a tile is whole or has none.

    An array is a sequence of dates ``[H, W]`` or ``[H, W, C]``, of which one is held at a time.
    """
    tile.folder.mkdir(parents=True, exist_ok=True)
    for name, dates in arrays.items():
        with atomic(tile.folder / f"{name}.npy") as file:
            save_stack(file, dates)
    for name, layer in tile.layers.items():
        with atomic(tile.folder / f"{LAYERS[name]}.npy") as file:
            np.save(file, days_of_year(layer.dates), allow_pickle=False)
    info = {
        "format": FORMAT,
        "corners": tile.corners,
        "crs": tile.crs,
        "transform": tile.transform,
        "layers": {n: {"spec": v.spec.to_dict(), "dates": v.dates} for n, v in tile.layers.items()},
        "provenance": tile.provenance,
    }
    write_atomic(tile.folder / INFO, json.dumps(info, indent=1))


def save_stack(file: BinaryIO, dates: Sequence[np.ndarray]) -> None:
    """An ``.npy`` file of equal arrays, written one after the other."""
    first = dates[0]
    head = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**head, "shape": (len(dates), *first.shape)})
    for array in dates:
        assert array.shape == first.shape and array.dtype == first.dtype
        file.write(np.ascontiguousarray(array).data)


def open_tile(folder: Path) -> Tile:
    """A tile; ValueError where its description is absent (not finished, or never imported) or no tile's."""
    path = folder / INFO
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {INFO}: it was not finished, or comes from elsewhere (then import it with "
            "data_prep/main.py timeseries --src)"
        )
    raw = json.loads(path.read_text())
    if raw.get("format") != FORMAT:
        raise ValueError(f"{path} has format {raw.get('format')!r}; this program reads {FORMAT!r}")
    layers = {n: Layer(ImageSpec.from_dict(v["spec"]), tuple(v["dates"])) for n, v in raw["layers"].items()}
    return Tile(folder, tuple(raw["corners"]), raw["crs"], tuple(raw["transform"]), layers, raw["provenance"])


def fingerprint(folder: Path) -> str:
    """Digest of a tile's description and of its files' names, sizes and times of modification.

    Tiles of other regions and years have the same names. A folder that is not finished has a digest too.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        if path.name == INFO:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def tile_folders(root: Path) -> list[Path]:
    """The tile folders below ``root`` (or ``root`` itself), from the top left on; ValueError where there is none."""
    found = [root] if (root / INFO).is_file() else [Path(e.path) for e in os.scandir(root) if e.is_dir()]
    corners = {f: f.name.split("_") for f in found}
    tiles = [f for f, c in corners.items() if len(c) == 4 and all(part.lstrip("-").isdigit() for part in c)]
    if not tiles:
        raise ValueError(f"{root} holds no tile folder <xmin>_<ymin>_<xmax>_<ymax>")
    return sorted(tiles, key=lambda f: [int(corners[f][i]) for i in (1, 0)])
