"""Any shard set whose samples carry an integer label."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet
from dinov2.env import expand
from eval.datasets.base import EvalDataset, Split

Rule = Callable[[Sample], str]  # sample (without pixels) -> split


def shards(
    *,
    root: str,
    label: str,
    title: str | None = None,
    val_root: str | None = None,
    test_root: str | None = None,
    split_by: str = "key",
    val: Any = 0.2,
    test: Any = 0.2,
    images: list[str] | None = None,
    bands: list[str] | None = None,
    size: int | None = None,
    ignore: tuple[int, ...] = (-1,),
    classes: list[str] | None = None,
) -> EvalDataset:
    """Classification of whole samples by ``labels[label]``.

    The training samples lie in ``root``. Validation and test samples lie in ``val_root`` and ``test_root``; a split
    without a root of its own is cut from ``root``: by the field ``split_by`` (``key`` or ``meta.NAME``), whose values
    are listed in ``val`` and ``test``, or assigned by a stable hash where these are fractions. Samples that share a
    value are never separated, so a field that names the place keeps neighbours together. ``title`` names the dataset
    in tables (None: ``FOLDER/label``). ``images`` are image keys or
    sensor names (None: all of the set). Samples without the label, or with one of ``ignore``, are left
    out and counted.
    """
    roots = {"train": root, "val": val_root, "test": test_root}
    sets = {name: ShardSet.open(expand(path)) for name, path in roots.items() if path}
    specs = chosen_specs(sets, images, bands)
    rule = split_rule(split_by, **{k: v for k, v in (("val", val), ("test", test)) if k not in sets})
    smallest = max(specs, key=lambda spec: spec.gsd_m).key  # what is read along with the labels
    found: dict[str, list[tuple[str, int, int, int]]] = {"train": [], "val": [], "test": []}
    ignored = 0
    for owner, source in sets.items():
        for shard, count in enumerate(source.counts):
            for index in range(int(count)):
                sample = source.read(shard, index, images={smallest}, labels=())
                value = label_value(sample, label, owner)
                if value is None or value in ignore:
                    ignored += 1
                else:
                    split = rule(sample) if owner == "train" else owner
                    found[split].append((sample.key, value, shard, index))
    if not any(found.values()):
        raise ValueError(f"no sample of {root} has the label {label!r}; it has {', '.join(sorted(sample.labels))}")
    keys = {spec.key for spec in specs}
    splits = {}
    for name, rows in found.items():
        source = sets.get(name, sets["train"])
        splits[name] = Split(
            [r[0] for r in rows], [r[1] for r in rows], Reader(source, [(r[2], r[3]) for r in rows], keys)
        )
    names = class_names(sets["train"], label, classes, max((r[1] for rows in found.values() for r in rows), default=0))
    digest = hashlib.sha256(repr([(n, s.digest) for n, s in sets.items()]).encode()).hexdigest()[:12]
    title = title or f"{Path(root).name}/{label}"
    return EvalDataset(title, names, splits, specs, tuple(bands) if bands else None, size, digest, ignored)


def split_rule(by: str, *, val: Any = (), test: Any = ()) -> Rule:
    """Sample -> split. ``val`` and ``test`` are both fractions (hash of the field) or both lists of its values."""
    fractions = [x for x in (val, test) if isinstance(x, int | float)]
    if fractions and any(isinstance(x, list) and x for x in (val, test)):
        raise ValueError("dataset.val and dataset.test must both be fractions or both be lists of values")
    if fractions and not (all(x > 0 for x in fractions) and sum(fractions) < 1):
        raise ValueError(f"dataset.val and dataset.test are {fractions}; they must be positive with a sum below 1")
    test_share, val_share = (x if isinstance(x, int | float) else 0.0 for x in (test, val))

    def rule(sample: Sample) -> str:
        value = str(field_value(sample, by))
        if not fractions:
            return "test" if value in map(str, test) else "val" if value in map(str, val) else "train"
        at = int(hashlib.sha256(value.encode()).hexdigest()[:8], 16) / 2**32
        return "test" if at < test_share else "val" if at < test_share + val_share else "train"

    return rule


def field_value(sample: Sample, by: str) -> Any:
    """``sample.key`` or one of ``sample.meta``."""
    if by == "key":
        return sample.key
    name = by.removeprefix("meta.")
    if by == name or name not in sample.meta:
        known = ", ".join(["key", *(f"meta.{k}" for k in sorted(sample.meta))])
        raise ValueError(f"dataset.split_by {by!r}: sample {sample.key!r} has {known}")
    return sample.meta[name]


def label_value(sample: Sample, label: str, owner: str) -> int | None:
    """The sample's integer label, None where it has none."""
    value = sample.labels.get(label)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(
            f"dataset.label {label!r} of sample {sample.key!r} ({owner}) is {value!r}, not an integer class"
        )
    return value


def chosen_specs(
    sets: Mapping[str, ShardSet], images: Sequence[str] | None, bands: Sequence[str] | None
) -> tuple[ImageSpec, ...]:
    """Specs of the named image keys or sensors, in the order named; all sets must hold the same bands."""
    known = {key: specs[0] for key, specs in sets["train"].images.items()}
    chosen: dict[str, ImageSpec] = {}
    for name in images or known:
        found = {key: spec for key, spec in known.items() if name in (key, spec.sensor)}
        if not found:
            raise ValueError(f"dataset.images {name!r} is not in the set; known: {', '.join(known)}")
        chosen |= found
    for owner, source in sets.items():
        for key, spec in chosen.items():
            other = source.images.get(key, [None])[0]
            if other is None or other.bands != spec.bands:
                raise ValueError(f"dataset.{owner}_root has no image {key} with the bands {', '.join(spec.bands)}")
    have = [b for spec in chosen.values() for b in spec.bands]
    missing = [b for b in bands or () if b not in have]
    if missing:
        raise ValueError(f"dataset.bands {', '.join(missing)} not in {', '.join(chosen)}; known: {', '.join(have)}")
    return tuple(spec for spec in chosen.values() if not bands or any(b in bands for b in spec.bands))


def class_names(source: ShardSet, label: str, given: Sequence[str] | None, highest: int) -> tuple[str, ...]:
    """Names from the config, else from the shard set, else the numbers."""
    stored = source.labels.get(label, {}).get("classes")
    return tuple(given or stored or (str(i) for i in range(highest + 1)))


@dataclass(frozen=True)
class Reader:
    """``reader(i)``: the i-th sample with the images that are shown; loader processes can pickle it."""

    source: ShardSet
    addresses: list[tuple[int, int]]
    images: set[str]

    def __call__(self, i: int) -> Sample:
        """Read sample ``i``."""
        return self.source.read(*self.addresses[i], images=self.images, labels=())
