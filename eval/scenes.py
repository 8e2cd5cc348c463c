"""A raster of any size as samples of what a model was trained on: its bands, their unit, their missing pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS, suggest
from eval.bands import Channel
from eval.tiling import Corner


@dataclass(frozen=True)
class Given:
    """What is said of the files beside what they say themselves; None: as they say, else as in training.

    ``bands``: numbers from 0, or names, of the model's bands in its order; of a series those of every date, or of all
    dates one after the other. A file's number is ``number * scale + offset`` in ``unit``. ``dates``: ISO, of a series.
    """

    bands: tuple[str, ...] | None = None
    unit: str | None = None
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    dates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """An open raster whose ``bands`` (from 1) are the ``channels``, date after date."""

    raster: rasterio.DatasetReader
    bands: list[int]
    channels: tuple[Channel, ...]
    specs: dict[str, ImageSpec]
    frames: int
    given: Given

    @classmethod
    def of(cls, raster: rasterio.DatasetReader, channels: Sequence[Channel], frames: int, given: Given) -> Scene:
        """The channels of a model of ``frames`` dates in a raster; ValueError where they cannot be found."""
        path = Path(raster.name).name
        if given.dates and len(given.dates) != frames:
            raise ValueError(f"--dates names {len(given.dates)} dates; the model takes {frames}")
        if raster.colorinterp[0] == ColorInterp.palette:
            raise ValueError(f"{path} holds numbers of a palette; write its colours (gdal_translate -expand rgb)")
        if np.dtype(raster.dtypes[0]).kind == "c":
            raise ValueError(f"{path} holds complex numbers; convert them to intensities")
        bands = chosen(raster, path, channels, frames, given.bands)
        specs = {}
        for channel in channels:
            if channel.spec.key not in specs:
                own = [b for c, b in zip(channels, bands, strict=False) if c.spec.key == channel.spec.key]
                names = tuple(c.name for c in channels if c.spec.key == channel.spec.key)
                specs[channel.spec.key] = described(raster, path, own, replace(channel.spec, bands=names), given)
        if len(specs) > 1 and (given.unit, given.scale, given.offset, given.nodata) != (None,) * 4:
            raise ValueError(f"--unit, --scale, --offset and --nodata cannot be those of all of {', '.join(specs)}")
        return cls(raster, bands, tuple(channels), specs, frames, given)

    @property
    def fills(self) -> np.ndarray:
        """``[C]``: the number that was nodata in training, or is said to be; NaN: none."""
        said = [c.spec.nodata if self.given.nodata is None else self.given.nodata for c in self.channels]
        return np.array([np.nan if fill is None else fill for fill in said], np.float32)

    @property
    def words(self) -> str:
        """Which band of the file each channel of the first date is, from 0."""
        return ", ".join(f"{c.name} = {b - 1}" for c, b in zip(self.channels, self.bands, strict=False))

    def read(self, corner: Corner, tile: int) -> tuple[Sample, np.ndarray]:
        """The window ``[tile, tile]`` at ``corner``; beyond the raster its last pixels are repeated.

        With it bool ``[tile, tile]``: where something was observed. A pixel is none where on every date a band is not
        finite, masked by the file or nodata; but 0 is a number of dark pixels too, and counts where all bands have it.
        """
        row, column = corner
        height, width = min(tile, self.raster.height - row), min(tile, self.raster.width - column)
        window = Window(column, row, width, height)
        shape = self.frames, len(self.channels), height, width
        pixels = self.raster.read(self.bands, window=window, out_dtype="float32").reshape(shape)
        masked = self.raster.read_masks(self.bands, window=window).reshape(shape) == 0
        filled = pixels == self.fills[:, None, None]
        none = ~np.isfinite(pixels) | masked | filled  # [T, C, h, w]
        nothing = none.all(1, keepdims=True)
        seen = ~((none & (pixels != 0)).any(1) | nothing[:, 0]).all(0)  # [h, w]
        pixels[none & ((pixels != 0) | filled | nothing)] = np.nan
        beyond = (0, tile - height), (0, tile - width)
        pixels, seen = np.pad(pixels, ((0, 0), (0, 0), *beyond), "edge"), np.pad(seen, beyond, "edge")
        keys = [c.spec.key for c in self.channels]
        images = {key: pixels[:, [i for i, k in enumerate(keys) if k == key]] for key in self.specs}
        times = dict.fromkeys(images, list(self.given.dates)) if self.given.dates else {}
        return Sample("scene", {k: x if self.frames > 1 else x[0] for k, x in images.items()}, self.specs, times), seen


def described(
    raster: rasterio.DatasetReader, path: str, bands: Sequence[int], spec: ImageSpec, given: Given
) -> ImageSpec:
    """``spec`` of training as the numbers of these bands need it: read as float32, NaN where nothing was observed."""
    factors = {(raster.scales[b - 1], raster.offsets[b - 1]) for b in bands}
    if len(factors) > 1 and given.scale is None:
        raise ValueError(f"{path}: bands of {spec.sensor} have several scales; write them as physical numbers")
    told = next(iter(factors))
    scale, offset = (spec.scale, spec.offset) if told == (1.0, 0.0) else told
    if given.unit:  # another unit: the numbers are in it, unless the file or the user says more
        scale, offset = told
    found = replace(
        spec,
        dtype="float32",
        nodata=np.nan,
        unit=given.unit or spec.unit,
        scale=scale if given.scale is None else given.scale,
        offset=offset if given.offset is None else given.offset,
    )
    if found.model_unit != spec.model_unit:
        raise ValueError(f"--unit {given.unit}: the model takes {spec.sensor} in {spec.model_unit}; convert {path}")
    return found


def chosen(
    raster: rasterio.DatasetReader, path: str, channels: Sequence[Channel], frames: int, asked: Sequence[str] | None
) -> list[int]:
    """The file's bands, from 1, that are the ``channels`` on every date; see :class:`Given`.

    Where nothing is asked for they are found by their names; a file of just so many bands whose names are none of the
    sensor's has them in this order.
    """
    c, per = len(channels), raster.count // frames
    known = [plain(name or "") for name in raster.descriptions[:per]]
    wanted = [channel.name for channel in channels]
    lacking = [name for name in asked or wanted if plain(name) not in known]
    named = {plain(band) for channel in channels for band in SENSORS[channel.spec.sensor].band_names} & set(known)
    if asked and all(name.isdecimal() for name in asked):
        numbers = [int(name) for name in asked]
    elif not lacking:
        numbers = [known.index(plain(name)) for name in asked or wanted]
    elif not asked and not named and raster.count == c * frames:
        numbers = list(range(c))
    elif any(known):
        has = ", ".join(name for name in raster.descriptions[:per] if name)
        raise ValueError(f"{path} has no band {lacking[0]}{suggest(lacking[0], known)} It has {has}; see --bands")
    else:
        dates = f" on {frames} dates" if frames > 1 else ""
        raise ValueError(
            f"{path} has {raster.count} band(s) without names; say by --bands which numbers (from 0) are "
            f"{', '.join(wanted)}{dates}"
        )
    if len(numbers) == c and frames > 1:
        if raster.count % frames:
            raise ValueError(f"{path} has {raster.count} bands, which are not {frames} dates of equally many")
        numbers = [date * per + number for date in range(frames) for number in numbers]
    if len(numbers) != c * frames:
        raise ValueError(f"--bands names {len(numbers)} bands; the model takes {c} on {frames} date(s)")
    if max(numbers) >= raster.count:
        raise ValueError(f"{path} has the bands 0 to {raster.count - 1}, but --bands asks for {max(numbers)}")
    return [number + 1 for number in numbers]


def plain(name: str) -> str:
    """A band's name in capitals without leading zeros: B02 and b2 are the same band."""
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", name.strip().upper())
