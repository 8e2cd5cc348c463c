"""Pixel time series: what the branches of the series encoder see of a pixel.

A branch sees one sensor. Radar looks of different orbits are dates of their own, each standardised with its orbit's
statistics, in one sequence. Legend: P pixels, N dates, K dates that are shown, C bands of a branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.stats import Normalisation
from dinov2.sensors import SENSORS

VIEW_OPTIONS = ("size", "scale", "bands", "distinct")  # of objectives: they describe crops of images
ORBITS = ("", "_ascending", "_descending")
OPTICAL = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")  # as BTFM and TESSERA order them

Inputs = Mapping[str, Sequence[str]]  # branch -> sensor, band, band, ...


@dataclass
class Series:
    """Which series the encoder sees, and how its two views of a pixel are drawn."""

    optical: str = "sentinel2_l2a"  # sensor of the optical branch
    optical_bands: list[str] = field(default_factory=lambda: list(OPTICAL))
    radar: str = "sentinel1_rtc"  # sensor of the radar branch
    radar_bands: list[str] = field(default_factory=lambda: ["VV", "VH"])  # of any orbit
    dates: int = 40  # most dates of a sensor in a view
    keep: float = 0.8  # share of a pixel's valid dates in a view
    window_days: int = 30  # length of a gap without any date
    window_probability: float = 0.5  # of such a gap in a view
    drop_sensor: float = 0.1  # probability that a view of a pixel with both sensors shows one only

    def __post_init__(self) -> None:
        for sensor, *bands in self.inputs.values():
            SENSORS[sensor].channel_ids(bands)  # an unknown sensor or band raises here, by name

    @property
    def inputs(self) -> Inputs:
        """As :class:`dinov2.models.timeseries.SeriesEncoder` takes it."""
        return {"s2": [self.optical, *self.optical_bands], "s1": [self.radar, *self.radar_bands]}


class Observed(NamedTuple):
    """Stored numbers ``[T, P, C']`` of one image, what they are, and when: ISO dates ``[T]``."""

    stored: np.ndarray
    spec: ImageSpec
    dates: Sequence[str]
    clear: np.ndarray | None = None  # bool [T, P], where a mask says so


@dataclass(frozen=True)
class Track:
    """Every look of one sensor at P pixels, in the order of time.

    ``stored`` ``[N, P, C]``; ``valid`` bool ``[N, P]``; ``dates`` int ``[N]`` days since 1970, ``days`` int ``[N]`` of
    the year; stored * ``slope`` + ``shift``, float32 ``[N, C]`` (``[1, C]``: of all looks), is standardised.
    """

    stored: np.ndarray
    valid: np.ndarray
    dates: np.ndarray
    days: np.ndarray
    slope: np.ndarray
    shift: np.ndarray
    spec: ImageSpec | None

    def pick(self, name: str, pixels: np.ndarray, chosen: np.ndarray, shown: np.ndarray) -> dict[str, np.ndarray]:
        """What branch ``name`` sees of ``pixels [p]`` at dates number ``chosen [p, K]``; ``shown`` False is padding."""
        (count, dates), bands = chosen.shape, self.slope.shape[1]
        values = np.zeros((count, dates, bands), np.float32)
        if self.spec is not None:
            rows = chosen * self.stored.shape[1] + pixels[:, None]  # one index gathers thrice as fast as two
            stored = self.stored.reshape(-1, bands).take(rows, axis=0)  # [p, K, C]
            values = stored.astype(np.float32)
            flat = values.reshape(count, -1)  # numpy is slow where the last axis is short
            flat *= self._along(self.slope, chosen)
            flat += self._along(self.shift, chosen)
            if (missing := self.spec.invalid(stored)).any():
                values[missing] = 0  # the band's mean
            values[~shown] = 0
        return {name: values, f"{name}_days": self.days[chosen], f"{name}_valid": shown}

    def _along(self, table: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """``table`` (``[1, C]`` or ``[N, C]``) at the chosen dates, flat: ``[1, K * C]`` or ``[p, K * C]``."""
        found = np.tile(table, (1, chosen.shape[1])) if len(table) == 1 else table.take(chosen, axis=0)
        return found.reshape(len(found), -1)


def observe(images: Sequence[Observed], wanted: Sequence[str], pixels: int, norm: Normalisation, where: str) -> Track:
    """The looks of sensor ``wanted[0]`` with bands ``wanted[1:]`` among ``images``; none of them: a track without any.

    ``where`` names the source in complaints: ValueError for a band that is absent, dates that do not fit the images,
    bands without statistics and images in different units.
    """
    sensor, bands = wanted[0], list(wanted[1:])
    looks, spec = [], None
    for image in images:
        if image.spec.sensor != sensor:
            continue
        if len(image.dates) != len(image.stored):
            raise ValueError(f"{where}, {sensor}: {len(image.stored)} images but {len(image.dates)} dates")
        if image.spec.unit == "linear_power":
            raise ValueError(f"{where}, {sensor}: series need radar in dB, this is linear power")
        spec = spec or image.spec
        if (image.spec.unit, image.spec.scale, image.spec.offset) != (spec.unit, spec.scale, spec.offset):
            raise ValueError(f"{where}: two images of {sensor} differ in unit, scale or offset")
        dates = np.array(image.dates, "datetime64[D]")
        for index, names in _orbits(image.spec.bands, bands, f"{where}, {sensor}"):
            whole = index == list(range(image.stored.shape[2]))
            stored = np.ascontiguousarray(image.stored if whole else image.stored[..., index])
            seen = np.zeros(stored.shape[:2], bool)
            for band in range(len(bands)):
                seen |= ~image.spec.invalid(stored[..., band])
            valid = seen if image.clear is None else seen & image.clear
            mean, std = norm.lookup(image.spec, names)
            linear = np.stack([image.spec.scale / std, (image.spec.offset - mean) / std]).astype(np.float32)
            looks.append((stored, valid, dates, np.broadcast_to(linear, (len(dates), *linear.shape))))
    if not looks or not sum(len(look[2]) for look in looks):
        none = np.zeros((1, len(bands)), np.float32)
        return Track(np.zeros((1, pixels, 0)), np.zeros((1, pixels), bool), np.zeros(1, int), np.ones(1, int),
                     none, none + 1, None)  # fmt: skip
    stored, valid, dates, linear = (np.concatenate(p) if len(p) > 1 else p[0] for p in zip(*looks, strict=True))
    order = np.argsort(dates, kind="stable")
    if (np.diff(order) < 0).any():
        stored, valid, dates, linear = stored[order], valid[order], dates[order], linear[order]
    slope, shift = linear[: 1 if len(looks) == 1 else None].swapaxes(0, 1)
    days = (dates - dates.astype("datetime64[Y]")).astype(int) + 1
    return Track(stored, valid, dates.astype(int), days, slope, shift, spec)


def _orbits(bands: Sequence[str], wanted: Sequence[str], where: str) -> list[tuple[list[int], list[str]]]:
    """Indices and names of the wanted bands in each orbit that is there."""
    found = []
    for orbit in ORBITS:
        names = [band + orbit for band in wanted]
        if any(name in bands for name in names):
            missing = [name for name in names if name not in bands]
            if missing:
                raise ValueError(
                    f"{where}: no band {', '.join(missing)}, which the encoder sees; {', '.join(bands)} are there"
                )
            found.append(([bands.index(name) for name in names], names))
    if not found:
        raise ValueError(f"{where}: none of the encoder's bands {', '.join(wanted)}; {', '.join(bands)} are there")
    return found


def tracks(sample: Sample, inputs: Inputs, norm: Normalisation) -> dict[str, Track]:
    """The tracks of all pixels of a sample, by branch."""
    sample.check_finite()
    images = []
    for name, image in sample.images.items():
        if image.ndim != 4:
            raise ValueError(f"sample {sample.key!r}, image {name!r} is no time series [T, C, H, W]")
        stored = np.moveaxis(image.reshape(*image.shape[:2], -1), 1, 2)  # [T, P, C]
        images.append(Observed(stored, sample.specs[name], sample.times.get(name, [])))
    sides = {image.stored.shape[1] for image in images}
    if len(sides) > 1:
        raise ValueError(f"sample {sample.key!r}: its images differ in size, which pixel series must not")
    where = f"sample {sample.key!r}"
    return {name: observe(images, wanted, max(sides), norm, where) for name, wanted in inputs.items()}


def bring(valid: np.ndarray, count: int, padding: str) -> tuple[np.ndarray, np.ndarray]:
    """Which dates of P series become ``count`` dates: numbers ``[P, K]`` and shown ``[P, K]``; ``valid [N, P]``.

    More dates than ``count`` are thinned to the centres of as many equal parts. Fewer are padded (``mask``), or come
    again spread evenly (``repeat``). A series without any date shows nothing.
    """
    dates = np.nonzero(np.ascontiguousarray(valid.T))[1]  # those of all series, one series after the other
    n = valid.sum(0)[:, None]  # [P, 1]
    first = np.cumsum(n)[:, None] - n
    step = np.arange(count)
    spread = (2 * step + 1) * n // (2 * count)  # [P, K]
    padded = np.minimum(step, np.maximum(n - 1, 0))
    places = spread if padding == "repeat" else np.where(n > count, spread, padded)
    shown = np.broadcast_to(n > 0, places.shape) if padding == "repeat" else step < n
    return np.append(dates, 0)[np.where(shown, first + places, len(dates))], shown


def bin_of(counts: np.ndarray, bins: Sequence[int]) -> np.ndarray:
    """The smallest of ``bins`` that holds each count ``[P]``, or the largest bin; 0 of no date."""
    return np.where(counts > 0, np.asarray(bins)[np.minimum(np.searchsorted(bins, counts), len(bins) - 1)], 0)
