"""Scenes of a STAC catalogue: search, signed links, and one date read onto a grid."""

from __future__ import annotations

import datetime
import math
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import odc.stac
import pystac_client
import rasterio.errors
import requests
import shapely
from odc.geo.geobox import GeoBox
from pystac import Item
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from requests.adapters import HTTPAdapter
from shapely.geometry.base import BaseGeometry
from urllib3 import Retry

from data_prep.timeseries.units import CLOUDY, SAR_UNITS, decibels, offset_of, to_stored, without_offset
from dinov2.config import plain, read_yaml
from dinov2.env import expand
from dinov2.sensors import suggest

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "data_prep" / "catalogues"
ORBITS = ("ascending", "descending")
PASSING = (rasterio.errors.RasterioError, requests.RequestException, APIError, OSError)  # may be gone at the next try
BUSY = (429, 500, 502, 503, 504)  # answers of servers that may answer better next time
TIMEOUT = 60  # seconds for one request
SIGNED_FOR = 1200  # seconds for which a signed link is used; they last for longer
T = TypeVar("T")


@dataclass(frozen=True)
class Collection:
    """One collection: the asset of every band, and the unit of radar numbers."""

    name: str
    assets: Mapping[str, str]
    unit: str = "linear_power"


@dataclass(frozen=True)
class Scene:
    """All items of one day (and orbit) over a region, by name: the order in which they fill a mosaic."""

    layer: str  # bands | sar_ascending | sar_descending
    date: str
    items: tuple[Item, ...]

    def over(self, footprint: BaseGeometry) -> Scene:
        """The items that touch ``footprint`` (degrees)."""
        items = (i for i in self.items if i.geometry and shapely.geometry.shape(i.geometry).intersects(footprint))
        return Scene(self.layer, self.date, tuple(items))


class Catalogue:
    """A STAC API with its conventions, from a preset's name or a YAML file (docs/timeseries.md)."""

    def __init__(self, source: str, retries: int) -> None:
        path = Path(source) if source.endswith((".yaml", ".yml")) else PRESETS / f"{source}.yaml"
        known = sorted(p.stem for p in PRESETS.glob("*.yaml"))
        if path.parent == PRESETS and not path.is_file():
            raise ValueError(f"--catalogue {source!r} is no preset{suggest(source, known)} Known: {', '.join(known)}")
        raw = plain(read_yaml(path))
        unknown = sorted(raw.keys() - {"url", "sign", "headers", "optical", "radar"})
        if unknown or "url" not in raw:
            raise ValueError(
                f"{path}: a catalogue has url, sign, headers, optical, radar; not {', '.join(unknown) or '?'}"
            )
        self.url, self.sign, self.retries = expand(raw["url"]), raw.get("sign"), retries
        self.headers = {name: expand(value) for name, value in raw.get("headers", {}).items()}
        self.optical, self.radar = (self._collection(raw.get(part), path) for part in ("optical", "radar"))
        self.patience = Retry(retries, backoff_factor=0.1, status_forcelist=BUSY, allowed_methods=None)  # of POST too
        self.signing = requests.Session()
        self.signing.mount("http", HTTPAdapter(max_retries=self.patience))
        self.links: dict[str, tuple[float, str]] = {}  # signed ones, and when they were
        odc.stac.configure_rio(
            cloud_defaults=True, GDAL_HTTP_MAX_RETRY=retries, GDAL_HTTP_RETRY_DELAY=0.1, GDAL_HTTP_TIMEOUT=TIMEOUT,
            CPL_VSIL_CURL_NON_CACHED="/vsicurl/",  # a failure that is kept would be no second try
        )  # fmt: skip

    @staticmethod
    def _collection(raw: Mapping[str, Any] | None, path: Path) -> Collection | None:
        if raw is None:
            return None
        found = Collection(raw["collection"], raw["assets"], raw.get("unit", "linear_power"))
        if found.unit not in SAR_UNITS:
            raise ValueError(f"{path}: radar.unit {found.unit!r} is not one of {', '.join(SAR_UNITS)}")
        return found

    def again(self, do: Callable[[], T], what: str) -> T:
        """``do()``, tried anew after failures that may pass; ValueError names ``what`` when it fails for good."""
        for attempt in range(self.retries + 1):
            try:
                return do()
            except PASSING as error:
                last = error
                time.sleep(min(10.0, 0.1 * 2**attempt))
        raise ValueError(f"{what} failed {self.retries + 1} times, the last: {' '.join(str(last).split())[:200]}")

    def search(self, collection: Collection, region: BaseGeometry, start: str, end: str) -> list[Item]:
        """All items over ``region`` (degrees) from ``start`` to ``end``, both days included, by name."""

        def find() -> list[Item]:
            io = StacApiIO(self.headers, timeout=TIMEOUT, max_retries=self.patience)
            client = pystac_client.Client.open(self.url, headers=self.headers, stac_io=io)
            found = client.search(collections=[collection.name], bbox=region.bounds, datetime=f"{start}/{end}")
            return sorted(found.items(), key=lambda item: item.id)

        return [i for i in self.again(find, f"searching {self.url}") if touches(i, region)]

    def signed(self, href: str) -> str:
        """A link with what lets one read it."""
        if not self.sign or not href.startswith("http"):
            return href
        when, link = self.links.get(href, (-math.inf, ""))
        if time.monotonic() - when > SIGNED_FOR:
            url = self.sign.format(href=urllib.parse.quote(href, safe=""))
            reply = self.signing.get(url, headers=self.headers, timeout=TIMEOUT)
            reply.raise_for_status()
            link = reply.json()["href"]
            self.links[href] = time.monotonic(), link
        return link

    def read(self, item: Item, assets: Sequence[str], grid: GeoBox, dtype: str, nodata: float) -> list[np.ndarray]:
        """Assets of an item, each ``[H, W]``, nearest pixel; ``nodata`` where it has none."""
        missing = [asset for asset in assets if asset not in item.assets]
        if missing:
            raise ValueError(f"item {item.id} has no asset {', '.join(missing)}; it has {', '.join(item.assets)}")

        def load() -> list[np.ndarray]:
            cube = odc.stac.load(
                [item], bands=list(assets), geobox=grid, dtype=dtype, nodata=nodata, resampling="nearest",
                patch_url=self.signed,
            )  # fmt: skip
            return [cube[asset].values[0] for asset in assets]

        return self.again(load, f"item {item.id}: reading")


def touches(item: Item, region: BaseGeometry) -> bool:
    """Whether an item's outline meets ``region``."""
    return item.geometry is not None and shapely.geometry.shape(item.geometry).intersects(region)


def solar_day(item: Item) -> str:
    """Date at the item's longitude, so that one pass is one day everywhere."""
    if item.datetime is None or item.bbox is None:
        raise ValueError(f"item {item.id} has no date or no place")
    local = item.datetime + datetime.timedelta(hours=(item.bbox[0] + item.bbox[2]) / 2 / 15)
    return local.date().isoformat()


def optical_scenes(items: Sequence[Item], cloud: float) -> list[Scene]:
    """One scene per day of items with at most ``cloud`` percent of clouds, or that do not tell."""
    days: dict[str, list[Item]] = {}
    for item in items:
        if (item.properties.get("eo:cloud_cover") or 0) <= cloud:
            days.setdefault(solar_day(item), []).append(item)
    return [Scene("bands", day, tuple(days[day])) for day in sorted(days)]


def radar_scenes(items: Sequence[Item]) -> list[Scene]:
    """One scene per day and orbit."""
    passes: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        orbit = item.properties.get("sat:orbit_state")
        if orbit not in ORBITS:
            raise ValueError(f"item {item.id}: sat:orbit_state is {orbit!r}, not one of {', '.join(ORBITS)}")
        passes.setdefault((orbit, solar_day(item)), []).append(item)
    return [Scene(f"sar_{orbit}", day, tuple(passes[orbit, day])) for orbit, day in sorted(passes)]


def read_optical(
    catalogue: Catalogue, scene: Scene, grid: GeoBox, bands: Sequence[str], offset: str, cloudy: Sequence[int] = CLOUDY
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers uint16 ``[H, W, C]`` of a day's mosaic without baseline offset, and uint8 ``[H, W]``, 1 = clear.

    A pixel is the first item's that has any number there.
    """
    assert catalogue.optical
    assets = [asset_of(catalogue.optical, band) for band in (*bands, "SCL")]
    image, classes = np.zeros((*grid.shape, len(bands)), np.uint16), np.zeros(grid.shape, np.uint16)
    for item in scene.items:
        *planes, scl = catalogue.read(item, assets, grid, "uint16", 0)
        numbers = without_offset(np.stack(planes, -1), offset_of(item.properties, item.id, offset))
        free = ~image.any(-1) & numbers.any(-1)
        image[free], classes[free] = numbers[free], scl[free]
    return image, (image.any(-1) & ~np.isin(classes, cloudy)).astype(np.uint8)


def read_radar(catalogue: Catalogue, scene: Scene, grid: GeoBox, convention: str) -> np.ndarray:
    """VV and VH int16 ``[H, W, 2]`` of a pass, as ``convention`` stores dB; the first item's that has both."""
    assert catalogue.radar
    assets = [asset_of(catalogue.radar, band) for band in ("VV", "VH")]
    image = np.full((*grid.shape, 2), np.nan)
    for item in scene.items:
        planes = np.stack(catalogue.read(item, assets, grid, "float32", np.nan), -1)
        db = decibels(planes, catalogue.radar.unit)
        free = np.isnan(image).any(-1) & ~np.isnan(db).any(-1)
        image[free] = db[free]
    return to_stored(image, convention)


def asset_of(collection: Collection, band: str) -> str:
    """The asset that holds a band."""
    if band not in collection.assets:
        raise ValueError(f"collection {collection.name} has no band {band!r}{suggest(band, list(collection.assets))}")
    return collection.assets[band]
