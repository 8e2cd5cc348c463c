"""Any shard set whose samples carry an integer label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet
from dinov2.env import expand
from eval.datasets.base import SPLITS, EvalDataset, Split, chosen_specs


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
    """Classification of whole samples by ``labels[label]``; ``title`` names it in tables (None: ``FOLDER/label``).

    The training samples lie in ``root``. Validation and test samples lie in ``val_root`` and ``test_root``; a split
    without a root of its own is cut from ``root``: by the field ``split_by`` (``key`` or ``meta.NAME``), whose values
    are listed in ``test`` and ``val``, or taken in the order of a hash where these are fractions. Samples that share a
    value are never separated, so a field that names the place keeps neighbours together. ``val_by`` is another field
    for validation: whole scenes may be held out for test and single chips of the others for validation.
    ``images`` are image keys or sensor names (None: all of the set). Samples without the label, or with one of
    ``ignore``, are left out and counted.
    """
    roots = {"train": root, "val": val_root, "test": test_root}
    sets = {name: ShardSet.open(expand(path)) for name, path in roots.items() if path}
    specs = chosen_specs({key: found[0] for key, found in sets["train"].images.items()}, images, bands)
    check_same_bands(sets, specs)
    parts = {name: part for name, part in (("test", test), ("val", val)) if name not in sets}
    check_shares(parts)
    fields = {"test": split_by, "val": val_by or split_by}
    places: dict[str, list[Place]] = {name: [] for name in SPLITS}
    ignored = 0
    for owner, source in sets.items():
        cut_by = [fields[name] for name in parts] if owner == "train" else []
        for place, sample in walk(source, specs):
            value = label_value(sample, label, owner)
            if value is None or value in ignore:
                ignored += 1
            else:
                found = {field: str(field_value(sample, field)) for field in cut_by}
                places[owner].append(Place(sample.key, value, *place, found))
    totals = {field: len({p.fields[field] for p in places["train"]}) for field in (fields[name] for name in parts)}
    for name, part in parts.items():  # test first
        places[name], places["train"] = cut(places["train"], fields[name], part, totals[fields[name]])
    if not any(places.values()):
        raise ValueError(f"no sample of {root} has the label {label!r}; it has {', '.join(sorted(sample.labels))}")
    splits = {name: split_of(sets.get(name, sets["train"]), found, specs) for name, found in places.items()}
    names = class_names(sets["train"], label, classes, max(p.label for found in places.values() for p in found))
    digest = hashlib.sha256(repr([(n, s.digest) for n, s in sets.items()]).encode()).hexdigest()[:12]
    title = title or f"{Path(root).name}/{label}"
    return EvalDataset(title, names, splits, specs, tuple(bands) if bands else None, size, digest, ignored)


class Place(NamedTuple):
    """A labelled sample and where it is stored."""

    key: str
    label: int
    shard: int
    number: int
    fields: Mapping[str, str]  # by which splits are cut


def walk(source: ShardSet, specs: Sequence[ImageSpec]) -> Iterator[tuple[tuple[int, int], Sample]]:
    """Every sample's place and labels; of its pixels only the coarsest image is read."""
    coarsest = max(specs, key=lambda spec: spec.gsd_m).key
    for shard, count in enumerate(source.counts):
        for index in range(int(count)):
            yield (shard, index), source.read(shard, index, images={coarsest}, labels=())


def split_of(source: ShardSet, places: Sequence[Place], specs: Sequence[ImageSpec]) -> Split:
    """These samples with the images that are shown."""
    reader = Reader(source, [(p.shard, p.number) for p in places], {spec.key for spec in specs})
    return Split([p.key for p in places], [p.label for p in places], reader)


def check_shares(parts: Mapping[str, Any]) -> None:
    """ValueError where ``test`` or ``val`` is neither a list nor a fraction, or fractions leave nothing."""
    shares = {name: part for name, part in parts.items() if not isinstance(part, list)}
    if not all(isinstance(x, int | float) and 0 <= x < 1 for x in shares.values()) or sum(shares.values()) >= 1:
        given = " and ".join(f"dataset.{name} {part!r}" for name, part in shares.items())
        raise ValueError(f"{given}: give lists of values, or fractions from 0 with a sum below 1")


def cut(places: Sequence[Place], field: str, part: list[Any] | float, total: int) -> tuple[list[Place], list[Place]]:
    """(the places whose ``field`` has one of the chosen values, the others).

    Chosen are the values listed in ``part``, or the share ``part`` of ``total`` (at least one), in the order of a hash.
    """
    values = sorted({p.fields[field] for p in places}, key=lambda v: hashlib.sha256(v.encode()).hexdigest())
    if isinstance(part, list):
        chosen = set(map(str, part))
    else:
        chosen = set(values[: max(1, round(part * total))] if part else [])
    if values and chosen.issuperset(values):
        raise ValueError(
            f"dataset.split_by: {len(values)} values of {field!r} are too few to divide; name a field with more, "
            "or dataset.split_by=key for single samples"
        )
    return [p for p in places if p.fields[field] in chosen], [p for p in places if p.fields[field] not in chosen]


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


def check_same_bands(sets: Mapping[str, ShardSet], specs: Sequence[ImageSpec]) -> None:
    """ValueError unless all sets hold these images with the same bands."""
    for owner, source in sets.items():
        for spec in specs:
            other = source.images.get(spec.key, [None])[0]
            if other is None or other.bands != spec.bands:
                raise ValueError(f"dataset.{owner}_root has no image {spec.key} with the bands {', '.join(spec.bands)}")


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
