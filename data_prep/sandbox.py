"""Source ``sandbox``: samples of the procedural world, with labels that no one has to annotate.

A sample is a pure function of (seed, split, index): the same bytes on any number of workers.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from data_prep.common import Plan
from data_prep.sandbox_world.conditions import draw_conditions, to_meta
from data_prep.sandbox_world.geometry import Grid, average
from data_prep.sandbox_world.land import draw_land
from data_prep.sandbox_world.layouts import COVERS, FOREST, SCENES, draw
from data_prep.sandbox_world.render import View, by_resolution, image, look
from dinov2.data.sample import Sample
from dinov2.sensors import SENSORS

SPLITS = ("train", "val", "test")
CRS, ORIGIN, COLUMNS = "EPSG:32631", (166_000.0, 4_900_000.0), 400  # where chip 0 of the world lies
STEP = 5.0  # metres: the world is drawn no coarser than this
LABELS = {
    "scene": {"kind": "class", "classes": list(SCENES), "ignore": -1},
    "landcover": {"kind": "mask", "classes": list(COVERS), "ignore": 255},
    "canopy_height": {"kind": "mask", "unit": "metre"},
    "mean_canopy_height": {"kind": "scalar", "unit": "metre"},
}


def drawing_step(pixel_sizes: Sequence[int]) -> float:
    """The fine grid's step in metres: at most ``STEP``, and a divisor of every pixel size."""
    common = math.gcd(*pixel_sizes)
    return common / math.ceil(common / STEP)


def footprint(split: str, index: int, chip_m: int) -> tuple[float, float, float, float]:
    """Where a chip lies: rows of ``COLUMNS`` chips, every split in a zone of its own 1000 km further north."""
    row, column = divmod(index, COLUMNS)
    x = ORIGIN[0] + column * chip_m
    y = ORIGIN[1] + 1_000_000 * SPLITS.index(split) + row * chip_m
    return x, y, x + chip_m, y + chip_m


def labels_of(view: View, scene: int, factor: int) -> dict:
    """Scene class, majority land cover and mean canopy height at the finest sensor's pixels."""
    land = view.land
    onehot = (land.layout.cover == np.arange(len(COVERS), dtype=np.uint8)[:, None, None]).astype(np.float32)
    canopy = average(np.where(land.layout.cover == FOREST, land.height, 0).astype(np.float32), factor)
    return {
        "scene": scene,
        "landcover": average(onehot, factor).argmax(0).astype(np.uint8),
        "canopy_height": canopy.astype(np.float32),
        "mean_canopy_height": round(float(canopy.mean()), 3),
    }


def make(index: int, *, seed: int, split: str, sensors: tuple[str, ...], chip_m: int) -> Sample:
    """Sample number ``index`` of a split."""
    groups = [(SENSORS[name], gsd, bands) for name in sensors for gsd, bands in by_resolution(SENSORS[name]).items()]
    sizes = [gsd for _, gsd, _ in groups]
    step = drawing_step(sizes)

    def rng(what: str) -> np.random.Generator:
        return np.random.default_rng([seed, SPLITS.index(split), index, zlib.crc32(what.encode())])

    grid = Grid(round(chip_m / step), step, rng("land"))
    scene = int(grid.rng.integers(len(SCENES)))
    land = draw_land(draw(scene, grid), grid)
    now = draw_conditions(rng("conditions"))
    view = look(land, now, Grid(grid.n, step, rng("clouds")))
    images, specs = {}, {}
    for sensor, gsd, bands in groups:
        spec, stored = image(view, sensor, gsd, bands, rng(f"{sensor.name} {gsd}"))
        images[spec.key], specs[spec.key] = stored, spec
    return Sample(
        key=f"{split}_{seed}_{index:07d}",
        images=images,
        specs=specs,
        times={key: [now.date] for key in images},
        footprint=footprint(split, index, chip_m),
        crs=CRS,
        labels=labels_of(view, scene, round(min(sizes) / step)),
        meta={"split": split, **to_meta(now)},
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


def plan(args: argparse.Namespace) -> Plan:
    """The samples that a command line asks for."""
    sensors = tuple(args.sensors.split(","))
    if args.samples < 1 or args.seed < 0:
        raise ValueError(f"--samples {args.samples} must be at least 1 and --seed {args.seed} at least 0")
    for name in sensors:
        groups = by_resolution(SENSORS[name])
        if not groups:
            raise ValueError(
                f"sensor {name!r} has no band that the sandbox can render (400-2500 nm, VV, VH, elevation)"
            )
        for gsd in groups:
            if args.chip_m % gsd:
                raise ValueError(f"--chip-m {args.chip_m} is no multiple of the {gsd} m pixels of sensor {name!r}")
    world = {"seed": args.seed, "split": args.split_name, "sensors": sensors, "chip_m": args.chip_m}
    return Plan(range(args.samples), partial(make, **world), LABELS, {"source": "sandbox", **world}, "CC0-1.0")
