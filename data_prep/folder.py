"""Source ``folder``: any folder of GeoTIFFs of one sensor, cut into chips, with optional masks beside them.

Every file must agree with what is said about it (bands, nodata, scale, wavelengths, resolution) or the run stops.

Example: python data_prep/main.py folder --src tiles --sensor enmap --drop-bad-bands --out data/enmap --chip 32
         python data_prep/main.py folder --src s2 --sensor sentinel2_l1c --date 2021-06-01 --out data/s2
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio

from data_prep.common import Plan, Skip, slug
from data_prep.rasters import STORED_NODATA, Chip, check_wavelength, chips, date_of, pixel_size, place, without_offset
from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS, UNITS, Sensor

SUFFIXES = (".tif", ".tiff")


def number_or_none(text: str) -> float | None:
    """A number (``nan`` included), or None for the word ``none``."""
    return None if text.lower() == "none" else float(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    add = parser.add_argument
    add("--src", type=Path, required=True, help="folder, searched with its subfolders")
    add("--sensor", required=True, help="name of a file in configs/sensors")
    add("--bands", help="names in the order of the files' bands, with commas; all of the sensor's by default")
    add("--drop-bad-bands", action="store_true", help="leave out the bands whose tag 'bbl' is 0")
    add("--unit", choices=UNITS, help="of stored * scale + offset; the sensor's by default")
    add("--scale", type=float, help="the sensor's by default")
    add("--offset", type=float, help="the sensor's by default")
    add("--nodata", type=number_or_none, default=argparse.SUPPRESS, help="stored number without observation, or none")
    add("--date", type=lambda text: datetime.date.fromisoformat(text).isoformat(), help="of all files, YYYY-MM-DD")
    add(
        "--baseline-offset",
        choices=["remove", "none"],
        help="whether Sentinel-2 files carry +1000; by date if not given",
    )
    add("--chip", type=int, default=128, help="pixels per side (%(default)s); 0: whole files")
    add("--labels", type=Path, help="folder of masks with the images' relative paths")
    add("--label-name", default="landcover", help="(%(default)s)")
    add("--label-classes", help="names with commas; a mask's number is the place in this list")
    add("--label-ignore", type=int, default=255, help="a mask's number without label (%(default)s)")


@dataclass(frozen=True)
class Product:
    """What every file of the folder is."""

    spec: ImageSpec
    indices: tuple[int, ...]  # bands to read, from 1
    nodata: float | None  # of the files; the spec's own differs where offsets are taken off
    offsets: bool = False  # whether any file has one


def files(src: Path) -> list[Path]:
    """The GeoTIFFs below a folder, sorted, without hidden ones (``._x.tif`` is a macOS resource fork)."""
    if not src.is_dir():
        raise ValueError(f"{src} is not a folder")
    found = sorted(p for p in src.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{src} has no file with the suffix {' or '.join(SUFFIXES)}")
    return found


def described(args: argparse.Namespace, sensor: Sensor, gsd: int, bands: Sequence[str], dtype: str) -> ImageSpec:
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


def inspect(path: Path, args: argparse.Namespace) -> tuple[Product, tuple[int, int], str | None]:
    """Product, shape and date of one file; ValueError where the file contradicts the sensor or the options."""
    sensor = SENSORS[args.sensor]
    names = args.bands.split(",") if args.bands else list(sensor.band_names)
    bands = sensor.select(names).bands
    with rasterio.open(path) as raster:
        if raster.count != len(names):
            raise ValueError(f"{path} has {raster.count} bands, {len(names)} are named: {', '.join(names[:14])}")
        if len(set(raster.dtypes)) > 1 or np.dtype(raster.dtypes[0]).kind not in "iuf":
            raise ValueError(
                f"{path} has bands of type {', '.join(sorted(set(raster.dtypes)))}: one real type is needed"
            )
        tags = [raster.tags(i + 1) for i in range(raster.count)]
        for band, tag in zip(bands, tags, strict=True):
            check_wavelength(path, band, tag)
        keep = [i for i, tag in enumerate(tags) if not (args.drop_bad_bands and good_band(path, tag) == "0")]
        gsd = pixel_size(raster, bands)
        spec = described(args, sensor, gsd, [names[i] for i in keep], raster.dtypes[0])
        check_tags(path, raster, spec, args)
        date = args.date or date_of(raster.tags())
        return Product(spec, tuple(i + 1 for i in keep), spec.nodata), raster.shape, date


def good_band(path: Path, tag: dict[str, str]) -> str:
    """The value of the tag ``bbl`` (bad band list: 0 is bad)."""
    if "bbl" not in tag:
        raise ValueError(f"{path} has a band without the tag 'bbl': leave out --drop-bad-bands")
    return tag["bbl"]


def check_tags(path: Path, raster: rasterio.DatasetReader, spec: ImageSpec, args: argparse.Namespace) -> None:
    """ValueError if the file's own nodata or scale differs from the description and no option decides."""
    tag = raster.nodata
    same = tag == spec.nodata or (spec.nodata is not None and tag is not None and math.isnan(tag + spec.nodata))
    if tag is not None and not same and not hasattr(args, "nodata"):
        raise ValueError(f"{path} is tagged nodata {tag:g}, sensor {spec.sensor!r} says {spec.nodata}: give --nodata")
    scale = raster.scales[0]
    if scale != 1.0 and not math.isclose(scale, spec.scale, rel_tol=1e-6) and args.scale is None:
        raise ValueError(f"{path} is tagged scale {scale:g}, sensor {spec.sensor!r} says {spec.scale:g}: give --scale")


def offset_to_remove(path: Path, sensor: Sensor, date: str | None, choice: str | None) -> float:
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


def _mask(path: Path, image: Path, chip: Chip, args: argparse.Namespace) -> np.ndarray:
    """The label mask ``[h, w]`` of a chip."""
    if not path.is_file():
        raise ValueError(f"{path}, the mask of {image}, is missing")
    classes = args.label_classes.split(",")
    with rasterio.open(path) as raster, rasterio.open(image) as reference:
        if raster.count != 1 or raster.shape != reference.shape:
            raise ValueError(f"{path} is no mask of {image}: one band of {reference.shape} pixels is needed")
        mask = raster.read(1, window=chip.window(raster))
    strange = np.setdiff1d(mask, [*range(len(classes)), args.label_ignore])
    if strange.size:
        raise ValueError(f"{path} has the number {strange[0]}; --label-classes names {len(classes)} classes, from 0")
    return mask.astype(np.int16)  # some sets store class numbers as floats


@dataclass(frozen=True)
class Item:
    """A chip, the key of its sample, and what the inspection of its file found."""

    chip: Chip
    key: str
    date: str | None
    removed: float  # taken off the stored numbers


def make(item: Item, *, product: Product, args: argparse.Namespace) -> Sample | Skip:
    """One chip of one file."""
    chip, spec = item.chip, product.spec
    with rasterio.open(chip.path) as raster:
        if chip.is_cut(raster):
            return Skip(f"at the raster's edge, smaller than --chip {chip.size}")
        window = chip.window(raster)
        image = raster.read(product.indices, window=window)
        footprint, crs = place(raster, window)
    if product.offsets:
        image = without_offset(image, item.removed, product.nodata)
    image = image.astype(spec.dtype, copy=False)
    if spec.invalid(image).all():
        return Skip("no valid pixel")
    labels = {}
    if args.labels:
        labels[args.label_name] = _mask(args.labels / chip.path.relative_to(args.src), chip.path, chip, args)
    source = chip.path.relative_to(args.src).as_posix()
    meta = {"file": source, "row": chip.row, "column": chip.column, "removed_offset": item.removed}
    times = {spec.key: [item.date] if item.date else []}
    return Sample(item.key, {spec.key: image}, {spec.key: spec}, times, footprint, crs, labels, meta)


def items_of(paths: Sequence[Path], args: argparse.Namespace) -> Iterator[tuple[Product, Item]]:
    """The chips of all files, each with its file's product."""
    sensor = SENSORS[args.sensor]
    owner: dict[str, Path] = {}
    for path in paths:
        product, shape, date = inspect(path, args)
        removed = offset_to_remove(path, sensor, date, args.baseline_offset)
        name = slug(path.relative_to(args.src).with_suffix("").as_posix())
        if (other := owner.setdefault(name, path)) != path:
            raise ValueError(f"{path} and {other} would both get the key {name!r}: rename one")
        for chip in chips(path, args.chip or None, shape):
            yield product, Item(chip, name + chip.suffix, date, removed)


def plan(args: argparse.Namespace) -> Plan:
    """The chips of all files, which must be of one kind."""
    if args.chip < 0:
        raise ValueError(f"--chip {args.chip} must not be negative")
    if args.labels and not args.label_classes:
        raise ValueError("--labels needs --label-classes NAME,NAME,... (a mask's number is the place in this list)")
    pairs = list(items_of(files(args.src), args))
    product, first = pairs[0][0], pairs[0][1]
    for other, item in pairs:
        if other != product:
            raise ValueError(f"{item.chip.path} ({_kind(other)}) differs from {first.chip.path} ({_kind(product)})")
    if any(item.removed for _, item in pairs):
        if product.spec.dtype.startswith("float"):
            raise ValueError(f"{first.chip.path} holds fractions, which carry no offset: give --baseline-offset none")
        spec = replace(product.spec, dtype="int16", nodata=STORED_NODATA)  # differences can be negative, 0 is a value
        product = replace(product, spec=spec, offsets=True)
    folders = [args.src] + [args.labels] * bool(args.labels)
    listing = "\n".join(f"{p.relative_to(f).as_posix()} {p.stat().st_size}" for f in folders for p in files(f))
    options = {k: v for k, v in vars(args).items() if k not in ("src", "out", "labels", "workers", "command")}
    provenance = {"source": "folder", "files": hashlib.sha256(listing.encode()).hexdigest(), **options}
    mask = {"kind": "mask", "classes": (args.label_classes or "").split(","), "ignore": args.label_ignore}
    labels = {args.label_name: mask} if args.labels else {}
    return Plan([item for _, item in pairs], partial(make, product=product, args=args), labels, provenance)


def _kind(product: Product) -> str:
    """The product in words, for the message that two files differ."""
    return f"{len(product.indices)} bands of {product.spec.dtype} at {product.spec.gsd_m} m"
