"""Source ``timeseries``: every clear Sentinel-2 and Sentinel-1 date of a region, as tile folders (docs/timeseries.md).

Examples: python data_prep/main.py timeseries --roi area.gpkg --s2-start 2021-01-01 --s2-end 2021-12-31 --out tiles/
          python data_prep/main.py timeseries --src retiled_d_pixel/ --first-date 2020-01-01 --out tiles/
          python data_prep/main.py timeseries --src stack/ --bands B02,B03,B04,B08 --out tiles/
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.timeseries.region import Region, read_region
from data_prep.timeseries.units import CLOUDY, RADAR, SAR_UNITS
from dinov2.data.series import OPTICAL
from dinov2.sensors import SENSORS

if TYPE_CHECKING:  # they need an optional extra
    from data_prep.timeseries.catalogue import Scene
    from data_prep.timeseries.cubes import Recipe

RATE = 20.0  # megabytes per second: what the estimate of hours assumes
CLASSES_M, RADAR_M = 20.0, 10.0  # pixels of the scene classes, and of radar, in catalogues


def day(text: str) -> str:
    """An ISO date."""
    return datetime.date.fromisoformat(text).isoformat()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--roi", type=Path, help="region of interest: geojson, shp, gpkg; or a tif whose pixels of value 1 are it")
    add(
        "--src",
        type=Path,
        help="instead: d-pixel tiles, GeoTIFFs bands/DATE.tif, masks/DATE.tif, ..., or a WorldCereal cube (.nc)",
    )
    add("--out", "--output-dir", "--output_dir", type=Path, required=True, help="folder of the tiles")
    for sensor in ("s2", "s1"):
        add(f"--{sensor}-start", type=day, help="first day, YYYY-MM-DD" + " (default: as s2)" * (sensor == "s1"))
        add(f"--{sensor}-end", type=day, help="last day, included")
    add("--catalogue", default="planetary_computer", help="preset, or a YAML file (%(default)s)")
    add("--bands", default=",".join(OPTICAL), help="optical bands in their order (%(default)s)")
    add("--cloud", type=float, default=90.0, help="percent above which a scene is left out (%(default)s)")
    add("--cloudy", default=",".join(map(str, CLOUDY)), help="scene classes that are not clear (%(default)s)")
    add("--s2-offset", choices=["auto", "remove", "none"], default="auto", help="auto: by item, or by a file's date")
    add("--s1-scale", choices=RADAR, help="int16 as 100 dB, or doubled as BTFM stores it (db; of d-pixels: doubled)")
    add("--s1-unit", choices=SAR_UNITS, default="db", help="of radar GeoTIFFs (%(default)s)")
    add("--resolution", type=float, default=10.0, help="metres (%(default)s)")
    add("--crs", help="of the grid (default: the UTM zone of the region's centre)")
    add("--tile", type=int, default=500, help="pixels per side (%(default)s)")
    add("--workers", type=int, default=4, help="dates read at a time (%(default)s)")
    add("--retries", type=int, default=5, help="of a failed request (%(default)s)")
    add("--first-date", type=day, help="with --src of d-pixel tiles: the day of their first date, which tells the year")
    add("--dry-run", action="store_true", help="print scenes, gigabytes and hours, then stop")


def run(args: argparse.Namespace) -> int:
    """Prepare; 1 if a tile failed."""
    if (args.roi is None) == (args.src is None):
        raise ValueError("give either --roi (to fetch scenes) or --src (to import what is there)")
    if args.tile < 1 or args.workers < 1 or args.resolution <= 0:
        raise ValueError("--tile, --workers and --resolution must be greater than 0")
    if args.src:
        from data_prep.timeseries import imports

        return report(imports.run(args), args.out)
    return fetch(args)


def fetch(args: argparse.Namespace) -> int:
    """Tiles of a region from a catalogue."""
    from data_prep.timeseries.catalogue import Catalogue, optical_scenes, radar_scenes  # an optional extra
    from data_prep.timeseries.cubes import Builder, Recipe, claim, each_tile

    if not (args.s2_start and args.s2_end) or args.s2_start > args.s2_end:
        raise ValueError("--roi needs --s2-start and --s2-end, in this order")
    s1 = args.s1_start or args.s2_start, args.s1_end or args.s2_end
    if s1[0] > s1[1]:
        raise ValueError(f"radar would be from {s1[0]} to {s1[1]}: give --s1-start and --s1-end in this order")
    region = read_region(args.roi, args.resolution, args.crs)
    catalogue, outline = Catalogue(args.catalogue, args.retries), region.footprint()
    recipe = Recipe(
        tuple(args.bands.split(",")), args.resolution, args.s2_offset,
        tuple(int(c) for c in args.cloudy.split(",") if c), args.s1_scale or "db",
    )  # fmt: skip
    if catalogue.optical is None:
        raise ValueError(f"--catalogue {args.catalogue} has no optical collection")
    found = catalogue.search(catalogue.optical, outline, args.s2_start, args.s2_end)
    scenes = optical_scenes(found, args.cloud)
    if not scenes:
        raise ValueError(
            f"{catalogue.url} has no scene of {catalogue.optical.name} over {args.roi} from {args.s2_start} to "
            f"{args.s2_end} with at most {args.cloud:g} % of clouds ({len(found)} with more)"
        )
    if catalogue.radar:
        scenes += radar_scenes(catalogue.search(catalogue.radar, outline, *s1))
    tiles = list(region.tiles(args.tile))
    print(estimate(region, scenes, len(tiles), args.tile, recipe))
    if args.dry_run:
        return 0
    provenance = {
        "catalogue": catalogue.url, "optical": asdict(catalogue.optical), "cloud": args.cloud, "tile": args.tile,
        "radar": catalogue.radar and asdict(catalogue.radar), "s2": [args.s2_start, args.s2_end], "s1": s1,
    }  # fmt: skip
    builder = Builder(args.out, region, catalogue, recipe, provenance, args.workers)
    claim(args.out, builder.provenance)
    return report(each_tile(tiles, lambda corners: builder.tile(corners, scenes)), args.out)


def estimate(region: Region, scenes: Sequence[Scene], tiles: int, size: int, recipe: Recipe) -> str:
    """Scenes, gigabytes and hours in a sentence; of pixels finer than the grid's, overviews are fetched."""
    pixels, optical = region.inside.size, sum(s.layer == "bands" for s in scenes)
    radar = len(scenes) - optical

    def share(metres: float) -> float:  # of a stored pixel, for one of the grid
        return min(1.0, (recipe.resolution / metres) ** 2)

    sizes = {band.name: band.gsd_m for band in SENSORS["sentinel2_l2a"].bands}
    per_date = sum(2 * share(sizes.get(band, 10.0)) for band in recipe.bands) + share(CLASSES_M)
    fetched = pixels * (optical * per_date + radar * 2 * 4 * share(RADAR_M))  # radar: two bands of 32 bits
    written = pixels * (optical * (2 * len(recipe.bands) + 1) + radar * 4)
    return (
        f"{optical} optical and {radar} radar dates ({sum(len(s.items) for s in scenes)} scenes) over {tiles} "
        f"tiles of {size} pixels: about {fetched / 1e9:.2f} GB to fetch and {written / 1e9:.2f} GB to write at most, "
        f"{fetched / 1e6 / RATE / 3600:.2f} hours at {RATE:g} MB/s"
    )


def report(failed: Sequence[str], out: Path) -> int:
    """List the failures; the exit code."""
    for line in failed:
        print(f"FAILED {line}")
    print(f"{out}: {'complete' if not failed else f'{len(failed)} tiles failed; run the same command again for them'}")
    return 1 if failed else 0
