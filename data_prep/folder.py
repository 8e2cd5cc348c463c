"""Source ``folder``: any folder of GeoTIFFs of one sensor, cut into chips, with optional masks beside them.

Every file must agree with what is said about it (bands, nodata, scale, wavelengths, resolution) or the run stops.

Example: python data_prep/main.py folder --src tiles --sensor enmap --drop-bad-bands --out data/enmap --chip 32
         python data_prep/main.py folder --src s2 --sensor sentinel2_l1c --date 2021-06-01 --out data/s2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

import numpy as np

from data_prep import refine
from data_prep.common import Plan, Skip, label_info, slug
from data_prep.inspection import Product, inspect, offset_to_remove
from data_prep.rasters import STORED_NODATA, Chip, chips, open_raster, place, read_window, same_place, without_offset
from data_prep.store import Store
from dinov2.data.sample import Sample
from dinov2.sensors import SENSORS, UNITS

SUFFIXES = (".tif", ".tiff")
NOT_OPTIONS = ("src", "out", "labels", "workers", "part", "max_refused", "command")  # another of these: the same set


def number_or_none(text: str) -> float | None:
    """A number (``nan`` included), or None for the word ``none``."""
    return None if text.lower() == "none" else float(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser, chip=False)
    add = parser.add_argument
    add("--sensor", required=True, help="name of a file in configs/sensors")
    add(
        "--bands",
        help="names in the order of the files' bands, with commas, _ for one to leave out; all by default",
    )
    add("--drop-bad-bands", action="store_true", help="leave out the bands whose tag 'bbl' is 0")
    add("--unit", choices=UNITS, help="of stored * scale + offset; the sensor's by default")
    add("--scale", type=float, help="the sensor's by default")
    add("--offset", type=float, help="the sensor's by default")
    add("--nodata", type=number_or_none, default=argparse.SUPPRESS, help="stored number without observation, or none")
    add("--date", type=refine.iso_date, help="of all files, YYYY-MM-DD")
    add(
        "--baseline-offset",
        choices=["remove", "none"],
        help="whether Sentinel-2 files carry +1000; by date if not given",
    )
    add("--chip", dest="size", type=int, default=128, help="pixels per side (%(default)s); 0: whole files")
    add("--labels", help="folder or URL of masks with the images' relative paths; label 'scene' is their majority")
    add("--label-name", default="landcover", help="(%(default)s)")
    add("--label-classes", help="names with commas; a mask's number is the place in this list")
    add("--label-ignore", type=int, default=255, help="a mask's number without label (%(default)s)")


def files(store: Store) -> list[str]:
    """The GeoTIFFs of a folder and its subfolders."""
    found = store.files(SUFFIXES)
    if not found:
        raise ValueError(f"{store.root} has no file with the suffix {' or '.join(SUFFIXES)}")
    return found


def _mask(masks: Store, item: Item, args: argparse.Namespace) -> np.ndarray:
    """The label mask ``[h, w]`` of a chip."""
    path, image = masks.path(item.name), item.chip.path
    if not masks.exists(item.name):
        raise ValueError(f"{path}, the mask of {image}, is missing")
    classes = args.label_classes.split(",")
    with open_raster(path) as raster, open_raster(image) as reference:
        if raster.count != 1 or raster.shape != reference.shape:
            raise ValueError(f"{path} is no mask of {image}: one band of {reference.shape} pixels is needed")
        if not same_place(raster, reference):
            raise ValueError(
                f"{path} is no mask of {image}: it lies at {tuple(raster.bounds)} in {raster.crs.to_string()}, the "
                f"image at {tuple(reference.bounds)} in {reference.crs.to_string()}"
            )
        mask = read_window(path, raster, item.chip.window(raster))[0]
    strange = np.setdiff1d(mask, [*range(len(classes)), args.label_ignore])
    if strange.size:
        raise ValueError(f"{path} has the number {strange[0]}; --label-classes names {len(classes)} classes, from 0")
    return mask.astype(np.int16)  # some sets store class numbers as floats


@dataclass(frozen=True)
class Item:
    """A chip, its file's name, the key of its sample, and what the inspection of its file found."""

    chip: Chip
    name: str
    key: str
    date: str | None
    removed: float  # taken off the stored numbers


def make(item: Item, *, product: Product, args: argparse.Namespace) -> Sample | Skip:
    """One chip of one file."""
    chip, spec = item.chip, product.spec
    with open_raster(chip.path) as raster:
        if chip.is_cut(raster):
            return Skip(f"at the raster's edge, smaller than --chip {chip.size}")
        window = chip.window(raster)
        image = read_window(chip.path, raster, window, product.indices)
        footprint, crs = place(raster, window)
    if product.offsets:
        image = without_offset(image, item.removed, product.nodata)
    image = image.astype(spec.dtype, copy=False)
    labels = {args.label_name: _mask(Store(args.labels), item, args)} if args.labels else {}
    meta = {"file": item.name, "row": chip.row, "column": chip.column, "removed_offset": item.removed}
    times = {spec.key: [item.date] if item.date else []}
    return Sample(item.key, {spec.key: image}, {spec.key: spec}, times, footprint, crs, labels, meta)


def items_of(store: Store, args: argparse.Namespace, filters: refine.Filters) -> Iterator[tuple[Product, Item]]:
    """The chips of all files, each with its file's product."""
    sensor = SENSORS[args.sensor]
    owner: dict[str, str] = {}
    for name in files(store):
        path = store.path(name)
        product, shape, date = inspect(path, args)
        if not filters.passes(date=date):
            continue
        removed = offset_to_remove(path, sensor, date, args.baseline_offset)
        key = slug(PurePosixPath(name).with_suffix("").as_posix())
        if (other := owner.setdefault(key, path)) != path:
            raise ValueError(f"{path} and {other} would both get the key {key!r}: rename one")
        for chip in chips(path, args.size or None, shape):
            yield product, Item(chip, name, key + chip.suffix, date, removed)


def plan(args: argparse.Namespace) -> Plan:
    """The chips of all files, which must be of one kind."""
    if args.size < 0:
        raise ValueError(f"--chip {args.size} must not be negative")
    if args.labels and not args.label_classes:
        raise ValueError("--labels needs --label-classes NAME,NAME,... (a mask's number is the place in this list)")
    store, filters = Store.at(args.src), refine.Filters.of(args)
    pairs = list(islice(items_of(store, args, filters), filters.limit))
    if not pairs:
        raise ValueError(f"no file of {args.src} passes the filters: {dict(filters.refused)}")
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
    stores = [store, Store.at(args.labels)] if args.labels else [store]
    options = {k: v for k, v in vars(args).items() if k not in NOT_OPTIONS}
    provenance = {"source": "folder", "files": [s.fingerprint(files(s)) for s in stores], **options}
    labels = label_info(args.label_name, args.label_classes.split(","), args.label_ignore) if args.labels else {}
    items, make_ = [item for _, item in pairs], partial(make, product=product, args=args)
    return Plan(items, make_, labels, provenance, filtered=filters.refused)


def _kind(product: Product) -> str:
    """The product in words, for the message that two files differ."""
    return f"{len(product.indices)} bands of {product.spec.dtype} at {product.spec.gsd_m:g} m"
