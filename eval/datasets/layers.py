"""The images of a sample: which files hold them and what their numbers mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import MISSING
from rasterio.windows import Window

from dinov2.data.sample import ImageSpec
from dinov2.sensors import SENSORS
from eval.datasets import derived, stores
from eval.datasets.listing import Pattern

DATE_FORMS = (
    *(("%Y-%m-%d", r"\d{4}-\d\d-\d\d"), ("%Y%m%d", r"\d{8}"), ("%Y%j", r"\d{7}")),
    *(("%Y-%m", r"\d{4}-\d\d"), ("%Y_%m", r"\d{4}_\d\d")),
)

T = TypeVar("T")


@dataclass
class Pixels:
    """What the numbers of one image key are; see :class:`dinov2.data.sample.ImageSpec`."""

    sensor: str = MISSING  # name in configs/sensors
    gsd_m: float = MISSING  # pixel size as stored
    bands: list[str] | None = None  # in the order of the file; None: all of the sensor
    skip: list[str] | None = None  # those of them that hold nothing
    names: list[str] | None = None  # what files call them, if each has its own; "442|443": one name or the other
    unit: str | None = None  # None: the sensor's, as for the next three
    scale: float | None = None
    offset: float | None = None
    nodata: Any = "sensor"  # null: every number is an observation; a list: all of these are none

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands that are read."""
        return tuple(band for band in self.stored if band not in (self.skip or ()))

    @property
    def stored(self) -> Sequence[str]:
        """Names of all bands that the files hold."""
        return self.bands or SENSORS[self.sensor].band_names

    @property
    def fills(self) -> list[Any]:
        """The stored numbers that mean "no observation", the one that stands for all of them first."""
        fill = SENSORS[self.sensor].nodata if self.nodata == "sensor" else self.nodata
        return [float(x) for x in fill] if isinstance(fill, list) else [None if fill is None else float(fill)]

    def spec(self, dtype: str) -> ImageSpec:
        """What its pixels are, stored as ``dtype``."""
        own = SENSORS[self.sensor]
        unit, scale = self.unit or own.unit, own.scale if self.scale is None else self.scale
        offset = own.offset if self.offset is None else self.offset
        return ImageSpec(self.sensor, self.gsd_m, self.band_names, dtype, unit, scale, offset, self.fills[0])

    def fitted(self, image: np.ndarray, spec: ImageSpec, path: Path) -> np.ndarray:
        """``image`` ``[..., C, H, W]`` with one nodata value and in the dtype of ``spec``; ValueError if it cannot."""
        for other in self.fills[1:]:
            image[np.isnan(image) if np.isnan(other) else image == other] = self.fills[0]
        if not np.can_cast(image.dtype, spec.dtype):
            raise ValueError(f"{path} holds {image.dtype}, other files of the set {spec.dtype}; convert them")
        return image.astype(spec.dtype, copy=False)


@dataclass
class Layer(Pixels):
    """One image key of every sample: its files and what they hold."""

    path: str = MISSING  # below the root, with {field} wherever names differ
    channels: list[int] | None = None  # the file's bands, from 1, that ``bands`` are; None: the file holds just these
    dates: list[str] | None = None  # what {date} stands for, in order: dates, columns with dates, or words (pre, post)
    frames: int = 1  # dates that one file holds, one after the other with all their bands
    first: int | None = None  # use the first dates of a sample only
    evenly: int | None = None  # show so many of them, evenly spaced; None: all
    absent: bool = False  # the file of a date may be missing: its pixels are nodata
    calendar: list[str] | None = None  # the dates that the words in ``dates`` stand for, with {field} as in the path
    axes: str = ""  # of npy, HDF5 and zarr arrays, for example NHWC; see eval/datasets/stores.py
    simulate: str | None = None  # show the bands of this sensor instead, as sums of the narrow ones that are stored
    pixels: int | None = None  # means on a grid of so many by so many of gsd_m: for files finer than it (not in tiles)

    def spec(self, dtype: str) -> ImageSpec:
        """What its pixels are, stored as ``dtype``, or what is simulated from them."""
        return derived.simulated_spec(self.simulate, self.gsd_m) if self.simulate else super().spec(dtype)

    def chosen(self, dates: Sequence[T]) -> list[T]:
        """The dates that are shown, out of all of a sample."""
        dates = dates[: self.first]
        every = range(len(dates)) if self.evenly is None else np.linspace(0, len(dates) - 1, self.evenly).round()
        return [dates[int(i)] for i in every]

    def longest(self, rows: pa.Table) -> int:
        """The largest number of dates of a sample that are shown."""
        if "T" in self.axes:
            count = pc.max(rows["frames"]).as_py()
        elif "{date}" not in self.path:
            count = self.frames
        else:
            count = len(self.dates) if self.dates else pc.max(pc.list_value_length(rows["date"])).as_py()
        return self.evenly or len(range(count)[: self.first])

    def files(self, root: Path, values: Mapping[str, Any]) -> list[list[Path]]:
        """The files of every date that is shown: one, or one per band."""
        steps = self.chosen(self.dates or values["date"]) if "{date}" in self.path else [""]
        names = (self.names or self.stored) if "{band}" in self.path else ("",)
        return [[self.file(root, {**values, "date": step}, name) for name in names] for step in steps]

    def file(self, root: Path, values: Mapping[str, Any], names: str) -> Path:
        """The file of a date and a band, which may have one name or another."""
        paths = [root / Pattern(self.path).fill({**values, "band": name}) for name in names.split("|")]
        return next((path for path in paths[1:] if stores.exists(path)), paths[0])

    def header(self, root: Path, values: Mapping[str, Any]) -> stores.Header:
        """That of a sample's first file, which stands for all."""
        return stores.header(self.there(self.files(root, values))[0][0], self.axes)

    def there(self, files: list[list[Path]]) -> list[list[Path]]:
        """Those of the dates that have files."""
        found = [paths for paths in files if not self.absent or stores.exists(paths[0])]
        if not found:
            raise ValueError(f"{files[0][0]} and the files of all other dates are missing; leave the sample out")
        return found

    def times(self, values: Mapping[str, Any]) -> list[str]:
        """ISO dates of what is shown, where all of them are dates; a column may hold all of a sample's, with ";"."""
        days = [Pattern(day).fill(values) for day in self.calendar or []]
        found = [values.get(step, step) for step in days or self.dates or values.get("date") or []]
        every = [date for part in found for date in (part if isinstance(part, list) else part.split(";"))]
        dates = [iso_date(str(date)) for date in self.chosen(every)] if every else []
        return [date for date in dates if date] if all(dates) else []

    def read(self, root: Path, values: Mapping[str, Any], spec: ImageSpec, window: Window | None) -> np.ndarray:
        """``[C, H, W]``, or ``[T, C, H, W]`` for several dates, of one sample."""
        files = self.files(root, values)
        there = self.there(files)
        dates = {paths[0]: self.read_date(paths, window, values.get("n", 0)) for paths in there}
        for paths in files:
            if paths[0] not in dates:
                dates[paths[0]] = np.full_like(dates[there[0][0]], self.fills[0])
        image = np.stack([dates[paths[0]] for paths in files]) if "{date}" in self.path else dates[files[0][0]]
        if self.frames > 1:
            image = image.reshape(self.frames, len(self.stored), *image.shape[-2:])
        if "T" in self.axes:
            image = image[self.chosen(range(len(image)))]
        if self.skip:
            image = image[..., [self.stored.index(band) for band in self.band_names], :, :]
        image = self.fitted(image, spec, files[0][0])
        image = derived.simulated(image, super().spec("float32"), spec) if self.simulate else image
        return derived.averaged(image, spec, self.pixels) if self.pixels else image

    def read_date(self, paths: Sequence[Path], window: Window | None, sample: int) -> np.ndarray:
        """``[frames * C, H, W]``, or ``[T, C, H, W]`` where the files have the axis T."""
        image = np.concatenate([stores.read(path, self.channels, window, self.axes, sample) for path in paths], -3)
        wanted = self.frames * len(self.stored)
        if image.shape[-3] != wanted:
            raise ValueError(
                f"{paths[0]} has {image.shape[-3]} bands, but {wanted} are described ({', '.join(self.stored)}); "
                "correct the layer's bands or channels"
            )
        return image


def iso_date(text: str) -> str | None:
    """The day (of a month: its first) that a text is, as YYYY-MM-DD; None if it is none."""
    form = next((form for form, regex in DATE_FORMS if re.fullmatch(regex, text)), None)
    return form and datetime.strptime(text, form).date().isoformat()
