"""Source ``satlas``: SatlasPretrain's 8-bit Sentinel-2, Sentinel-1 and Landsat tiles, joined by tile.

    --src/{sentinel2,sentinel1,landsat}/<scene>/<band>/<column>_<row>.png        Web-Mercator tiles of zoom 13
    --src/static/<column>_<row>/{land_cover,tree_cover}.png
    --src/metadata/{good_images_lowres_all,image_times,train_lowres,test_lowres}.json

A sample is a tile with all its dates ``[T, C, H, W]``. What is stored is what the makers stored: Sentinel-2's true
colour (sensor ``rgb``) beside its other bands, which are reflectance in steps of 0.0032; Sentinel-1 and Landsat in
digital numbers. Images stay at the size of their files; resolutions in image keys are nominal (512 pixels: 10 m).

Source: allenai/satlas (SatlasPretrain.md, Normalization.md: products are Level 1C), arXiv 2211.15660.

Example: python data_prep/main.py satlas --src satlas --out data/satlas --split train_lowres --chip 256
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep import refine
from data_prep.common import Plan, Refused, slug
from data_prep.footprints import lonlat
from data_prep.rasters import Bounds, decode
from data_prep.store import Store
from dinov2.data.sample import ImageSpec, Sample

ZOOM = 13
HALF_WORLD = 20_037_508.342789244  # metres of Web Mercator
NOMINAL = 512 * 10  # metres of a tile's side in image keys
GOOD, TIMES = "metadata/good_images_lowres_all.json", "metadata/image_times.json"
S2 = ("B05", "B06", "B07", "B08", "B11", "B12")
# product -> (folder of a band, sensor, band names, unit, scale, nodata); tci holds three bands
BANDS: Mapping[str, Sequence[tuple[str, str, tuple[str, ...], str, float, float | None]]] = {
    "sentinel2": [
        ("tci", "rgb", ("red", "green", "blue"), "dn", 1.0, 0),
        *((b.lower(), "sentinel2_l1c", (b,), "reflectance", 32e-4, 0) for b in S2),
    ],
    "sentinel1": [(b.lower(), "sentinel1_grd", (b,), "dn", 1.0, None) for b in ("VH", "VV")],
    "landsat": [(f"b{i}", "landsat8_l1", (f"B{i}",), "dn", 1.0, 0) for i in range(1, 12)],
}
LABELS: dict[str, dict[str, Any]] = {
    "land_cover": {"kind": "mask", "codes": "SatlasPretrain"},
    "tree_cover": {"kind": "mask", "unit": "percent"},
}
LICENCE = "ODC-BY-1.0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser)
    parser.add_argument("--split", help="a list in metadata/, for example train_lowres; all tiles by default")
    parser.add_argument("--products", default=",".join(BANDS), help="with commas (%(default)s)")


def bounds(column: int, row: int) -> Bounds:
    """A tile in metres of Web Mercator (EPSG:3857)."""
    side = 2 * HALF_WORLD / 2**ZOOM
    left, top = column * side - HALF_WORLD, HALF_WORLD - row * side
    return left, top - side, left + side, top


@dataclass(frozen=True)
class Tile:
    """A tile and its scenes: product -> (scene, ISO date), in order of time."""

    column: int
    row: int
    scenes: Mapping[str, Sequence[tuple[str, str]]]

    @property
    def place(self) -> str:
        """Column and row, as files and folders are called."""
        return f"{self.column}_{self.row}"

    def picture(self, product: str, scene: str, folder: str) -> str:
        """Name of the file of a band."""
        return f"{product}/{scene}/{folder}/{self.place}.png"

    def label(self, name: str) -> str:
        """Name of the file of a label."""
        return f"static/{self.place}/{name}.png"


@dataclass(frozen=True)
class Tiles:
    """Reads tiles."""

    store: Store

    def __call__(self, tile: Tile) -> Sample:
        """One tile, all products and dates."""
        images, specs, times = {}, {}, {}
        for product, scenes in tile.scenes.items():
            dates = [self._scene(product, scene, tile) for scene, _ in scenes]
            if len({tuple((key, stored.shape) for key, (_, stored) in date.items()) for date in dates}) > 1:
                raise Refused(f"{product}, tile {tile.place}: scenes differ in the sizes of their bands")
            for key, (spec, _) in dates[0].items():
                images[key], specs[key] = np.stack([date[key][1] for date in dates]), spec
                times[key] = [day for _, day in scenes]
        labelled, footprint = self.store.exists(f"static/{tile.place}"), bounds(tile.column, tile.row)
        labels = {name: self._label(tile.label(name), images) for name in LABELS} if labelled else {}
        key, meta = slug(f"tile_{tile.place}"), {"tile": tile.place}
        return Sample(key, images, specs, times, footprint, "EPSG:3857", labels, meta)

    def _scene(self, product: str, scene: str, tile: Tile) -> dict[str, tuple[ImageSpec, np.ndarray]]:
        """Image key -> what it is and its pixels ``[C, h, w]``, bands of one sensor and size together."""
        groups: dict[tuple[str, int], list[tuple[tuple[str, ...], np.ndarray]]] = {}
        about: dict[str, tuple[str, float, float | None]] = {}
        for folder, sensor, names, unit, scale, nodata in BANDS[product]:
            name = tile.picture(product, scene, folder)
            stored = decode(self.store.read(name), self.store.path(name)).pixels
            if len(stored) != len(names) or stored.dtype != np.uint8:
                found = f"{len(stored)} bands of {stored.dtype}"
                raise Refused(f"{self.store.path(name)} is {found}, not {len(names)} of uint8")
            groups.setdefault((sensor, stored.shape[-1]), []).append((names, stored))
            about[sensor] = (unit, scale, nodata)
        out = {}
        for (sensor, size), bands in groups.items():
            names = tuple(name for own, _ in bands for name in own)
            unit, scale, nodata = about[sensor]
            spec = ImageSpec(sensor, NOMINAL / size, names, "uint8", unit, scale, 0.0, nodata)
            out[spec.key] = (spec, np.concatenate([stored for _, stored in bands]))
        return out

    def _label(self, path: str, images: Mapping[str, np.ndarray]) -> np.ndarray:
        """A static map; its absence means that nothing of it is in the tile."""
        if not self.store.exists(path):
            finest = max((image.shape[-2:] for image in images.values()), key=lambda shape: shape[0])
            return np.zeros(finest, np.uint8)
        return decode(self.store.read(path), self.store.path(path)).pixels[0]


def tiles(store: Store, products: Sequence[str], split: str | None, filters: refine.Filters) -> list[Tile]:
    """The tiles of a list that have images in the wanted time and area."""
    for name in (GOOD, TIMES):
        if not store.exists(name):
            raise ValueError(f"{store.path(name)} is missing: fetch and unpack satlas-dataset-v1-metadata.tar")
    days = {scene: time[:10] for scene, time in json.loads(store.read(TIMES)).items()}
    product_of = {scene: product for product in products for scene in store.folders(product)}
    wanted = {tuple(place) for place in json.loads(store.read(f"metadata/{split}.json"))} if split else None
    found: dict[tuple[int, int], dict[str, list[tuple[str, str]]]] = {}
    for column, row, scene in json.loads(store.read(GOOD)):
        if scene not in product_of or (wanted is not None and (column, row) not in wanted):
            continue
        if scene not in days:
            raise ValueError(f"{store.path(TIMES)} has no time of the scene {scene}")
        if filters.passes(box=lonlat("EPSG:3857", bounds(column, row)), date=days[scene]):
            scenes = found.setdefault((column, row), {}).setdefault(product_of[scene], [])
            scenes.append((scene, days[scene]))
    ordered = {place: {p: sorted(s, key=lambda x: x[::-1]) for p, s in own.items()} for place, own in found.items()}
    return [Tile(*place, own) for place, own in sorted(ordered.items())]


def files(store: Store, items: Sequence[Tile]) -> Iterator[str]:
    """Names of all files that the tiles are made of."""
    for tile in items:
        for product, scenes in tile.scenes.items():
            yield from (tile.picture(product, scene, band[0]) for scene, _ in scenes for band in BANDS[product])
        yield from filter(store.exists, map(tile.label, LABELS))


def plan(args: argparse.Namespace) -> Plan:
    """Every tile that has an image."""
    store, filters = Store.at(args.src), refine.Filters.of(args)
    products = args.products.split(",")
    if unknown := [p for p in products if p not in BANDS]:
        raise ValueError(f"--products {unknown[0]}: known are {', '.join(BANDS)}")
    items = tiles(store, products, args.split, filters)[: filters.limit]
    provenance = {"source": "satlas", "files": store.fingerprint(files(store, items)), "products": products}
    provenance |= {"split": args.split, **filters.provenance()}
    return Plan(items, Tiles(store), LABELS, provenance, LICENCE, filters.refused)
