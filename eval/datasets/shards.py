"""Any shard set whose samples carry a label: a class or a value, or a map of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet
from dinov2.env import expand
from eval.datasets.base import SPLITS, EvalDataset, Split, chosen_specs
from eval.datasets.listing import Columns, take
from eval.datasets.splits import divide
from eval.datasets.targets import MapReader, Target


def shards(
    *,
    root: str,
    label: str,
    title: str | None = None,
    val_root: str | None = None,
    test_root: str | None = None,
    split_by: str = "key",
    val_by: str | None = None,
    val: Any = 0.2,
    test: Any = 0.2,
    images: list[str] | None = None,
    bands: list[str] | None = None,
    size: int | None = None,
    ignore: tuple[int, ...] = (-1,),
    classes: list[str] | None = None,
) -> EvalDataset:
    """The task of ``labels[label]``; ``title`` names it in tables (None: ``FOLDER/label``).

    What the set says about the label decides: a class or a number that is described as a scalar (regression), a mask
    with classes (segmentation) or with a unit (regression). The two dates of a label described as ``pair`` are before
    and after.
    The training samples lie in ``root``. Validation and test samples lie in ``val_root`` and ``test_root``; a split
    without a root of its own is cut from ``root``: by the field ``split_by`` (``key`` or ``meta.NAME``), whose values
    are listed in ``test`` and ``val``, or taken in the order of a hash where these are fractions. Samples that share a
    value are never separated, so a field that names the place keeps neighbours together. ``val_by`` is another field
    for validation: whole scenes may be held out for test and single chips of the others for validation.
    ``images`` are image keys or sensor names (None: all of the set). Samples without the label, or with one of
    ``ignore``, are left out and counted; in masks the ignored number of the set's description is no label.
    """
    roots = {"train": root, "val": val_root, "test": test_root}
    sets = {name: ShardSet.open(expand(path)) for name, path in roots.items() if path}
    specs = chosen_specs({key: found[0] for key, found in sets["train"].images.items()}, images, bands)
    check_same_bands(sets, specs)
    info = sets["train"].labels.get(label, {})
    parts = {name: part for name, part in (("test", test), ("val", val)) if name not in sets}
    fields = {"test": split_by, "val": val_by or split_by}
    tables = {name: table(source, label, info, specs, [fields[p] for p in parts]) for name, source in sets.items()}
    total = sum(len(t["key"]) for t in tables.values())
    tables = {name: with_label(t, ignore) for name, t in tables.items()}
    values = [value for t in tables.values() for value in t["value"]]
    if not values:
        first = sets["train"].read(0, 0, images={specs[0].key}, labels=())
        raise ValueError(f"no sample of {root} has the label {label!r}; it has {', '.join(sorted(first.labels))}")
    rows = divide(tables["train"], parts, fields)
    tables |= {name: take(tables["train"], rows[name]) for name in rows}
    kind, frames = kind_of(info), max(count for t in tables.values() for count in t["frames"])
    names = tuple(
        classes or info.get("classes") or ([label] if kind == "regression" else map(str, range(max(values) + 1)))
    )
    target = Target(ignore=[info["ignore"]] if "ignore" in info else [])
    maps = MapReader(Path(root), target, names if kind == "segmentation" else None)
    splits = {}
    for name in SPLITS:
        held, shown = tables[name], {spec.key for spec in specs}
        places = list(zip(held["shard"], held["number"], strict=True))
        source = Source(sets.get(name, sets["train"]), places, shown, label, maps)
        if info.get("kind") == "mask":
            splits[name] = Split(held["key"], None, source.sample, source.map)
        else:
            labels = torch.tensor(held["value"], dtype=torch.float32 if kind == "regression" else torch.int64)
            splits[name] = Split(held["key"], labels, source.sample)
    return EvalDataset(
        name=title or f"{Path(root).name}/{label}",
        classes=names,
        splits=splits,
        specs=specs,
        bands=tuple(bands) if bands else None,
        size=size,
        data_hash=hashlib.sha256(repr([(n, s.digest) for n, s in sets.items()]).encode()).hexdigest()[:12],
        ignored=total - len(values),
        kind=kind,
        unit=info.get("unit", ""),
        frames=frames,
        pair=info.get("pair", False) and frames == 2,
    )


def kind_of(info: Mapping[str, Any]) -> str:
    """The kind of task that a label's description makes."""
    if info.get("kind") == "scalar" or "unit" in info:
        return "regression"
    return "segmentation" if info.get("kind") == "mask" else "classification"


def table(
    source: ShardSet, label: str, info: Mapping[str, Any], specs: Sequence[ImageSpec], fields: Sequence[str]
) -> Columns:
    """A row per sample: its key, ``value`` (None: it has none; of masks 0) and place; of pixels the coarsest image."""
    coarsest = max(specs, key=lambda spec: spec.gsd_m).key
    out: Columns = {name: [] for name in ("key", "value", "shard", "number", "frames", *fields)}
    for shard, count in enumerate(source.counts):
        for number in range(int(count)):
            sample = source.read(shard, number, images={coarsest}, labels=())
            value = 0 if info.get("kind") == "mask" else label_value(sample, label, scalar=info.get("kind") == "scalar")
            image = sample.images[coarsest]
            row = {"key": sample.key, "value": value, "shard": shard, "number": number}
            row["frames"] = len(image) if image.ndim == 4 else 1
            for name, entry in (row | {field: str(field_value(sample, field)) for field in fields}).items():
                out[name].append(entry)
    return out


def with_label(table: Columns, ignore: Sequence[int]) -> Columns:
    """The rows that have one."""
    return take(table, [i for i, value in enumerate(table["value"]) if value is not None and value not in ignore])


def field_value(sample: Sample, by: str) -> Any:
    """``sample.key`` or one of ``sample.meta``."""
    if by == "key":
        return sample.key
    name = by.removeprefix("meta.")
    if by == name or name not in sample.meta:
        known = ", ".join(["key", *(f"meta.{k}" for k in sorted(sample.meta))])
        raise ValueError(f"dataset.split_by {by!r}: sample {sample.key!r} has {known}")
    return sample.meta[name]


def label_value(sample: Sample, label: str, scalar: bool) -> int | float | None:
    """The sample's class, or value if the label is a ``scalar``; None where it has none."""
    value = sample.labels.get(label)
    if value is not None and not scalar and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"dataset.label {label!r} of sample {sample.key!r} is {value!r}, not an integer class")
    return value


def check_same_bands(sets: Mapping[str, ShardSet], specs: Sequence[ImageSpec]) -> None:
    """ValueError unless all sets hold these images with the same bands."""
    for owner, source in sets.items():
        for spec in specs:
            other = source.images.get(spec.key, [None])[0]
            if other is None or other.bands != spec.bands:
                raise ValueError(f"dataset.{owner}_root has no image {spec.key} with the bands {', '.join(spec.bands)}")


@dataclass(frozen=True)
class Source:
    """The samples of one split with the images that are shown; loader processes can pickle it."""

    shards: ShardSet
    places: list[tuple[int, int]]
    images: set[str]
    label: str
    maps: MapReader

    def sample(self, i: int) -> Sample:
        """Sample ``i`` without its label maps."""
        return self.shards.read(*self.places[i], images=self.images, labels=())

    def map(self, i: int) -> np.ndarray:
        """The map ``[H, W]`` of sample ``i``."""
        sample = self.shards.read(*self.places[i], images={min(self.images)}, labels={self.label})
        if self.label not in sample.labels:
            raise ValueError(f"sample {sample.key!r} has no label {self.label!r}; prepare the set again")
        return self.maps.translated(sample.labels[self.label], sample.key)
