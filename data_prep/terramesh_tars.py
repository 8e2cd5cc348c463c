"""TerraMesh as published: tars of zipped zarr files, a tar per shard and modality, the same keys in each.

    --src/{S2L1C,S2L2A,S1GRD,S1RTC,DEM,NDVI,LULC}/{majortom,ssl4eos12}_shard_000001.tar      (--src: folder of a split)

Members are found by the tars' headers and read by ranges. S1GRD is only in shards named ssl4eos12, S1RTC in majortom.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_prep import refine
from data_prep.common import Plan, Refused, Skip, slug
from data_prep.footprints import Box, lonlat
from data_prep.rasters import carried_offset, without_offset
from data_prep.store import Store
from data_prep.terramesh_modalities import LABELS, SPECS, landcover
from data_prep.zarrs import ZarrZip, expect
from dinov2.data.sample import Sample
from dinov2.sensors import SENSORS

LICENCE = "CC-BY-SA-4.0"
MAPS = ("NDVI", "LULC")
SUFFIX = ".zarr.zip"
HALF = 1320.0  # metres: half a tile of 264 pixels
DEGREE = 111_195.0  # metres per degree of latitude
MOST = 64 << 20  # bytes of one member


@dataclass(frozen=True, slots=True)
class Member:
    """Where the file of one key and modality lies."""

    tar: str
    offset: int
    size: int


def shards_of(store: Store, folders: Sequence[str]) -> Mapping[str, list[str]]:
    """Modality -> names of its tars, without the folder."""
    found = {f: [n.split("/", 1)[1] for n in store.files((".tar",), f)] for f in folders}
    return {folder: names for folder, names in found.items() if names}


def members(store: Store, tar: str) -> dict[str, Member]:
    """Key -> member of one tar; Refused where a name leads out of its folder or a size is not possible."""
    found = {}
    try:
        with store.open(tar, cache="readahead") as raw, tarfile.open(fileobj=raw, mode="r:") as file:
            for member in file:
                if not member.isreg() or member.name.startswith("/") or ".." in member.name.split("/"):
                    raise ValueError(f"{store.path(tar)}: the member {member.name!r} is refused: do not unpack this")
                if member.size > MOST:
                    raise ValueError(f"{store.path(tar)}: {member.name} declares {member.size} bytes (limit {MOST})")
                if member.name.endswith(SUFFIX):
                    found[member.name.removesuffix(SUFFIX)] = Member(tar, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{store.path(tar)} is damaged ({error}): fetch it again") from error
    return found


@dataclass(frozen=True)
class Tiles:
    """Reads tiles: an item is the key and its member of every modality."""

    store: Store
    offset: str  # the choice of --baseline-offset
    filters: refine.Filters

    def __call__(self, item: tuple[str, Mapping[str, Member]]) -> Sample | Skip:
        """One tile, all modalities."""
        key, parts = item
        images, specs, times, removed = {}, {}, {}, {}
        labels: dict[str, np.ndarray] = {}
        for modality, member in parts.items():
            zipped = self._open(key, member)
            stored = zipped.array("bands")
            expect(stored.shape, 1 if modality in MAPS else len(SPECS[modality].bands), zipped.what)
            stored = stored[0]
            if modality in MAPS:
                labels |= {"landcover": landcover(stored[0], key)} if modality == "LULC" else {"ndvi": stored[0]}
                continue
            spec = SPECS[modality]
            if modality.startswith("S2"):
                removed[modality] = carried_offset(stored, self.offset)
                stored = without_offset(stored, removed[modality], SENSORS[spec.sensor].nodata)
            spec = replace(spec, dtype=str(stored.dtype))
            dates = zipped.dates("time") if zipped.has("time") and modality != "DEM" else []
            images[spec.key], specs[spec.key], times[spec.key] = stored, spec, dates
        lon, lat = (float(zipped.array(name).ravel()[0]) for name in ("center_lon", "center_lat"))
        box = box_around(lon, lat)
        reason = self.filters.reason(box=box, date=min((d for dates in times.values() for d in dates), default=None))
        if reason:
            return Skip(reason)
        meta = {"cell": key, "removed_offset": removed}
        return Sample(slug(key), images, specs, times, box, "EPSG:4326", labels, meta)

    def _open(self, key: str, member: Member) -> ZarrZip:
        """The zipped zarr of a member."""
        with self.store.open(member.tar) as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise Refused(f"{member.tar}: {key} is cut")
        return ZarrZip(io.BytesIO(data), f"{member.tar}, {key}")


def box_around(lon: float, lat: float) -> Box:
    """The tile around its centre; files do not tell their corners."""
    high = HALF / DEGREE
    wide = high / max(1e-3, float(np.cos(np.radians(lat))))
    return lonlat("EPSG:4326", (lon - wide, lat - high, lon + wide, lat + high))


def plan(offset: str, store: Store, filters: refine.Filters, shards: Mapping[str, list[str]]) -> Plan:
    """Every tile of every shard."""
    items: list[tuple[str, Mapping[str, Member]]] = []
    tars = []
    for name in sorted({name for names in shards.values() for name in names}):
        by_modality = {m: members(store, f"{m}/{name}") for m, names in shards.items() if name in names}
        first, own = next(iter(by_modality.items()))
        for modality, other in by_modality.items():
            if list(other) != list(own):
                raise ValueError(f"{store.path(modality)}/{name} and {store.path(first)}/{name} hold other keys")
        items += [(key, {m: found[key] for m, found in by_modality.items()}) for key in own]
        tars += [f"{m}/{name}" for m in by_modality]
        if filters.limit and len(items) >= filters.limit:
            break
    provenance = {"source": "terramesh", "files": store.fingerprint(tars), "baseline_offset": offset}
    labels = (LABELS if "LULC" in shards else {}) | ({"ndvi": {"kind": "mask"}} if "NDVI" in shards else {})
    return Plan(
        items[: filters.limit],
        Tiles(store, offset, filters),
        labels,
        {**provenance, **filters.provenance()},
        "CC-BY-SA-4.0",
    )
