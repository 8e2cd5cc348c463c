"""Source ``sandbox``: samples of the procedural world, with labels that no one has to annotate.

A sample is a pure function of (seed, split, index): the same bytes on any number of workers.

Example: python data_prep/main.py sandbox --out data/sandbox --samples 4000 --workers 2
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np

from data_prep.common import Plan
from data_prep.sandbox_world.conditions import draw_conditions, to_meta
from data_prep.sandbox_world.geometry import Grid, average
from data_prep.sandbox_world.land import Land, changed, draw_land
from data_prep.sandbox_world.layouts import COVERS, FOREST, SCENES, draw
from data_prep.sandbox_world.render import View, by_resolution, image, look
from dinov2.data.sample import Sample
from dinov2.sensors import SENSORS, Band, Sensor

SPLITS = ("train", "val", "test")
VERSION = 1  # of the world: raised when its pictures change, so that shards of two versions never mix
CRS, ORIGIN = "EPSG:32631", (300_000.0, 4_000_000.0)  # the corner of chip 0 of the first split
EAST, NORTH = 400_000, 1_000_000  # metres: the ground of one split
STEP = 5.0  # metres: the world is drawn no coarser than this
LABELS = {
    "scene": {"kind": "class", "classes": list(SCENES), "ignore": -1},
    "landcover": {"kind": "mask", "classes": list(COVERS), "ignore": 255},
    "canopy_height": {"kind": "mask", "unit": "metre"},
    "mean_canopy_height": {"kind": "scalar", "unit": "metre"},
}
CHANGE_LABELS = {
    "change": {"kind": "mask", "classes": ["unchanged", "changed"], "ignore": 255, "pair": True},
    "changed": {"kind": "class", "classes": ["unchanged", "changed"], "ignore": -1, "pair": True},
}
CHANGE_PROBABILITY = 0.6  # of a sample with several dates


def drawing_step(pixel_sizes: Sequence[int]) -> float:
    """The fine grid's step in metres: at most ``STEP``, and a divisor of every pixel size."""
    common = math.gcd(*pixel_sizes)
    return common / math.ceil(common / STEP)


def footprint(split: str, index: int, chip_m: int) -> tuple[float, float, float, float]:
    """Where a chip lies: rows of chips from west to east, every split on ground of its own further north."""
    row, column = divmod(index, EAST // chip_m)
    x = ORIGIN[0] + column * chip_m
    y = ORIGIN[1] + NORTH * SPLITS.index(split) + row * chip_m
    return x, y, x + chip_m, y + chip_m


def labels_of(land: Land, scene: int, factor: int) -> dict[str, Any]:
    """Scene class, majority land cover and mean canopy height on pixels of ``factor`` fine ones."""
    onehot = (land.layout.cover == np.arange(len(COVERS), dtype=np.uint8)[:, None, None]).astype(np.float32)
    canopy = average(np.where(land.layout.cover == FOREST, land.height, 0).astype(np.float32), factor)
    return {
        "scene": scene,
        "landcover": average(onehot, factor).argmax(0).astype(np.uint8),
        "canopy_height": canopy.astype(np.float32),
        "mean_canopy_height": round(float(canopy.mean()), 3),
    }


@dataclass(frozen=True)
class World:
    """Everything that a sample is a function of, beside its index."""

    seed: int
    split: str
    sensors: tuple[str, ...]
    chip_m: int
    dates: int = 1

    @property
    def groups(self) -> list[tuple[Sensor, int, tuple[Band, ...]]]:
        """The images of a sample: sensor, pixel size in metres, bands."""
        return [(SENSORS[n], gsd, bands) for n in self.sensors for gsd, bands in by_resolution(SENSORS[n]).items()]

    def rng(self, index: int, what: str) -> np.random.Generator:
        """A generator for one purpose of one sample, independent of all others."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, zlib.crc32(what.encode())])

    def land(self, index: int) -> tuple[int, Grid, Land]:
        """Scene class, fine grid and land of a sample."""
        step = drawing_step([gsd for _, gsd, _ in self.groups])
        grid = Grid(round(self.chip_m / step), step, self.rng(index, "land"))
        scene = int(grid.rng.integers(len(SCENES)))
        return scene, grid, draw_land(draw(scene, grid), grid)

    def views(self, index: int, grid: Grid, land: Land) -> tuple[list[View], np.ndarray]:
        """The land at every date, in order of time, and where it changes from some date on (bool ``[n, n]``)."""
        conditions = sorted(
            (draw_conditions(self.rng(index, f"date {t}")) for t in range(self.dates)), key=attrgetter("date")
        )
        rng, where = self.rng(index, "change"), np.zeros((grid.n, grid.n), bool)
        lands = [land] * self.dates
        if self.dates > 1 and rng.random() < CHANGE_PROBABILITY:
            after, where = changed(land, replace(grid, rng=rng))
            since = int(rng.integers(1, self.dates))
            lands[since:] = [after] * (self.dates - since)
        sky = [replace(grid, rng=self.rng(index, f"clouds {t}")) for t in range(self.dates)]
        return [look(*each) for each in zip(lands, conditions, sky, strict=True)], where

    def sample(self, index: int) -> Sample:
        """Sample number ``index``: ``[C, h, w]`` per image, or ``[T, C, h, w]`` for several dates."""
        scene, grid, land = self.land(index)
        views, change = self.views(index, grid, land)
        images, specs = {}, {}
        for sensor, gsd, bands in self.groups:
            rng = self.rng(index, f"{sensor.name} {gsd}")
            rendered = [image(view, sensor, gsd, bands, rng) for view in views]
            spec = rendered[0][0]
            specs[spec.key] = spec
            images[spec.key] = np.stack([stored for _, stored in rendered]) if self.dates > 1 else rendered[0][1]
        factor = round(min(gsd for _, gsd, _ in self.groups) / grid.step)
        labels = labels_of(land, scene, factor)
        if self.dates > 1:
            mask = average(change.astype(np.float32), factor) >= 0.5
            labels |= {"change": mask.astype(np.uint8), "changed": int(mask.any())}
        return Sample(
            key=f"{self.split}_{self.seed}_{index:07d}",
            images=images,
            specs=specs,
            times={key: [view.now.date for view in views] for key in images},
            footprint=footprint(self.split, index, self.chip_m),
            crs=CRS,
            labels=labels,
            meta={"split": self.split, "conditions": [to_meta(view.now) for view in views]},
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    parser.add_argument("--samples", type=int, default=4000, help="number of samples (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which world (%(default)s)")
    parser.add_argument("--split-name", choices=SPLITS, default="train", help="where in it; splits share no ground")
    parser.add_argument(
        "--sensors", default="sentinel2_l2a,sentinel1_rtc", help="names from configs/sensors, with commas"
    )
    parser.add_argument("--chip-m", type=int, default=660, help="side of a chip in metres (%(default)s)")
    parser.add_argument("--dates", type=int, default=1, help="acquisitions per sample; from 2 on some land changes")


def plan(args: argparse.Namespace) -> Plan:
    """The samples that a command line asks for."""
    sensors = tuple(args.sensors.split(","))
    if args.samples < 1 or args.dates < 1 or args.seed < 0:
        raise ValueError("--samples and --dates must be at least 1, --seed at least 0")
    for name in sensors:
        groups = by_resolution(SENSORS[name])
        if not groups:
            raise ValueError(
                f"sensor {name!r} has no band that the sandbox can render (400-2500 nm, VV, VH, elevation)"
            )
        for gsd in groups:
            if args.chip_m % gsd:
                raise ValueError(f"--chip-m {args.chip_m} is no multiple of the {gsd} m pixels of sensor {name!r}")
    if args.samples > (EAST // args.chip_m) * (NORTH // args.chip_m):
        raise ValueError(
            f"--samples {args.samples} of --chip-m {args.chip_m} metres do not fit on the ground of a split"
        )
    world = World(args.seed, args.split_name, sensors, args.chip_m, args.dates)
    labels = LABELS | (CHANGE_LABELS if args.dates > 1 else {})
    provenance = {"source": "sandbox", "version": VERSION, **asdict(world)}
    return Plan(range(args.samples), world.sample, labels, provenance, licence="CC0-1.0")
