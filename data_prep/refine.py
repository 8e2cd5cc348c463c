"""From what a source yields to what is stored: kept bands, chips, the area asked for, labels from static rasters."""

from __future__ import annotations

import argparse
import datetime
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_bounds
from rasterio.vrt import WarpedVRT

from data_prep.common import Plan, Refused, Skip, scene_class
from data_prep.footprints import Box, lonlat, overlap
from data_prep.rasters import open_raster
from data_prep.tiling import tiles
from dinov2.data.sample import Sample
from dinov2.sensors import SENSORS


def add_arguments(parser: argparse.ArgumentParser, *, chip: bool = True, cloud: bool = False) -> None:
    """The options of every source of files; ``chip`` and ``cloud`` where the source can make use of them."""
    add = parser.add_argument
    add("--src", required=True, help="folder or fsspec URL, for example s3://bucket/set or hf://datasets/owner")
    add("--bbox", type=float, nargs=4, metavar=("WEST", "SOUTH", "EAST", "NORTH"), help="area, degrees; west > east "
        "crosses the date line")  # fmt: skip
    add("--dates", type=iso_date, nargs=2, metavar=("FROM", "TO"), help="first and last day, YYYY-MM-DD")
    if cloud:
        add("--cloud", type=float, metavar="PERCENT", help="most cloud cover; what has no number of it stays")
    add("--limit", type=int, help="the first so many items (cells, tiles, files) that pass the filters")
    add("--keep-bands", nargs="+", metavar="SENSOR[=BAND,BAND]", help="these sensors and bands and no others")
    add("--label-raster", nargs="+", default=[], metavar="NAME=PATH", help="a map to take labels of the chips from")
    if chip:
        add("--chip", type=int, help="pixels of the finest image per side; the source's own size by default")


def iso_date(text: str) -> str:
    """A day as YYYY-MM-DD; ValueError otherwise."""
    return datetime.date.fromisoformat(text).isoformat()


@dataclass(frozen=True)
class Filters:
    """What an item must be; a source asks before it reads pixels. Unknown (None) passes; sources say so in ``--help``.

    ``refused`` counts the reasons.
    """

    bbox: Box | None
    dates: tuple[str, str] | None
    cloud: float | None
    limit: int | None
    refused: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Filters:
        """From the command line; ValueError where an option says nothing possible."""
        if args.bbox and not (-90 <= args.bbox[1] < args.bbox[3] <= 90 and all(-180 <= x <= 180 for x in args.bbox)):
            raise ValueError(f"--bbox {args.bbox} must be west south east north in degrees")
        if args.dates and args.dates[0] > args.dates[1]:
            raise ValueError(f"--dates {' '.join(args.dates)}: the first day is after the last")
        if args.limit is not None and args.limit < 1:
            raise ValueError(f"--limit {args.limit} must be at least 1")
        dates = (args.dates[0], args.dates[1]) if args.dates else None
        return cls(box_of(args), dates, getattr(args, "cloud", None), args.limit)

    def provenance(self) -> dict[str, Any]:
        """What was asked for, for the index; nothing where nothing was."""
        asked = {"bbox": self.bbox, "dates": self.dates, "cloud": self.cloud, "limit": self.limit}
        return {name: value for name, value in asked.items() if value is not None}

    def passes(self, *, box: Box | None = None, date: str | None = None, cloud: float | None = None) -> bool:
        """Whether an item with this box in degrees, ISO date and percentage is wanted."""
        reason = self.reason(box=box, date=date, cloud=cloud)
        if reason:
            self.refused[reason] += 1
        return reason is None

    def reason(self, *, box: Box | None = None, date: str | None = None, cloud: float | None = None) -> str | None:
        """Why an item is not wanted; None if it is."""
        if self.bbox and box and not overlap(self.bbox, box):
            return "outside of --bbox"
        if self.dates and date and not self.dates[0] <= date[:10] <= self.dates[1]:
            return "outside of --dates"
        if self.cloud is not None and cloud is not None and cloud > self.cloud:
            return "cloudier than --cloud"
        return None


def box_of(args: argparse.Namespace) -> Box | None:
    """``--bbox`` as a box."""
    return (args.bbox[0], args.bbox[1], args.bbox[2], args.bbox[3]) if args.bbox else None


def kept_bands(args: argparse.Namespace) -> dict[str, tuple[str, ...]] | None:
    """Sensor -> bands of ``--keep-bands``, None without it; unknown names raise."""
    if not args.keep_bands:
        return None
    kept = {}
    for word in args.keep_bands:
        sensor, _, bands = word.partition("=")
        kept[sensor] = SENSORS[sensor].select(bands.split(",") if bands else SENSORS[sensor].band_names).band_names
    return kept


@dataclass(frozen=True)
class Refine:
    """Makes the samples that are stored of one that a source made; what it holds also tells sets apart."""

    keep: Mapping[str, tuple[str, ...]] | None = None  # sensor -> bands
    chip: int | None = None  # pixels of the finest image
    bbox: Box | None = None
    rasters: Mapping[str, str] = field(default_factory=dict)  # label -> path
    majority: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)  # label -> mask, classes, ignore

    @classmethod
    def of(cls, args: argparse.Namespace, labels: Mapping[str, Any]) -> Refine:
        """From the command line and the descriptions of the source's labels."""
        chip = getattr(args, "chip", None)
        if chip is not None and chip < 1:
            raise ValueError(f"--chip {chip} must be at least 1")
        rasters = dict(word.split("=", 1) for word in args.label_raster)
        if taken := sorted(set(rasters) & set(labels)):
            raise ValueError(f"--label-raster {taken[0]}: the source has a label of this name")
        majority = {
            name: (info["majority_of"], len(info["classes"]), labels[info["majority_of"]]["ignore"])
            for name, info in labels.items()
            if "majority_of" in info
        }
        return cls(kept_bands(args), chip, box_of(args), rasters, majority)

    def provenance(self) -> dict[str, Any]:
        """What was asked for, for the index; nothing where nothing was."""
        asked = {"keep_bands": self.keep, "chip": self.chip, "bbox": self.bbox, "label_rasters": self.rasters}
        return {name: value for name, value in asked.items() if value}

    def __call__(self, sample: Sample) -> Iterator[Sample | Skip]:
        """The chips of a sample, or why there is none."""
        kept = self._kept(sample)
        if kept is None:
            yield Skip("without a band of --keep-bands")
            return
        for chip in tiles(kept, self.chip):
            yield chip if isinstance(chip, Skip) else self._finished(chip)

    def per_item(self, plan: Plan) -> int:
        """How many chips are cut from the first item of which a sample can be made (1 if there is none)."""
        if self.chip is None:
            return 1
        for item in plan.items:
            try:
                made = plan.make(item)
            except Refused:
                continue
            if isinstance(made, Sample) and (kept := self._kept(made)):
                return max(1, sum(isinstance(tile, Sample) for tile in tiles(kept, self.chip)))
        return 1

    def _kept(self, sample: Sample) -> Sample | None:
        """The sample with the wanted bands."""
        if self.keep is None:
            return sample
        images, specs = {}, {}
        for name, spec in sample.specs.items():
            index = [i for i, band in enumerate(spec.bands) if band in self.keep.get(spec.sensor, ())]
            if index:
                images[name] = sample.images[name][..., index, :, :]
                specs[name] = replace(spec, bands=tuple(spec.bands[i] for i in index))
        times = {name: dates for name, dates in sample.times.items() if name in images}
        return replace(sample, images=images, specs=specs, times=times) if images else None

    def _finished(self, sample: Sample) -> Sample | Skip:
        """A chip without images that observe nothing, and with all its labels."""
        seen = {name: image for name, image in sample.images.items() if not sample.specs[name].invalid(image).all()}
        if not seen:
            return Skip("no valid pixel")
        if self.bbox:
            if sample.footprint is None or sample.crs is None:
                return Skip("without a position, which --bbox needs")
            if not overlap(self.bbox, lonlat(sample.crs, sample.footprint)):
                return Skip("outside of --bbox")
        labels = dict(sample.labels)
        labels |= {name: map_labels(path, name, sample) for name, path in self.rasters.items()}
        for name, (mask, classes, ignore) in self.majority.items():
            if mask in labels:
                labels[name] = scene_class(labels[mask], classes, ignore)
        specs = {name: sample.specs[name] for name in seen}
        times = {name: dates for name, dates in sample.times.items() if name in seen}
        return replace(sample, images=seen, specs=specs, times=times, labels=labels)


@lru_cache(maxsize=16)
def _map(path: str) -> rasterio.DatasetReader:
    return open_raster(path)


def map_labels(path: str, name: str, sample: Sample) -> np.ndarray:
    """The numbers of a map ``[H, W]`` at the pixels of a sample's finest image (nearest), its nodata outside of it."""
    raster = _map(path)
    if sample.footprint is None or sample.crs is None:
        raise ValueError(f"--label-raster {name}: sample {sample.key!r} has no position")
    if raster.nodata is None:
        raise ValueError(f"--label-raster {name}: {path} has no nodata value to stand for places without a label")
    height, width = max((image.shape[-2:] for image in sample.images.values()), key=lambda shape: shape[0])
    place = from_bounds(*sample.footprint, width, height)
    with WarpedVRT(
        raster, crs=sample.crs, transform=place, width=width, height=height, resampling=Resampling.nearest
    ) as grid:
        return grid.read(1)


def map_info(path: str) -> dict[str, Any]:
    """The description of labels taken from a map: class numbers as the map has them, or values of a map of floats."""
    with open_raster(path) as raster:
        if raster.nodata is None:
            raise ValueError(f"--label-raster: {path} has no nodata value to stand for places without a label")
        kind = {"kind": "mask", "map": path.rsplit("/", 1)[-1]}
        return kind if raster.dtypes[0].startswith("float") else kind | {"ignore": int(raster.nodata)}
