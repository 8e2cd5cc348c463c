"""What is stored: optical numbers without their baseline offset, radar in one of two conventions, clear pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2.data.sample import ImageSpec

CLOUDY = (0, 1, 2, 3, 8, 9)  # scene classes that are not clear: none, saturated, dark, shadow, cloud (as published)
OFFSET = 1000  # added to the numbers since processing baseline 04.00
OFFSET_SINCE = 4.0
# radar convention -> scale, offset and nodata of the stored int16: dB = stored * scale + offset
RADAR: Mapping[str, tuple[float, float, int]] = {
    "db": (0.01, 0.0, -32768),
    "doubled": (
        1 / 400,
        -25.0,
        0,
    ),  # (20 log10(power) + 50) * 200, as BTFM and TESSERA store it
}
SAR_UNITS = ("linear_power", "amplitude", "db")


def offset_of(properties: Mapping[str, Any], name: str, choice: str = "auto") -> int:
    """What an item's numbers carry added, by its own metadata; ``choice`` remove or none overrules it.

    An item that says neither whether the offset is off already nor its processing baseline raises ValueError.
    """
    if choice != "auto":
        return OFFSET if choice == "remove" else 0
    if properties.get("earthsearch:boa_offset_applied"):
        return 0
    baseline = properties.get("s2:processing_baseline", properties.get("processing:version"))
    if baseline is None:
        raise ValueError(f"item {name} does not tell its processing baseline: give --s2-offset remove or none")
    return OFFSET if float(baseline) >= OFFSET_SINCE else 0


def without_offset(stored: np.ndarray, offset: int) -> np.ndarray:
    """uint16 numbers less ``offset``; 0 stays no observation, and what would fall to 0 or below becomes 1."""
    if not offset:
        return stored
    return np.where(stored == 0, 0, np.maximum(stored.astype(np.int32) - offset, 1)).astype(np.uint16)


def decibels(values: np.ndarray, unit: str) -> np.ndarray:
    """dB of radar numbers in ``unit``; NaN where there is none (not finite; not positive power or amplitude)."""
    x = values.astype(np.float64)
    if unit == "db":
        return np.where(np.isfinite(x), x, np.nan)
    factor = 10.0 if unit == "linear_power" else 20.0
    good = np.isfinite(x) & (x > 0)
    return np.where(good, factor * np.log10(np.where(good, x, 1)), np.nan)


def to_stored(db: np.ndarray, convention: str) -> np.ndarray:
    """int16 in a convention of ``RADAR``, saturating; NaN becomes its nodata."""
    scale, offset, nodata = RADAR[convention]
    low = 1 if nodata == 0 else nodata + 1
    numbers = np.clip(np.rint((db - offset) / scale), low, 32767)
    return np.where(np.isnan(db), nodata, numbers).astype(np.int16)


def radar_spec(sensor: str, resolution: float, orbit: str, convention: str) -> ImageSpec:
    """The description of a radar layer."""
    scale, offset, nodata = RADAR[convention]
    bands = (f"VV_{orbit}", f"VH_{orbit}")
    return ImageSpec(sensor, resolution, bands, "int16", "db", scale, offset, nodata)


def optical_spec(bands: tuple[str, ...], resolution: float) -> ImageSpec:
    """The description of the optical layer."""
    return ImageSpec("sentinel2_l2a", resolution, bands, "uint16", "reflectance", 1e-4, 0.0, 0)
