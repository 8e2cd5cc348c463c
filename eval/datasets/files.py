"""Samples in files: GeoTIFFs (or pictures) and the truth beside them, described by patterns of file names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinov2.data.sample import ImageSpec
from dinov2.env import expand
from eval.datasets import rows as rows_of
from eval.datasets import stores
from eval.datasets.base import SPLITS, EvalDataset, Split, chosen_specs
from eval.datasets.entries import add_entries
from eval.datasets.layers import Layer
from eval.datasets.listing import Columns, kept, state
from eval.datasets.source import Source
from eval.datasets.targets import MapReader, Target, image_labels, merged

SHOWN = ("images", "bands", "size", "title", "split_hash")  # options that do not change which samples there are

LOOKED_AT = 10_000  # samples whose files are looked at whenever the set is opened


def files(
    *,
    root: str,
    layers: dict[str, Layer],  # the images of a sample; files of the first are the samples, {id} (or key) names them
    kind: str = "segmentation",  # or classification, multilabel, regression
    classes: list[str] | None = None,  # None: the values of the column ``label`` in alphabetical order
    target: Target | None = None,  # the truth per pixel, or
    label: str | None = None,  # the column that holds the truth per sample; several labels are divided by ";"
    ignore: list[str] | None = None,  # values of ``label`` that are none: such samples are left out and counted
    merge: dict[str, str] | None = None,  # multilabel: value of ``label`` -> class; what is neither is no label
    unit: str = "",  # regression: of the values
    pair: bool = False,  # the two dates of a sample are before and after
    key: str = "{id}",  # sample keys
    table: str | None = None,  # csv, parquet, json or geojson below root: its columns are joined to the samples
    table_key: str = "id",  # its column that holds their {id}, or how several make it: "{place}_{year}"
    complete: bool = False,  # all that the table names must be there; else what is not is left out
    where: dict[str, list[Any]] | None = None,  # column -> values: samples that have none of them are left out
    entries: dict[str, list[str]] | None = None,  # path of a JSON file per sample -> its entries that become columns
    parse: dict[str, str] | None = None,  # column -> pattern: the pattern's fields become columns too
    train: Any = None,  # a list file below root, a list of values of ``split_by``, or None: what is in no other list
    val: Any = 0.2,  # the same, or a fraction of the training samples
    test: Any = 0.2,
    split_by: str = "key",  # column; samples that share a value stay together
    val_by: str | None = None,  # another one for validation
    entry: str = "{id}",  # form of the entries of list files
    column: Any = 0,  # of list files with several: title, or number where there are no titles
    tile: int | None = None,  # cut files into tiles of so many pixels of the finest layer
    block: float | None = None,  # side of the squares on the ground that make the column "block", in CRS units
    images: list[str] | None = None,
    bands: list[str] | None = None,
    size: int | None = None,
    title: str | None = None,
    split_hash: str | None = None,  # of the published split: another one is an error
) -> EvalDataset:
    """Samples whose files lie below ``root``; docs/extending.md shows the options at work.

    ``images``, ``bands`` and ``size`` as in :class:`eval.datasets.EvalDataset`; splits as
    :func:`eval.datasets.splits.divide` makes them.
    """
    recipe = {name: value for name, value in locals().items() if name not in SHOWN}
    mapped = kind in ("segmentation", "multilabel")  # classes per pixel; several labels are those in the map
    if (target is None) == (label is None) or (target and mapped and not classes):
        raise ValueError("a dataset of files needs either a target (and its classes, unless of values) or a label")
    folder = Path(expand(root)).resolve()
    first, finest = next(iter(layers.values())), min(layers.values(), key=lambda layer: layer.gsd_m)
    maps = MapReader(folder, target, tuple(classes or ()) if mapped else None) if target else None
    label = "present" if maps and kind == "multilabel" else label

    def build() -> tuple[Columns, list[Path]]:
        columns, seen = rows_of.of_files(folder, first, key)
        seen += add_entries(columns, folder, entries or {})
        if table:
            columns = rows_of.join(columns, folder / table, table_key, complete)
            seen.append(folder / table)
        rows_of.add_parsed(columns, parse or {})
        columns = rows_of.having(columns, where or {})
        if tile or block:
            columns = rows_of.add_places(columns, folder, finest, tile, block)
        if maps and maps.target.column and maps.target.background is None:
            columns = rows_of.with_polygons(columns, folder, finest, tile, maps)
            seen.append(folder / maps.target.path)
        rows_of.add_keys(columns, key, tiled=bool(tile))
        parts = {"train": train, "val": val, "test": test} if train is not None else {"val": val, "test": test}
        fields = dict.fromkeys(parts, split_by) | {"val": val_by or split_by}
        columns, lists = rows_of.add_splits(columns, folder, parts, fields, entry, column, key)
        present = rows_of.add_present(columns, folder, finest, tile, maps) if maps and label else []
        return columns, seen + lists + present

    found = kept({**recipe, "root": folder}, build)
    rows = with_label(found, label, ignore or [])
    names = tuple(classes or (sorted({str(value) for value in rows[label].to_pylist()}) if label else ["value"]))
    named = {layer.spec("").key: layer for layer in layers.values()}
    if len(named) < len(layers):
        raise ValueError(
            f"dataset.layers: {len(layers)} layers make only the images {', '.join(named)}: no two may have the same "
            "sensor and gsd_m; leave one out"
        )
    chosen = [s.key for s in chosen_specs({key: layer.spec("") for key, layer in named.items()}, images, bands)]
    shown = tuple(stored_as(folder, named[key], rows) for key in chosen)
    splits = {}
    for name in SPLITS:
        part = rows.filter(pc.equal(rows["assigned"], name))
        source = Source(folder, {spec.key: (named[spec.key], spec) for spec in shown}, finest, part, tile, maps)
        told = part[label].to_pylist() if label else []
        told = merged(told, merge, names) if merge else told
        labels = image_labels(told, kind, names, f"{folder}, column {label},") if label else None
        splits[name] = Split(part["key"].to_pylist(), labels, source.sample, None if label else source.map)
    drawn = (folder / target.path).read_bytes() if target and target.column else b""
    dataset = EvalDataset(
        name=title or folder.name,
        classes=names,
        splits=splits,
        specs=shown,
        bands=tuple(bands) if bands else None,
        size=size,
        data_hash=data_hash(repr((layers, target)).encode() + drawn, rows, folder, layers.values(), maps),
        ignored=len(found) - len(rows),
        kind=kind,
        unit=unit,
        frames=max(layer.longest(rows) for layer in layers.values()),
        pair=pair,
    )
    return dataset.require(split_hash)


def data_hash(described: bytes, rows: pa.Table, root: Path, layers: Collection[Layer], maps: MapReader | None) -> str:
    """Twelve hex digits of how the data is described, the samples' keys, and the states of their files.

    That is the size of every file of the first layer when it was listed; and size and time of modification of the files
    of all layers and maps now, for they may be changed in place. To look at half a million would take too long: it is
    done for ``LOOKED_AT`` samples spread evenly over the set, so that in a larger one a change in place of a few others
    is missed. A copy is the same data if it keeps the times; of a zarr store the folder's own counts.
    """
    digest = hashlib.sha256(described + "\n".join(rows["key"].to_pylist()).encode())
    digest.update(rows["bytes"].to_numpy().tobytes())
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).round().astype(int)
    for values in rows.take(pa.array(chosen)).to_pylist():
        files = [path for layer in layers for step in layer.files(root, values) for path in step]
        files += [maps.path(dated) for dated in maps.dated(values)] if maps else []
        digest.update(repr([state(stores.disk(path)) for path in files]).encode())
    return digest.hexdigest()[:12]


def with_label(rows: pa.Table, label: str | None, ignore: Sequence[str]) -> pa.Table:
    """The rows whose ``label`` is none of ``ignore``."""
    if label is None:
        return rows
    if label not in rows.column_names:
        raise ValueError(f"dataset.label {label!r} is unknown; known: {', '.join(rows.column_names)}")
    if not ignore:
        return rows
    return rows.filter(pc.invert(pc.is_in(pc.cast(rows[label], "string"), pa.array(ignore))))


def stored_as(root: Path, layer: Layer, rows: pa.Table) -> ImageSpec:
    """What the pixels of a layer are; their dtype is that of the first sample's file, float32 of what is derived."""
    derived = layer.pixels or layer.simulate
    return layer.spec("float32" if derived else layer.header(root, rows.slice(0, 1).to_pylist()[0]).dtype)
