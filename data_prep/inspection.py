"""Does a GeoTIFF agree with what is said about it? A file that contradicts its sensor or the options is an error."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import rasterio

from data_prep.rasters import date_of, open_raster
from dinov2.data.sample import ImageSpec
from dinov2.sensors import SENSORS, Band, Sensor

NEGATIVE = 0.1  # share of pixels; products of linear power from which noise was taken off contain some
LEFT_OUT = "_"  # in --bands: a band of the file that is not taken
MOST = 1024  # pixels per side that are looked at, evenly over the raster


@dataclass(frozen=True)
class Product:
    """What every file of the folder is."""

    spec: ImageSpec
    indices: tuple[int, ...]  # bands to read, from 1
    nodata: float | None  # of the files; the spec's own differs where offsets are taken off
    offsets: bool = False  # whether any file has one


def inspect(path: str, args: argparse.Namespace) -> tuple[Product, tuple[int, int], str | None]:
    """Product, shape and date of one file; ValueError where the file contradicts the sensor or the options."""
    sensor = SENSORS[args.sensor]
    names = args.bands.split(",") if args.bands else list(sensor.band_names)
    bands = {i: sensor.band(name) for i, name in enumerate(names) if name != LEFT_OUT}
    with open_raster(path) as raster:
        if raster.count != len(names):
            raise ValueError(f"{path} has {raster.count} bands, {len(names)} are named: {', '.join(names[:14])}")
        if len(set(raster.dtypes)) > 1 or np.dtype(raster.dtypes[0]).kind not in "iuf":
            raise ValueError(
                f"{path} has bands of type {', '.join(sorted(set(raster.dtypes)))}: one real type is needed"
            )
        tags = [raster.tags(i + 1) for i in range(raster.count)]
        for i, band in bands.items():
            check_wavelength(path, band, tags[i])
        keep = [i for i in bands if not (args.drop_bad_bands and good_band(path, tags[i]) == "0")]
        gsd = pixel_size(raster, [*bands.values()])
        spec = described(args, sensor, gsd, [names[i] for i in keep], raster.dtypes[0])
        check_nodata(path, raster, spec, args)
        check_scale(path, raster, sensor, args)
        check_sign(path, raster, spec)
        date = args.date or date_of(raster.tags(), path)
        return Product(spec, tuple(i + 1 for i in keep), spec.nodata), raster.shape, date


def described(args: argparse.Namespace, sensor: Sensor, gsd: float, bands: Sequence[str], dtype: str) -> ImageSpec:
    """The image's description from the sensor and the options."""
    if sensor.unit == "dn" and args.unit is None:
        raise ValueError(
            f"the unit of sensor {sensor.name!r} is not known (plain digital numbers): give --unit, with --scale and "
            "--offset, or --unit dn to take the numbers as they are"
        )
    return ImageSpec(
        sensor=sensor.name,
        gsd_m=gsd,
        bands=tuple(bands),
        dtype="float32" if dtype == "float64" else dtype,
        unit=args.unit or sensor.unit,
        scale=sensor.scale if args.scale is None else args.scale,
        offset=sensor.offset if args.offset is None else args.offset,
        nodata=getattr(args, "nodata", sensor.nodata),
    )


def pixel_size(raster: rasterio.DatasetReader, bands: Sequence[Band]) -> float:
    """Metres per pixel to the centimetre; the sensor's finest where the raster has no reference system in metres."""
    if raster.crs is None or not raster.crs.is_projected:
        return round(min(b.gsd_m for b in bands), 2)
    metres = raster.res[0] * raster.crs.linear_units_factor[1]
    if round(metres, 2) == 0:
        raise ValueError(f"{raster.name} has pixels of {metres:g} m; at least 1 cm is needed: correct its transform")
    return round(metres, 2)


def check_wavelength(path: str, band: Band, tag: Mapping[str, str]) -> None:
    """ValueError if a file's wavelength (nm or um) lies outside the band it is said to be."""
    if "wavelength" not in tag or band.centre_nm is None:
        return
    unit = tag.get("wavelength_units", "nanometers").lower()
    wavelength = float(tag["wavelength"]) * (1000.0 if unit.startswith(("um", "micro")) else 1.0)
    if abs(wavelength - band.centre_nm) > (band.fwhm_nm or 0) / 2:
        raise ValueError(
            f"{path}: a band at {wavelength:g} nm is called {band.name}, which is at {band.centre_nm:g} nm"
        )


def good_band(path: str, tag: Mapping[str, str]) -> str:
    """The value of the tag ``bbl`` (bad band list: 0 is bad)."""
    if "bbl" not in tag:
        raise ValueError(f"{path} has a band without the tag 'bbl': leave out --drop-bad-bands")
    return tag["bbl"]


def check_nodata(path: str, raster: rasterio.DatasetReader, spec: ImageSpec, args: argparse.Namespace) -> None:
    """ValueError if the file's own nodata differs from the description and no option decides."""
    tag = raster.nodata
    same = tag is None or (spec.nodata is not None and np.array_equal(tag, spec.nodata, equal_nan=True))
    if not same and not hasattr(args, "nodata"):
        raise ValueError(f"{path} is tagged nodata {tag:g}, sensor {spec.sensor!r} says {spec.nodata}: give --nodata")


def check_scale(path: str, raster: rasterio.DatasetReader, sensor: Sensor, args: argparse.Namespace) -> None:
    """ValueError if a band's tagged scale or offset is not the sensor's, or if untagged fractions may be physical
    already, and no option decides.
    """
    tagged = {"scale": (raster.scales, 1.0), "offset": (raster.offsets, 0.0)}  # what GDAL says where nothing is tagged
    silent = all(value == plain for values, plain in tagged.values() for value in values)
    for name, (values, _) in tagged.items():
        said = getattr(sensor, name)
        other = [value for value in values if not math.isclose(value, said, rel_tol=1e-6)]
        if not other or getattr(args, name) is not None:
            continue
        if not silent:
            twice = " (0 where --baseline-offset takes it off)" if name == "offset" and sensor.dated_offsets else ""
            raise ValueError(
                f"{path} is tagged {name} {other[0]:g}, sensor {sensor.name!r} says {said:g}: give --{name}{twice}"
            )
        if np.dtype(raster.dtypes[0]).kind == "f":
            raise ValueError(
                f"{path} holds {raster.dtypes[0]} numbers and does not tell their {name}: give --scale 1 --offset 0 if "
                f"they are {sensor.unit} already, --scale {sensor.scale:g} --offset {sensor.offset:g} if they are as "
                "the sensor stores them"
            )


def check_sign(path: str, raster: rasterio.DatasetReader, spec: ImageSpec) -> None:
    """ValueError if radar numbers cannot be in their unit: power is not negative, and some ground is below 0 dB."""
    if spec.unit not in ("linear_power", "db"):
        return
    height, width = (min(side, MOST) for side in raster.shape)
    stored = raster.read(out_shape=(raster.count, height, width))  # nearest neighbours: numbers as they are stored
    values = stored[~spec.invalid(stored) & np.isfinite(stored)] * spec.scale + spec.offset
    if spec.unit == "linear_power" and values.size and (share := np.mean(values < 0)) > NEGATIVE:
        raise ValueError(
            f"{path} cannot be linear_power, {share:.0%} of its pixels are negative: give --unit db if in dB"
        )
    if spec.unit == "db" and values.size and values.min() >= 0:
        raise ValueError(f"{path} cannot be db, none of its pixels is below 0: give --unit linear_power if it is that")


def offset_to_remove(path: str, sensor: Sensor, date: str | None, choice: str | None) -> float:
    """What a product of this sensor and date carries added to its numbers."""
    if not sensor.dated_offsets or choice == "none":
        return 0.0
    if choice == "remove":
        return sensor.dated_offsets[-1][1]
    if date is None:
        raise ValueError(
            f"{path} has no date, and {sensor.name} files carry {sensor.dated_offsets[-1][1]:+g} since "
            f"{sensor.dated_offsets[-1][0]}: give --date, or --baseline-offset remove or none"
        )
    return sensor.stored_offset(date)
