"""When and how a place is looked at: season, sun, atmosphere, clouds, wetness. Nuisances: drawn without the scene."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass

import numpy as np

LATITUDE = 46.0  # of the whole world, degrees north
OVERPASS_HOUR_ANGLE = -22.5  # 10:30 local solar time, degrees


@dataclass(frozen=True)
class Conditions:
    """One acquisition. Angles in degrees, ``haze`` added reflectance at 550 nm, the rest fractions or plain factors."""

    date: str
    day_of_year: int
    sun_zenith: float
    sun_azimuth: float
    gain: float  # bidirectional and calibration effects, a factor common to all bands
    haze: float
    haze_exponent: float
    cloud_cover: float
    moisture: float  # of bare soil, 0 dry .. 1 wet
    wind_db: float  # roughness of water above its calm backscatter
    snow_cover: float


def sun_position(day_of_year: int) -> tuple[float, float]:
    """Zenith and azimuth (degrees) at the overpass; declination after Cooper 1969, Solar Energy 12, eq. 1."""
    declination = np.radians(23.45 * np.sin(2 * np.pi * (284 + day_of_year) / 365))
    latitude, hour = np.radians(LATITUDE), np.radians(OVERPASS_HOUR_ANGLE)
    up = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)
    south = np.sin(latitude) * np.cos(declination) * np.cos(hour) - np.cos(latitude) * np.sin(declination)
    east = -np.cos(declination) * np.sin(hour)
    return float(np.degrees(np.arccos(up))), float(np.degrees(np.arctan2(east, -south)) % 360)


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """Conditions of a random day of 2020 or 2021; one acquisition in six has clouds, one winter day in five snow."""
    date = datetime.date(2020, 1, 1) + datetime.timedelta(days=int(rng.integers(731)))
    day = date.timetuple().tm_yday
    zenith, azimuth = sun_position(day)
    winter = day < 75 or day > 330
    return Conditions(
        date=date.isoformat(),
        day_of_year=day,
        sun_zenith=zenith,
        sun_azimuth=azimuth,
        gain=float(np.exp(rng.normal(0, 0.16))),
        haze=float(rng.gamma(1.2, 0.018)),
        haze_exponent=float(rng.uniform(0.8, 2.2)),
        cloud_cover=float(rng.uniform(0.02, 0.14)) if rng.random() < 0.18 else 0.0,
        moisture=float(rng.random()),
        wind_db=float(rng.gamma(1.5, 2.0)),
        snow_cover=float(rng.uniform(0.2, 0.7)) if rng.random() < 0.2 and winter else 0.0,
    )


def to_meta(conditions: Conditions) -> dict[str, float | int | str]:
    """Plain numbers for a sample's ``meta``."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(conditions).items()}
