"""MMEarth's modalities: what their pixels are, and what their classes and vectors mean.

Source: vishalned/MMEarth-data (README, config_data.yaml); classes of ESA WorldCover v100 and Dynamic World v1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2.data.sample import ImageSpec

GSD = 10
PASSES = tuple(f"{p}_{orbit}" for orbit in ("ascending", "descending") for p in ("VV", "VH", "HH", "HV"))
S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B08", "B09", "B10", "B11", "B12")  # B8A before B08


def _spec(sensor: str, bands: Sequence[str], dtype: str, unit: str, scale: float, nodata: float) -> ImageSpec:
    return ImageSpec(sensor, GSD, tuple(bands), dtype, unit, scale, 0.0, nodata)


# key in the file -> image and its channels there; sentinel2 by the tile's level
IMAGES = {
    "l1c": (_spec("sentinel2_l1c", S2, "uint16", "reflectance", 1e-4, 0), tuple(range(13))),
    "l2a": (
        _spec("sentinel2_l2a", [b for b in S2 if b != "B10"], "uint16", "reflectance", 1e-4, 0),
        tuple(i for i, b in enumerate(S2) if b != "B10"),
    ),
    "sentinel1": (_spec("sentinel1_grd", PASSES, "float32", "db", 1.0, float("nan")), tuple(range(8))),
    "aster": (_spec("dem", ["elevation"], "int16", "metre", 1.0, -32768), (0,)),
    "slope": (_spec("slope", ["slope"], "int16", "degree", 1.0, -32768), (1,)),
}
WORLDCOVER = (
    "trees",
    "shrubland",
    "grassland",
    "cropland",
    "built-up",
    "bare",
    "snow and ice",
    "water",
    "herbaceous wetland",
    "mangroves",
    "moss and lichen",
)
WORLDCOVER_CODES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
DYNAMIC_WORLD = (
    "water",
    "trees",
    "grass",
    "flooded vegetation",
    "crops",
    "shrub and scrub",
    "built",
    "bare",
    "snow and ice",
)
IGNORE = 255
WEATHER = [f"{m} {v}" for m in ("previous month", "month", "year") for v in ("mean", "min", "max", "precipitation")]
LABELS: dict[str, dict[str, Any]] = {
    "esa_worldcover": {"kind": "mask", "classes": list(WORLDCOVER), "ignore": IGNORE},
    "dynamic_world": {"kind": "mask", "classes": list(DYNAMIC_WORLD), "ignore": IGNORE},
    "sentinel2_scl": {"kind": "mask", "codes": "Sen2Cor scene classification", "ignore": 255},
    "sentinel2_cloudmask": {"kind": "mask", "codes": "QA60", "ignore": 65535},
    "sentinel2_cloudprod": {"kind": "mask", "unit": "percent", "ignore": 65535},
    "canopy_height": {"kind": "mask", "unit": "metre"},
    "canopy_height_std": {"kind": "mask", "unit": "metre"},
    "era5": {"kind": "vector", "names": WEATHER, "unit": "kelvin and metre"},
    "lat": {"kind": "vector", "names": ["sin", "cos"]},
    "lon": {"kind": "vector", "names": ["sin", "cos"]},
    "month": {"kind": "vector", "names": ["sin", "cos"]},
    "biome": {"kind": "class", "classes": [str(i) for i in range(14)], "ignore": -1},
    "eco_region": {"kind": "class", "classes": [str(i) for i in range(846)], "ignore": -1},
}
MAPS = ("esa_worldcover", "dynamic_world", "sentinel2_scl", "sentinel2_cloudmask", "sentinel2_cloudprod")


def coded(stored: np.ndarray, codes: Sequence[int]) -> np.ndarray:
    """Class numbers of codes in their order; ``IGNORE`` for every other number."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(codes)] = np.arange(len(codes))
    return table[stored]
