"""A table with one row per sample, built step by step out of file names, tables and raster headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common import slug
from eval.datasets import tortilla
from eval.datasets.base import IGNORE
from eval.datasets.layers import Layer
from eval.datasets.listing import Columns, Pattern, scan, take
from eval.datasets.source import tile_of
from eval.datasets.splits import divide, listed, read_table
from eval.datasets.targets import MapReader


def of_files(root: Path, layer: Layer, key: str) -> tuple[Columns, list[Path]]:
    """A row per sample of the layer: the fields of its path, and the folders that were looked at.

    A ``{date}`` that the layer does not list, or whose file may be absent, is found in the names: the column holds
    every sample's dates in order. Where the path has no ``{id}``, it is ``key`` filled in.
    """
    listed = {"date": layer.dates[0]} if layer.dates and not layer.absent else {}
    pattern = Pattern(layer.path).fix({"band": (layer.names or layer.stored)[0]} | listed)
    columns, folders = scan(root, pattern)
    if f"{tortilla.SUFFIX}::" in layer.path:
        columns, files = tortilla.samples(columns, root, pattern)
        folders += files
    columns = by_sample(columns) if "date" in columns else columns
    if layer.axes:
        columns = by_number(columns, root, layer)
    if "id" not in columns:
        pattern = Pattern(key)
        if not set(pattern.fields) <= columns.keys():
            raise ValueError(f"the path {layer.path} of the first layer has no {{id}}: it names the samples")
        columns["id"] = [pattern.fill(row(columns, i)) for i in range(len(columns["bytes"]))]
    return columns, folders


def by_sample(columns: Columns) -> Columns:
    """One row instead of several that differ in ``date``, which becomes a list in order of time."""
    fields = [name for name in columns if name not in ("date", "bytes")]
    groups: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    for date, size, *values in zip(columns["date"], columns["bytes"], *(columns[n] for n in fields), strict=True):
        groups.setdefault(tuple(values), []).append((date, size))
    out: Columns = {name: list(column) for name, column in zip(fields, zip(*groups, strict=True), strict=True)}
    out["date"] = [sorted(date for date, _ in found) for found in groups.values()]
    out["bytes"] = [sum(size for _, size in found) for found in groups.values()]
    return out


def by_number(columns: Columns, root: Path, layer: Layer) -> Columns:
    """A row per sample of every array: ``n`` along the axis N, ``frames`` dates; ``id`` is n where no name tells it."""
    heads = [layer.header(root, row(columns, i)) for i in range(len(columns["bytes"]))]
    found = [(i, n) for i, head in enumerate(heads) for n in range(head.samples)]
    out = take(columns, [i for i, _ in found]) | {"frames": [heads[i].dates for i, _ in found]}
    if "N" not in layer.axes:
        return out
    numbers = [n for _, n in found]
    return {"id": list(map(str, numbers))} | out | {"n": numbers}


def join(columns: Columns, path: Path, table_key: str, complete: bool) -> Columns:
    """The rows that a table knows, with its columns; they are matched by ``id`` and the table's ``table_key``.

    That is one of its columns, or made of several: ``{place}_{year}``. ValueError where none of the table's samples is
    there, or not all of them though they must be ``complete``.
    """
    table = read_table(path)
    pattern = Pattern(table_key if "{" in table_key else f"{{{table_key}}}")
    missing = [name for name in pattern.fields if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(table)}")
    place = {pattern.fill(row(table, i)): i for i in range(len(table[pattern.fields[0]]))}
    here = [i for i, name in enumerate(columns["id"]) if name in place]
    if not here:
        raise ValueError(f"{path} names none of the samples in its column {table_key!r}; correct dataset.table_key")
    absent = sorted(place.keys() - set(columns["id"])) if complete else []
    if absent:
        raise ValueError(
            f"{path} names {absent[0]!r}, which is missing, as are {len(absent) - 1} others of its {len(place)} "
            "samples; get the data again, or set dataset.complete=false to leave them out"
        )
    theirs = [place[columns["id"][i]] for i in here]
    return take(columns, here) | {n: [column[i] for i in theirs] for n, column in table.items() if n not in columns}


def having(columns: Columns, wanted: Mapping[str, Sequence[Any]]) -> Columns:
    """The rows whose columns have one of the values ``wanted``."""
    for name, values in wanted.items():
        texts = set(map(str, values))
        columns = take(columns, [i for i, value in enumerate(columns[known(columns, name)]) if str(value) in texts])
    return columns


def add_parsed(columns: Columns, forms: Mapping[str, str]) -> None:
    """More columns out of others: the fields of the pattern that ``forms`` has for a column."""
    for name, form in forms.items():
        pattern = Pattern(form)
        found = [pattern.parse(str(value)) for value in columns[known(columns, name)]]
        if None in found:
            bad = columns[name][found.index(None)]
            raise ValueError(f"dataset.parse: the {name} {bad!r} does not have the form {form}")
        columns |= {field: [values[field] for values in found if values] for field in pattern.fields}


def add_places(columns: Columns, root: Path, layer: Layer, tile: int | None, block: float | None) -> Columns:
    """A row per tile of every raster (``row``, ``column``: its first pixel), and the ``block`` of each; reads headers.

    ``layer`` is the finest one. What is left over at the lower and right edge is in no tile.
    """
    rows: list[int] = []
    places: Columns = {"row": [], "column": [], "block": []}
    for i in range(len(columns["id"])):
        head = layer.header(root, values := row(columns, i))
        side = tile or max(head.height, head.width)
        if tile and tile > min(head.height, head.width):
            path = layer.files(root, values)[0][0]
            raise ValueError(f"{path} has {head.height} x {head.width} pixels, too few for dataset.tile={tile}")
        for y in range(0, head.height - side + 1, side) if tile else (0,):
            for x in range(0, head.width - side + 1, side) if tile else (0,):
                rows.append(i)
                east, north = head.transform @ (x + side / 2, y + side / 2) if head.crs else (x, y)
                square = f"{head.crs or columns['id'][i]} {floor(east / block)} {floor(north / block)}" if block else ""
                for name, value in zip(places, (y, x, square), strict=True):
                    places[name].append(value)
    return take(columns, rows) | places


def with_polygons(columns: Columns, root: Path, layer: Layer, tile: int | None, maps: MapReader) -> Columns:
    """The rows that a polygon touches; reads headers of the finest ``layer``."""
    touched = []
    for i in range(len(columns["id"])):
        values = row(columns, i)
        if maps.touched(values, tile_of(values, tile), layer.header(root, values)):
            touched.append(i)
    if not touched:
        raise ValueError(f"no polygon of {root / maps.target.path} touches an image; compare their places")
    return take(columns, touched)


def add_present(columns: Columns, root: Path, layer: Layer, tile: int | None, maps: MapReader) -> list[Path]:
    """The column ``present``: numbers of the classes in the map of every sample. The files read are returned."""
    values = [row(columns, i) for i in range(len(columns["id"]))]
    found = (
        np.unique(maps.read(v, tile_of(v, tile), layer.files(root, v)[0][0], layer.header(root, v))) for v in values
    )
    columns["present"] = [present[present != IGNORE].tolist() for present in found]
    return [maps.path(v) for v in values]


def add_keys(columns: Columns, form: str, tiled: bool) -> None:
    """The column ``key``: ``form`` filled in, as a sample key; ValueError where two samples get the same."""
    pattern = Pattern(form)
    fields = {name: columns[known(columns, name)] for name in pattern.fields}
    keys = [slug(pattern.fill(row(fields, i))) for i in range(len(columns["id"]))]
    if "n" in columns:
        keys = [f"{key}_{n:05d}" for key, n in zip(keys, columns["n"], strict=True)]
    if tiled:
        corners = zip(keys, columns["row"], columns["column"], strict=True)
        keys = [f"{key}_r{row:05d}c{column:05d}" for key, row, column in corners]
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise ValueError(f"two samples are called {twice!r}; add fields to dataset.key, now {form}")
    columns["key"] = keys


def add_splits(
    columns: Columns, root: Path, parts: Mapping[str, Any], fields: Mapping[str, str], entry: str, column: Any, key: str
) -> tuple[Columns, list[Path]]:
    """The rows that are in a split, which is the column ``assigned``; and the list files read.

    A row that two parts claim is there twice, and refused when the dataset is made.
    """
    lists = {name: root / part for name, part in parts.items() if isinstance(part, str)}
    ids = set(columns["id"])
    parts = {name: listed(lists[name], entry, column, key, ids) if name in lists else p for name, p in parts.items()}
    for name in fields.values():
        known(columns, name)
    found = divide(columns, parts, {**fields, **dict.fromkeys(lists, "id")})
    splits = [name for name, rows in found.items() for _ in rows]
    return take(columns, [i for rows in found.values() for i in rows]) | {"assigned": splits}, list(lists.values())


def known(columns: Columns, name: str) -> str:
    """``name``; ValueError where there is no such column."""
    if name not in columns:
        raise ValueError(f"there is no field {name!r}; known: {', '.join(columns)}")
    return name


def row(columns: Columns, i: int) -> dict[str, Any]:
    """Row ``i``."""
    return {name: column[i] for name, column in columns.items()}
