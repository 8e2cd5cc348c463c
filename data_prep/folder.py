"""Source ``folder``: any folder of GeoTIFFs of one sensor, cut into chips, with optional masks beside them.

Every file must agree with what is said about it (bands, nodata, scale, wavelengths, resolution) or the run stops.

Example: python data_prep/main.py folder --src tiles --sensor enmap --drop-bad-bands --out data/enmap --chip 32
         python data_prep/main.py folder --src s2 --sensor sentinel2_l1c --date 2021-06-01 --out data/s2
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio

from data_prep.common import Plan, Skip, fingerprint, label_info, scene_class, slug
from data_prep.inspection import Product, inspect, offset_to_remove
from data_prep.rasters import STORED_NODATA, Chip, chips, place, same_place, without_offset
from dinov2.data.sample import Sample
from dinov2.sensors import SENSORS, UNITS

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
    add("--labels", type=Path, help="folder of masks with the images' relative paths; label 'scene' is their majority")
    add("--label-name", default="landcover", help="(%(default)s)")
    add("--label-classes", help="names with commas; a mask's number is the place in this list")
    add("--label-ignore", type=int, default=255, help="a mask's number without label (%(default)s)")


def files(src: Path) -> list[Path]:
    """The GeoTIFFs below a folder, sorted, without hidden ones (``._x.tif`` is a macOS resource fork)."""
    if not src.is_dir():
        raise ValueError(f"{src} is not a folder")
    found = sorted(p for p in src.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{src} has no file with the suffix {' or '.join(SUFFIXES)}")
    return found


def _mask(path: Path, image: Path, chip: Chip, args: argparse.Namespace) -> np.ndarray:
    """The label mask ``[h, w]`` of a chip."""
    if not path.is_file():
        raise ValueError(f"{path}, the mask of {image}, is missing")
    classes = args.label_classes.split(",")
    with rasterio.open(path) as raster, rasterio.open(image) as reference:
        if raster.count != 1 or raster.shape != reference.shape:
            raise ValueError(f"{path} is no mask of {image}: one band of {reference.shape} pixels is needed")
        if not same_place(raster, reference):
            raise ValueError(
                f"{path} is no mask of {image}: it lies at {tuple(raster.bounds)} in {raster.crs.to_string()}, the "
                f"image at {tuple(reference.bounds)} in {reference.crs.to_string()}"
            )
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
    labels: dict[str, np.ndarray | int] = {}
    if args.labels:
        mask = _mask(args.labels / chip.path.relative_to(args.src), chip.path, chip, args)
        scene = scene_class(mask, len(args.label_classes.split(",")), args.label_ignore)
        labels = {args.label_name: mask, "scene": scene}
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
            only = sorted(set(other.spec.bands) ^ set(product.spec.bands))
            raise ValueError(
                f"{item.chip.path} ({_kind(other)}) differs from {first.chip.path} ({_kind(product)})"
                + f": only one of them has {', '.join(only[:14])}" * bool(only)
            )
    if any(item.removed for _, item in pairs):
        if product.spec.dtype.startswith("float"):
            raise ValueError(
                f"{first.chip.path} is of type {product.spec.dtype}, from which no offset is taken off: store it as "
                "integers, or give --baseline-offset none if it carries none"
            )
        spec = replace(product.spec, dtype="int16", nodata=STORED_NODATA)  # differences can be negative, 0 is a value
        product = replace(product, spec=spec, offsets=True)
    folders = [args.src] + [args.labels] * bool(args.labels)
    options = {k: v for k, v in vars(args).items() if k not in ("src", "out", "labels", "workers", "command")}
    provenance = {"source": "folder", "files": [fingerprint(f, files(f)) for f in folders], **options}
    labels = label_info(args.label_name, args.label_classes.split(","), args.label_ignore) if args.labels else {}
    return Plan([item for _, item in pairs], partial(make, product=product, args=args), labels, provenance)


def _kind(product: Product) -> str:
    """The product in words, for the message that two files differ."""
    return f"{len(product.indices)} bands of {product.spec.dtype} at {product.spec.gsd_m:g} m"
