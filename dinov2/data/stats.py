"""Per-band statistics that merge, and the normalisation that a checkpoint carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinov2.data.sample import ImageSpec

Stats = dict[tuple[str, str], "BandStats"]  # (sensor, band) -> statistics in the model unit


@dataclass(frozen=True)
class BandStats:
    """Count, mean, sum of squared deviations, minimum and maximum of the valid pixels of one band, in ``unit``."""

    unit: str
    count: int
    mean: float
    m2: float
    min: float
    max: float

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return float(np.sqrt(self.m2 / self.count))

    @classmethod
    def of(cls, values: np.ndarray, unit: str) -> BandStats:
        """Statistics of a flat array of valid values (at least one)."""
        v = values.astype(np.float64)
        return cls(unit, v.size, float(v.mean()), float(((v - v.mean()) ** 2).sum()), float(v.min()), float(v.max()))

    def merge(self, other: BandStats) -> BandStats:
        """Statistics of the union (Chan et al. 1979, eq. 2.1)."""
        if self.unit != other.unit:
            raise ValueError(f"cannot merge statistics in {self.unit} with statistics in {other.unit}")
        n = self.count + other.count
        delta = other.mean - self.mean
        return BandStats(
            self.unit,
            n,
            self.mean + delta * other.count / n,
            self.m2 + other.m2 + delta * delta * self.count * other.count / n,
            min(self.min, other.min),
            max(self.max, other.max),
        )


def image_stats(image: np.ndarray, spec: ImageSpec) -> Stats:
    """Statistics of every band of an image ``[C, H, W]`` or ``[T, C, H, W]``; bands without valid pixels are absent."""
    values, valid = spec.to_model(image), ~spec.invalid(image)
    out: Stats = {}
    for c, band in enumerate(spec.bands):
        good = values[..., c, :, :][valid[..., c, :, :]]
        if good.size:
            out[spec.sensor, band] = BandStats.of(good, spec.model_unit)
    return out


def merge_stats(parts: Sequence[Stats]) -> Stats:
    """Union of several sets of statistics."""
    out: Stats = {}
    for part in parts:
        for key, stats in part.items():
            try:
                out[key] = out[key].merge(stats) if key in out else stats
            except ValueError as error:
                raise ValueError(f"sensor {key[0]!r}, band {key[1]!r}: {error}") from error
    return out


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per sensor and band, in the model unit: ``table[sensor][band] = (mean, std)``."""

    table: Mapping[str, Mapping[str, tuple[float, float]]]
    units: Mapping[str, str]

    @classmethod
    def from_stats(cls, stats: Stats) -> Normalisation:
        """From statistics; a band that never varies is refused (it would divide by zero)."""
        table: dict[str, dict[str, tuple[float, float]]] = {}
        for (sensor, band), s in stats.items():
            if not s.std > 0:
                raise ValueError(f"sensor {sensor!r}, band {band!r} is constant ({s.mean:g} {s.unit}): leave it out")
            table.setdefault(sensor, {})[band] = (s.mean, s.std)
        return cls(table, {sensor: s.unit for (sensor, _), s in stats.items()})

    def lookup(self, spec: ImageSpec, bands: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """float32 ``(mean [C], std [C])`` of these bands; a missing sensor, band or another unit raises."""
        known = self.table.get(spec.sensor)
        if known is None:
            raise ValueError(f"no normalisation statistics for sensor {spec.sensor!r}; known: {sorted(self.table)}")
        if self.units[spec.sensor] != spec.model_unit:
            raise ValueError(
                f"sensor {spec.sensor!r}: statistics are in {self.units[spec.sensor]}, the data in {spec.model_unit}"
            )
        missing = [b for b in bands if b not in known]
        if missing:
            raise ValueError(f"no normalisation statistics for sensor {spec.sensor!r}, band {', '.join(missing)}")
        values = np.array([known[b] for b in bands], np.float32)
        return values[:, 0], values[:, 1]

    def updated(self, other: Normalisation) -> Normalisation:
        """These statistics, and ``other``'s for the sensors that these do not have."""
        return Normalisation({**other.table, **self.table}, {**other.units, **self.units})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {s: {"unit": self.units[s], "bands": {b: list(v) for b, v in t.items()}} for s, t in self.table.items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Normalisation:
        """The inverse of :meth:`to_dict`."""
        return cls(
            {s: {b: (float(v[0]), float(v[1])) for b, v in d["bands"].items()} for s, d in raw.items()},
            {s: d["unit"] for s, d in raw.items()},
        )
