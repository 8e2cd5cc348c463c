"""Source ``fmow``: Functional Map of the World, full (GeoTIFF) or rgb (JPEG), with fMoW-Sentinel joined by place.

    --src/{train,val}/<category>/<category>_<location>/<category>_<location>_<image>_{rgb,ms,msrgb}.{tif,jpg,json}

A sample is one image of one place: its pan-sharpened RGB, its multispectral bands (QuickBird-2 and GeoEye-1: 4,
WorldView-2 and -3: 8; other counts are skipped) and, with ``--sentinel``, the Sentinel-2 chip of the place that is
nearest in time. Sizes are as delivered. The images of a sample are trimmed about their centre until their grids nest,
and nothing is resampled: with r pixels to one of the coarsest image, edges then differ by at most 1/(4 r) of the side.

Resolutions in image keys are the sensors' own; each file's is in ``meta``. Test and sequence folders are anonymous and
are not read.

Source: fMoW/dataset (README), arXiv 1711.07846.

Example: python data_prep/main.py fmow --src fmow-full --sentinel fmow-sentinel --out data/fmow --cloud 20
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep import fmow_sentinel, refine
from data_prep.common import Plan, Skip, slug
from data_prep.fmow_sentinel import LABELS, category_number, chips, image_of, polygon_box
from data_prep.footprints import Box
from data_prep.rasters import Raster, decode
from data_prep.store import Store
from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS

SPLITS = ("train", "val")
NAME = re.compile(r"(?P<stem>(?P<category>.+)_(?P<location>\d+)_(?P<image>\d+))_(?P<kind>rgb|msrgb|ms)\.json")
SENSOR_OF = {
    "QUICKBIRD02": ("quickbird2", 4),
    "GEOEYE01": ("geoeye1", 4),
    "WORLDVIEW02": ("worldview2", 8),
    "WORLDVIEW03_VNIR": ("worldview3", 8),
}


@dataclass(frozen=True)
class Image:
    """One image of one place: the names of its JSON files by kind, and the Sentinel-2 chip that goes with it."""

    split: str
    folder: str
    stem: str
    category: str
    kinds: tuple[str, ...]
    sentinel: fmow_sentinel.Chip | None = None

    def json(self, kind: str) -> str:
        """Name of the JSON file of a kind."""
        return f"{self.folder}/{self.stem}_{kind}.json"

    def picture(self, kind: str, suffix: str) -> str:
        """Name of the picture of a kind."""
        return f"{self.folder}/{self.stem}_{kind}{suffix}"


@dataclass(frozen=True)
class Images:
    """Reads images."""

    store: Store
    sentinel: Store | None
    suffixes: Mapping[str, str]  # kind -> suffix of its pictures

    def __call__(self, item: Image) -> Sample | Skip:
        """One image of one place."""
        about = {kind: json.loads(self.store.read(item.json(kind))) for kind in item.kinds}
        found, times, sizes = {}, {}, {}
        for kind in item.kinds:
            name = item.picture(kind, self.suffixes[kind])
            raster = decode(self.store.read(name), self.store.path(name))
            described = self._described(kind, about[kind], raster)
            if isinstance(described, Skip):
                return described
            found[described.key] = (described, raster.pixels)
            times[described.key] = [about[kind]["timestamp"][:10]]
            sizes[described.key] = about[kind]["gsd"]
        if item.sentinel and self.sentinel:
            chip = item.sentinel
            raster = decode(self.sentinel.read(chip.file), self.sentinel.path(chip.file))
            spec, stored = image_of(raster, self.sentinel.path(chip.file))
            found[spec.key], times[spec.key] = (spec, stored), [chip.date]
        first = about[item.kinds[0]]
        images = nested({key: stored for key, (_, stored) in found.items()})
        meta = {
            "place": item.stem.rsplit("_", 1)[0],
            "split": item.split,
            "cloud": first.get("cloud_cover"),
            "gsd_m": sizes,
            "boxes": boxes(first),
        }
        labels = {"category": category_number(item.category, item.stem)}
        specs, box = {key: spec for key, (spec, _) in found.items()}, footprint(first)
        crs = "EPSG:4326" if box else None
        return Sample(slug(f"{item.split}_{item.stem}"), images, specs, times, box, crs, labels, meta)

    def _described(self, kind: str, about: Mapping[str, Any], raster: Raster) -> ImageSpec | Skip:
        """What the pixels of one file are."""
        if kind != "ms":
            sensor, count = SENSORS["rgb"], 3
        else:
            platform = about["sensor_platform_name"]
            if platform not in SENSOR_OF:
                return Skip(f"of the unknown platform {platform}")
            sensor, count = SENSORS[SENSOR_OF[platform][0]], SENSOR_OF[platform][1]
        if len(raster.pixels) != count:
            return Skip(f"with a number of bands that its platform does not have ({len(raster.pixels)}, not {count})")
        bands, gsd = sensor.band_names[:count], sensor.bands[0].gsd_m
        return ImageSpec(sensor.name, gsd, bands, str(raster.pixels.dtype), sensor.unit, 1.0, 0.0, sensor.nodata)


def footprint(about: Mapping[str, Any]) -> Box | None:
    """The box in degrees around an image; None where its coordinates are withheld."""
    return polygon_box(about["raw_location"]) if about.get("raw_location") else None


def boxes(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The labelled boxes ``[x, y, width, height]``, which the files hold as a list or as a single one."""
    given = about["bounding_boxes"]
    return [{"box": b["box"], "category": b["category"]} for b in (given if isinstance(given, list) else [given])]


def nested(images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images ``[C, h, w]`` of one ground, trimmed about the centre to whole multiples of the coarsest one's pixels."""
    trimmed = dict(images)
    for axis in (1, 2):
        sizes = {key: image.shape[axis] for key, image in trimmed.items()}
        coarsest = min(sizes.values())
        ratios = {key: round(size / coarsest) for key, size in sizes.items()}
        cells = min(size // ratios[key] for key, size in sizes.items())
        for key, image in trimmed.items():
            start = (sizes[key] - cells * ratios[key]) // 2
            trimmed[key] = image.take(range(start, start + cells * ratios[key]), axis)
    return trimmed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser, chip=False, cloud=True)
    parser.add_argument("--sentinel", help="folder or URL of fMoW-Sentinel, to be joined by place")
    parser.add_argument("--splits", default="train,val", help="with commas (%(default)s)")


def listed(store: Store, splits: list[str]) -> dict[tuple[str, str], dict[str, str]]:
    """(split, stem) -> kind -> JSON file, of all images."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for split in splits:
        for name in store.files((".json",), split):
            if match := NAME.fullmatch(name.rsplit("/", 1)[-1]):
                found.setdefault((split, match["stem"]), {})[match["kind"]] = name
    if not found:
        raise ValueError(f"{store.root} has no <category>_<location>_<image>_rgb.json below {', '.join(splits)}")
    return found


def nearest(chips_: list[fmow_sentinel.Chip], image: str, day: str) -> fmow_sentinel.Chip:
    """The chip of the same image number, else the nearest in time."""
    wanted = datetime.date.fromisoformat(day)
    days = {c: abs((datetime.date.fromisoformat(c.date) - wanted).days) for c in chips_}
    return min(chips_, key=lambda c: (c.image != image, days[c], c.image))


def plan(args: argparse.Namespace) -> Plan:
    """Every image that passes the filters."""
    store, filters, splits = Store.at(args.src), refine.Filters.of(args), args.splits.split(",")
    sentinel = Store.at(args.sentinel) if args.sentinel else None
    places: dict[tuple[str, ...], list[fmow_sentinel.Chip]] = {}  # every split numbers its places from 0
    for chip in chips(sentinel, splits) if sentinel else ():
        places.setdefault((chip.split, chip.category, chip.location), []).append(chip)
    items: list[Image] = []
    for (split, stem), by_kind in listed(store, splits).items():
        kinds = tuple(k for k in ("rgb", "msrgb", "ms") if k in by_kind and not (k == "msrgb" and "rgb" in by_kind))
        about = json.loads(store.read(by_kind[kinds[0]]))
        day, box = about["timestamp"][:10], footprint(about)
        if not filters.passes(box=box, date=day, cloud=about.get("cloud_cover")):
            continue
        category, location, number = stem.rsplit("_", 2)
        near = places.get((split, category, location))
        best = nearest(near, number, day) if near else None
        items.append(Image(split, by_kind[kinds[0]].rsplit("/", 1)[0], stem, category, kinds, best))
        if len(items) == filters.limit:
            break
    pictures = store.files((".tif", ".jpg"), splits[0])
    suffixes = {k: ".tif" if any(p.endswith(f"_{k}.tif") for p in pictures) else ".jpg" for k in ("rgb", "ms", "msrgb")}
    names = (name for i in items for k in i.kinds for name in (i.json(k), i.picture(k, suffixes[k])))
    provenance = {"source": "fmow", "files": store.fingerprint(names), "splits": splits, **filters.provenance()}
    if sentinel:
        provenance["sentinel"] = sentinel.fingerprint(i.sentinel.file for i in items if i.sentinel)
    return Plan(items, Images(store, sentinel, suffixes), LABELS, provenance, filtered=filters.refused)
