"""Source ``worldcereal``: labelled pixel series of monthly Sentinel-2 and Sentinel-1 composites (a long parquet table).

Label ``crop`` is the crop type among those with at least ``--least`` series; all others are -1. Source of the format:
WorldCereal/presto-worldcereal; radar is stored so that dB = 20 log10(number) - 83.

Example: python data_prep/main.py worldcereal --src series.parquet --out data/worldcereal
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from data_prep.common import Plan, slug
from data_prep.store import Store
from data_prep.timeseries.region import Region
from data_prep.timeseries.units import RADAR, to_stored
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.series_tiles import MASKS, OPTICAL, Layer

if TYPE_CHECKING:
    from data_prep.timeseries.imports import Cube

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
NODATA = 65535
UNLABELLED = 0
SCALE, OFFSET, NONE = RADAR["db"]
RADAR_SPEC = ImageSpec("sentinel1_rtc", 10, ("VV", "VH"), "int16", "db", SCALE, OFFSET, NONE)
OPTICAL_SPEC = ImageSpec("sentinel2_l2a", 10, BANDS, "uint16", "reflectance", 1e-4, 0.0, NODATA)
HALF_DAY = np.timedelta64(12, "h")  # months begin at local midnight: the evening before in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    add = parser.add_argument
    add("--src", type=Path, required=True, help="long parquet table: a row per series and month")
    add("--months", type=int, default=12, help="first months of every series (%(default)s)")
    add("--least", type=int, default=50, help="series that a crop type needs to be a class (%(default)s)")


def stored_db(numbers: np.ndarray) -> np.ndarray:
    """int16 (100 dB) of WorldCereal's radar numbers."""
    x = numbers.astype(np.float64)
    good = (x > 0) & (x != NODATA)
    return to_stored(np.where(good, 20 * np.log10(np.where(good, x, 1)) - 83, np.nan), "db")


def make(rows: tuple[int, int], table: pa.Table, classes: list[str]) -> Sample:
    """One series: the rows from the first number to before the second."""
    part = table.slice(rows[0], rows[1] - rows[0])
    column = {name: part[name].to_numpy() for name in part.column_names}
    optical = np.stack([column[f"S2-L2A-{band}"] for band in BANDS], 1).astype(np.uint16)  # [T, C]
    radar = stored_db(np.stack([column["S1-SIGMA0-VV"], column["S1-SIGMA0-VH"]], 1))
    dates = [str(d) for d in (column["timestamp"] + HALF_DAY).astype("datetime64[D]")]
    crop, lon, lat = str(column["CROPTYPE_LABEL"][0]), float(column["lon"][0]), float(column["lat"][0])
    label = classes.index(crop) if crop in classes else -1
    images = {OPTICAL_SPEC.key: optical[..., None, None], RADAR_SPEC.key: radar[..., None, None]}
    specs, times = {s.key: s for s in (OPTICAL_SPEC, RADAR_SPEC)}, dict.fromkeys(images, dates)
    return Sample(
        slug(column["sample_id"][0]), images, specs, times, (lon, lat, lon, lat), "EPSG:4326", {"crop": label}
    )


def plan(args: argparse.Namespace) -> Plan:
    """The series in the order of their names."""
    table = pq.read_table(args.src).sort_by([("sample_id", "ascending"), ("timestamp", "ascending")])
    bounds = np.flatnonzero(np.diff(pc.rank(table["sample_id"], tiebreaker="dense").to_numpy(), prepend=0))
    lengths = np.diff(bounds, append=len(table))
    if lengths.min() < args.months:
        raise ValueError(f"{args.src}: the shortest series has {lengths.min()} months; lower --months {args.months}")
    crops = Counter(table["CROPTYPE_LABEL"].take(bounds).to_pylist())
    classes = [str(c) for c, n in sorted(crops.items()) if n >= args.least and c != UNLABELLED]
    provenance = {"source": "worldcereal", "months": args.months, "least": args.least}
    provenance["files"] = Store.at(str(args.src.parent)).fingerprint([args.src.name])
    labels = {"crop": {"kind": "class", "classes": classes, "ignore": -1}}
    rows = [(int(start), int(start) + args.months) for start in bounds]
    return Plan(rows, partial(make, table=table, classes=classes), labels, provenance, "none stated")


def variables(path: Path) -> dict[str, str]:
    """What rasterio opens of a netCDF file, by the names of its variables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the variables have a position, not the file
        with rasterio.open(path) as file:
            return {name.rsplit(":", 1)[-1]: name for name in file.subdatasets}


def cube(path: Path, resolution: float) -> Cube:
    """A WorldCereal cube (netCDF) of one region, for ``timeseries --src``; every month that has numbers is clear."""
    from data_prep.timeseries.imports import Cube

    names = variables(path)

    def variable(band: str) -> str:
        known = [name for name in (band, band.replace("B0", "B")) if name in names]  # B02 is B2 in some
        if not known:
            raise ValueError(f"{path} has no variable {band}; it has {', '.join(sorted(names))}")
        return names[known[0]]

    with rasterio.open(variable("VV")) as raster:
        region = Region(raster.crs.to_string(), raster.transform, np.ones(raster.shape, bool))
        days = [int(raster.tags(i)["NETCDF_DIM_t"]) for i in raster.indexes]
    dates = tuple(str(np.datetime64("1990-01-01") + day) for day in days)
    optical = ImageSpec("sentinel2_l2a", resolution, BANDS, "uint16", "reflectance", 1e-4, 0.0, 0)
    radar = ImageSpec("sentinel1_rtc", resolution, ("VV", "VH"), "int16", "db", SCALE, OFFSET, NONE)

    @lru_cache(maxsize=len(BANDS) + len(RADAR_SPEC.bands))  # all dates of a window: opening takes longest
    def planes(band: str, window: tuple[int, int, int, int]) -> np.ndarray:
        with rasterio.open(variable(band)) as raster:
            return raster.read(window=Window(*window))

    def read(name: str, window: Window, number: int) -> np.ndarray:
        wanted = BANDS if name in (OPTICAL, MASKS) else radar.bands
        numbers = np.stack([planes(band, window.flatten())[number] for band in wanted], -1)
        if name == "sar_ascending":
            return stored_db(numbers)
        numbers = np.where(numbers == NODATA, 0, numbers).astype(np.uint16)
        return np.asarray(numbers.any(-1), np.uint8) if name == MASKS else numbers

    layers = {OPTICAL: Layer(optical, dates), "sar_ascending": Layer(radar, dates)}  # the orbit is not told
    return Cube(region, layers, read, {"source": path.name})
