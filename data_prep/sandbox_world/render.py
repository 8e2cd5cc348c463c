"""How a sensor sees the land: area average to the band's pixel, mixture x spectrum, atmosphere, noise and speckle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.sandbox_world.conditions import Conditions
from data_prep.sandbox_world.geometry import Grid, average, lowest
from data_prep.sandbox_world.land import Land, surface_maps
from data_prep.sandbox_world.spectra import (
    SURFACES,
    VISIBLE_TO_SWIR,
    backscatter,
    band_reflectance,
    vapour_transmission,
)
from dinov2.data.sample import ImageSpec
from dinov2.sensors import Band, Sensor

LOOKS = 4.4  # equivalent number of looks of Sentinel-1 IW GRD (ESA, Sentinel-1 product specification)
SAR_INCIDENCE = math.radians(38.0)  # looking east
OPTICAL_NOISE = 0.002  # reflectance
DN_SCALE = 1e-4  # stored optical numbers: reflectance x 10,000, 0 = no observation


@dataclass(frozen=True)
class View:
    """The land on one date: ``surfaces [K, n, n]`` shares, and what the sky does to them; ``step`` metres per pixel."""

    land: Land
    now: Conditions
    step: float
    cloud: np.ndarray  # [n, n] opacity
    shadow: np.ndarray  # [n, n] share of direct light that clouds take away

    @cached_property
    def surfaces(self) -> np.ndarray:
        """Share of every surface, float32 ``[K, n, n]``."""
        return surface_maps(self.land, self.now)

    def facing(self, zenith: float, azimuth: float) -> np.ndarray:
        """Cosine of the angle between the ground's normal and a direction (radians), ``[n, n]``."""
        down, right = np.gradient(self.land.elevation, self.step)
        east, south = math.sin(zenith) * math.sin(azimuth), -math.sin(zenith) * math.cos(azimuth)
        return (math.cos(zenith) - right * east - down * south) / np.sqrt(1 + right**2 + down**2)

    @cached_property
    def light(self) -> np.ndarray:
        """Illumination relative to flat open ground, float32 ``[n, n]``: slope, cast shadows, cloud shadows."""
        zenith, azimuth = math.radians(self.now.sun_zenith), math.radians(self.now.sun_azimuth)
        slope = np.clip(self.facing(zenith, azimuth) / math.cos(zenith), 0.2, 1.8)
        reach = 15.0 * min(math.tan(zenith), 2.5) / self.step  # shadow of a 15 m edge, in pixels
        towards_sun = shifted(self.land.height, -reach * math.cos(azimuth), reach * math.sin(azimuth))
        shaded = np.clip((towards_sun - self.land.height) / 15.0, 0, 1)
        return (slope * (1 - 0.5 * shaded) * (1 - 0.6 * self.shadow)).astype(np.float32)

    def optical(self, bands: tuple[Band, ...], factor: int) -> np.ndarray:
        """Surface reflectance ``[C, h, w]`` of bands with pixels of ``factor`` fine ones.

        Haze adds path radiance falling with wavelength (Angstrom's law, normalised at 550 nm) and dims the ground.
        """
        clear = average(self.surfaces * (self.light * (1 - self.cloud)), factor)  # [K, h, w]
        ground = np.einsum("ck,khw->chw", band_reflectance(bands), clear, optimize=True)
        clouds = band_reflectance(bands, ("cloud",))[:, :, None] * average(self.cloud, factor)
        wavelength = np.array([b.centre_nm for b in bands], float)
        seen = (self.now.gain * ground + clouds) * vapour_transmission(bands)[:, None, None]
        path = (self.now.haze * (wavelength / 550.0) ** -self.now.haze_exponent)[:, None, None]
        return (1 - path) * seen + path

    def radar(self, bands: tuple[Band, ...], factor: int, rng: np.random.Generator) -> np.ndarray:
        """Linear-power gamma0 ``[C, h, w]`` with gamma-distributed speckle; clouds are transparent."""
        power = np.einsum("ck,khw->chw", backscatter(bands), average(self.surfaces, factor), optimize=True)
        water = average(self.surfaces[[SURFACES.index("clear_water"), SURFACES.index("turbid_water")]], factor).sum(0)
        power *= 10 ** (np.clip(water, 0, 1) * self.now.wind_db / 10)
        power *= np.clip(average(self.facing(SAR_INCIDENCE, -math.pi / 2), factor) / math.cos(SAR_INCIDENCE), 0.3, 3)
        return power * rng.gamma(LOOKS, 1 / LOOKS, power.shape)

    def terrain(self, bands: tuple[Band, ...], factor: int) -> np.ndarray:
        """Elevation in metres or slope in degrees, ``[C, h, w]``."""
        down, right = np.gradient(self.land.elevation, self.step)
        maps = {"elevation": self.land.elevation, "slope": np.degrees(np.arctan(np.hypot(down, right)))}
        return np.stack([average(maps[b.surface or ""].astype(np.float32), factor) for b in bands])


def shifted(field: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """``field`` as seen ``rows`` down and ``columns`` to the right (nearest pixel, edges repeated)."""
    i = np.clip(np.arange(field.shape[0]) + round(rows), 0, field.shape[0] - 1)
    j = np.clip(np.arange(field.shape[1]) + round(columns), 0, field.shape[1] - 1)
    return field[i[:, None], j]


def look(land: Land, now: Conditions, grid: Grid) -> View:
    """The view of a place under given conditions; the grid's generator draws the clouds."""
    cloud = shadow = np.zeros((grid.n, grid.n), np.float32)
    if now.cloud_cover:
        field = grid.noise(180.0, octaves=4)
        edge = field[lowest(-field, now.cloud_cover)].min()
        cloud = np.clip((field - edge) * 1.6 + 0.1, 0, 0.95).astype(np.float32)
        reach = 200.0 * math.tan(math.radians(min(now.sun_zenith, 60.0))) / grid.step  # low clouds: shadows in the chip
        azimuth = math.radians(now.sun_azimuth)
        shadow = shifted(cloud, -reach * math.cos(azimuth), reach * math.sin(azimuth))
    return View(land, now, grid.step, cloud, shadow)


def renderable(sensor: Sensor) -> tuple[Band, ...]:
    """The bands of a sensor that this world has: 400-2500 nm, VV and VH without an orbit, elevation and slope."""
    low, high = VISIBLE_TO_SWIR
    return tuple(
        b
        for b in sensor.bands
        if b.surface or (low <= b.centre_nm <= high if b.centre_nm else b.polarisation in ("VV", "VH") and not b.orbit)
    )


def by_resolution(sensor: Sensor) -> dict[int, tuple[Band, ...]]:
    """Whole-metre pixel size -> the sensor's bands that have it, finest first."""
    groups: dict[int, list[Band]] = {}
    for band in renderable(sensor):
        groups.setdefault(max(1, round(band.gsd_m)), []).append(band)
    return {gsd: tuple(groups[gsd]) for gsd in sorted(groups)}


def image(
    view: View, sensor: Sensor, gsd: int, bands: Sequence[Band], rng: np.random.Generator
) -> tuple[ImageSpec, np.ndarray]:
    """One image ``[C, h, w]`` as it is stored, with its description."""
    bands, factor = tuple(bands), round(gsd / view.step)
    names = tuple(b.name for b in bands)
    if bands[0].is_sar:
        power = view.radar(bands, factor, rng)
        stored = 10 * np.log10(power) if sensor.unit == "db" else power
        return ImageSpec(sensor.name, gsd, names, "float32", sensor.unit), stored.astype(np.float32)
    if bands[0].surface:
        unit = "metre" if bands[0].surface == "elevation" else "degree"
        return ImageSpec(sensor.name, gsd, names, "float32", unit), view.terrain(bands, factor).astype(np.float32)
    reflectance = view.optical(bands, factor)
    reflectance += OPTICAL_NOISE * rng.standard_normal(reflectance.shape, dtype=np.float32)
    stored = np.clip(np.rint(reflectance / DN_SCALE), 1, 12000).astype(np.uint16)
    return ImageSpec(sensor.name, gsd, names, "uint16", "reflectance", DN_SCALE, 0.0, 0.0), stored
