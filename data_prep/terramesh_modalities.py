"""TerraMesh's modalities: what their pixels are, and the land-cover classes."""

from __future__ import annotations

import numpy as np

from data_prep.common import label_info
from data_prep.rasters import STORED_NODATA
from dinov2.data.sample import ImageSpec
from dinov2.sensors import SENSORS

GSD = 10  # every modality is resampled to the Sentinel-2 grid
LANDCOVER = (
    "water",
    "trees",
    "flooded vegetation",
    "crops",
    "built area",
    "bare ground",
    "snow/ice",
    "clouds",
    "rangeland",
)
IGNORE = 255  # file code 0; code c is class c - 1


def _spec(sensor: str, bands: tuple[str, ...], dtype: str, unit: str, scale: float, nodata: float | None) -> ImageSpec:
    return ImageSpec(sensor, GSD, bands, dtype, unit, scale, 0.0, nodata)


SPECS = {
    **{
        folder: _spec(name, SENSORS[name].band_names, "int16", "reflectance", 1e-4, STORED_NODATA)
        for folder, name in (("S2L1C", "sentinel2_l1c"), ("S2L2A", "sentinel2_l2a"))
    },
    "S1GRD": _spec("sentinel1_grd", ("VV", "VH"), "float16", "db", 1.0, float("nan")),
    "S1RTC": _spec("sentinel1_rtc", ("VV", "VH"), "float32", "db", 1.0, float("nan")),
    "DEM": _spec("dem", ("elevation",), "int16", "metre", 1.0, -32768),
}
LABELS = label_info("landcover", LANDCOVER, IGNORE)


def landcover(codes: np.ndarray, what: str) -> np.ndarray:
    """The label mask of codes ``[h, w]``."""
    if codes.max() > len(LANDCOVER):
        raise ValueError(f"{what} has the land-cover code {codes.max()}; known codes are 0 to {len(LANDCOVER)}")
    return np.where(codes == 0, IGNORE, codes - 1).astype(np.uint8)
