"""Sensors and bands: the only place where wavelengths, resolutions, polarisations and units live.

A sensor is a YAML file in ``configs/sensors``; this module turns it into frozen dataclasses. The number a model
sees for a band is its *channel id*, an integer:

* optical and thermal: the centre wavelength floored to whole nanometres;
* SAR: ``-1..-12`` = {VV, VH, HH, HV} x {orbit unknown, ascending, descending} (Panopticon's convention);
* ``-13`` elevation, ``-14`` slope.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml

from dinov2.names import suggest

SENSOR_DIR = Path(__file__).resolve().parent.parent / "configs" / "sensors"
POLARISATIONS = ("VV", "VH", "HH", "HV")
ORBITS = (None, "ascending", "descending")
SURFACES = {"elevation": -13, "slope": -14}
UNITS = ("reflectance", "radiance", "kelvin", "db", "linear_power", "metre", "degree", "dn")
MIN_ID = min(SURFACES.values())
FWHM_PER_SIGMA = 2.3548200450309493  # 2 sqrt(2 ln 2)


@dataclass(frozen=True)
class Band:
    """One band.

    ``centre_nm`` and ``fwhm_nm`` in nanometres (optical and thermal), ``gsd_m`` ground sampling distance in metres,
    ``polarisation`` one of VV, VH, HH, HV and ``orbit`` ascending, descending or None (unknown) for SAR,
    ``surface`` elevation or slope for terrain.
    """

    name: str
    gsd_m: float
    centre_nm: float | None = None
    fwhm_nm: float | None = None
    polarisation: str | None = None
    orbit: str | None = None
    surface: str | None = None

    def __post_init__(self) -> None:
        kinds = [self.centre_nm is not None, self.polarisation is not None, self.surface is not None]
        if sum(kinds) != 1:
            raise ValueError(f"band {self.name!r} needs exactly one of centre_nm, polarisation, surface")
        if self.polarisation is not None and self.polarisation not in POLARISATIONS:
            raise ValueError(f"band {self.name!r}: polarisation {self.polarisation!r} is not one of {POLARISATIONS}")
        if self.orbit not in ORBITS:
            raise ValueError(f"band {self.name!r}: orbit {self.orbit!r} is not one of {ORBITS}")
        if self.surface is not None and self.surface not in SURFACES:
            raise ValueError(f"band {self.name!r}: surface {self.surface!r} is not one of {tuple(SURFACES)}")
        if self.centre_nm is not None and not (100 <= self.centre_nm <= 20000 and self.fwhm_nm and self.fwhm_nm > 0):
            raise ValueError(f"band {self.name!r} needs centre_nm in 100..20000 nm and a positive fwhm_nm")

    @property
    def channel_id(self) -> int:
        """The integer a model sees (see the module docstring)."""
        if self.surface is not None:
            return SURFACES[self.surface]
        if self.polarisation is not None:
            return -(1 + POLARISATIONS.index(self.polarisation) + len(POLARISATIONS) * ORBITS.index(self.orbit))
        assert self.centre_nm is not None
        return int(self.centre_nm)

    @property
    def is_sar(self) -> bool:
        """Whether the band is a radar backscatter band."""
        return self.polarisation is not None


@dataclass(frozen=True)
class Sensor:
    """A sensor product: its bands, and how a stored number becomes a physical one: ``stored * scale + offset``.

    ``unit`` is one of ``UNITS``; ``nodata`` the stored value that means "no observation" (None: there is none).
    ``dated_offsets`` lists ``(since, stored)``: products dated on or after ``since`` (ISO date) carry ``stored`` added
    to every pixel, which data preparation removes exactly once (Sentinel-2 baseline 04.00: +1000 since 2022-01-25).
    """

    name: str
    bands: tuple[Band, ...]
    unit: str
    scale: float
    offset: float
    nodata: float | None
    source: str
    dated_offsets: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"sensor {self.name!r}: unit {self.unit!r} is not one of {UNITS}")
        if len({b.name for b in self.bands}) != len(self.bands):
            raise ValueError(f"sensor {self.name!r} names a band twice")

    @cached_property
    def _by_name(self) -> dict[str, Band]:
        return {b.name: b for b in self.bands}

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of all bands in the sensor's order."""
        return tuple(self._by_name)

    def band(self, name: str) -> Band:
        """The band called ``name``; unknown names raise and list the known ones."""
        if name not in self._by_name:
            raise ValueError(
                f"sensor {self.name!r} has no band {name!r}{suggest(name, self.band_names)} "
                f"Known bands: {', '.join(self.band_names)}"
            )
        return self._by_name[name]

    def select(self, names: Sequence[str]) -> Sensor:
        """The same sensor with these bands, in this order."""
        return replace(self, bands=tuple(self.band(n) for n in names))

    def channel_ids(self, names: Sequence[str] | None = None) -> list[int]:
        """Channel ids of the named bands (all by default)."""
        return [self.band(n).channel_id for n in (self.band_names if names is None else names)]

    def spectra(self, names: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """``(centre, sigma)`` in whole nm per optical band: the full-spectra form of the channel id."""
        bands = [self.band(n) for n in (self.band_names if names is None else names)]
        if any(b.centre_nm is None for b in bands):
            raise ValueError(f"sensor {self.name!r}: full spectra need optical bands only")
        return [(b.channel_id, int((b.fwhm_nm or 0) / FWHM_PER_SIGMA)) for b in bands]

    def stored_offset(self, date: str) -> float:
        """What products of this ISO ``date`` carry added to every stored value (0 where nothing was added)."""
        return next((value for since, value in reversed(self.dated_offsets) if date >= since), 0.0)


def load_sensor(path: Path) -> Sensor:
    """Read one sensor YAML; every complaint names the file."""
    raw = yaml.safe_load(path.read_text())
    try:
        defaults = raw.pop("band_defaults", {})
        bands = tuple(Band(**{**defaults, **b}) for b in raw.pop("bands"))
        offsets = tuple((str(o["since"]), float(o["stored"])) for o in raw.pop("dated_offsets", []))
        return Sensor(bands=bands, dated_offsets=offsets, **raw)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


class Registry(Mapping[str, Sensor]):
    """Name -> Sensor, read from ``configs/sensors`` on first use; an unknown name raises and lists the known ones."""

    def __init__(self, folder: Path = SENSOR_DIR) -> None:
        self.folder = folder

    @cached_property
    def _sensors(self) -> dict[str, Sensor]:
        sensors = {}
        for path in sorted(self.folder.glob("*.yaml")):
            sensor = load_sensor(path)
            if sensor.name != path.stem:
                raise ValueError(f"{path}: the sensor's name {sensor.name!r} differs from the file's")
            sensors[sensor.name] = sensor
        return sensors

    def __getitem__(self, name: str) -> Sensor:
        if name not in self._sensors:
            known = sorted(self._sensors)
            raise ValueError(f"unknown sensor {name!r}{suggest(name, known)} Known sensors: {', '.join(known)}")
        return self._sensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._sensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._sensors)

    def __len__(self) -> int:
        return len(self._sensors)


SENSORS = Registry()
