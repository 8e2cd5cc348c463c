"""How the samples of a set are divided into train, val and test: published lists, values of a field, shares."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from eval.datasets.base import SPLITS
from eval.datasets.listing import Columns, Pattern

CUT = ("test", "val")  # may be shares of the training samples, taken in this order


def check_shares(parts: Mapping[str, Any]) -> None:
    """ValueError where ``test`` or ``val`` is neither a list nor a fraction, or fractions leave nothing."""
    shares = {name: parts[name] for name in CUT if name in parts and not isinstance(parts[name], list)}
    if not all(isinstance(x, int | float) and 0 <= x < 1 for x in shares.values()) or sum(shares.values()) >= 1:
        given = " and ".join(f"dataset.{name} {part!r}" for name, part in shares.items())
        raise ValueError(f"{given}: give lists of values, or fractions from 0 with a sum below 1")


def divide(columns: Columns, parts: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, list[int]]:
    """Row numbers of every split; ``parts`` says for each what it is, ``fields`` by which column it is found.

    A part is a list of the column's values, or a fraction of them (``val`` and ``test``: at least one, in the order of
    a hash, out of the training rows); without a ``train``, all rows that no list names are training rows. Rows that
    share a value are never separated by a fraction. Where lists are of different columns, test rows are test rows only;
    a row that two lists of one column name is in both, and the dataset refuses it.
    """
    check_shares(parts)
    count = len(next(iter(columns.values()), []))
    rows: dict[str, list[int]] = {}
    for name in reversed(SPLITS):  # test first
        if isinstance(part := parts.get(name), list):
            chosen = set(map(str, part))
            rows[name] = [i for i, value in enumerate(columns[fields[name]]) if str(value) in chosen]
            if fields[name] != fields["test"]:
                tested = set(rows.get("test", ()))
                rows[name] = [i for i in rows[name] if i not in tested]
    if "train" not in rows:
        named = {i for found in rows.values() for i in found}
        rows["train"] = [i for i in range(count) if i not in named]
    for name in CUT:
        if name in parts and name not in rows:
            rows[name], rows["train"] = cut(rows["train"], columns[fields[name]], parts[name], fields[name])
    return {name: rows[name] for name in SPLITS if name in rows}


def cut(rows: Sequence[int], values: Sequence[Any], share: float, field: str) -> tuple[list[int], list[int]]:
    """(the rows that have one of the values chosen, the others); chosen is the ``share`` of all values of the set."""
    order = sorted({str(values[i]) for i in rows}, key=lambda v: hashlib.sha256(v.encode()).hexdigest())
    chosen = set(order[: max(1, round(share * len(set(values))))] if share else [])
    if order and chosen.issuperset(order):
        raise ValueError(
            f"dataset.split_by: {len(order)} values of {field!r} are too few to divide; name a field with more, "
            "or dataset.split_by=key for single samples"
        )
    return [i for i in rows if str(values[i]) in chosen], [i for i in rows if str(values[i]) not in chosen]


def listed(path: Path, entry: str, column: str | int, key: str, ids: Collection[str]) -> list[str]:
    """The ids that a published list names; ``entry`` is the form of its entries: {id}, or all fields of ``key``.

    txt: an entry per line; json: a list; csv and parquet: ``column`` by title, or by number where a csv has no titles.
    """
    pattern, out = Pattern(entry), []
    for text in entries(path, column):
        values = pattern.parse(text)
        if values is None:
            raise ValueError(f"{path} lists {text!r}, which does not have the form {entry}; correct dataset.entry")
        name = values["id"] if "id" in values else Pattern(key).fill(values)
        if name not in ids:
            raise ValueError(f"{path} lists {text!r}, which is missing from the dataset; get the data again")
        out.append(name)
    return out


def entries(path: Path, column: str | int) -> list[str]:
    """What a list file holds."""
    if path.suffix in (".csv", ".parquet"):
        table = read_table(path, titles=isinstance(column, str))
        if str(column) not in table:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(table)}")
        return [str(value) for value in table[str(column)]]
    if not path.is_file():
        raise ValueError(f"the list of samples {path} is missing; get it again or change the split")
    if path.suffix == ".json":
        return [str(value) for value in parsed(path)]
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_table(path: Path, titles: bool = True) -> Columns:
    """Columns of a csv, parquet, json or geojson file by title, by their numbers if a csv has no titles.

    Json: records in a list, or in lists by name.

    A property that is a mapping, or the text of one, becomes the list of its values in their order.
    """
    if not path.is_file():
        raise ValueError(f"the table {path} is missing; get the data again")
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pydict()
    if path.suffix in (".json", ".geojson"):
        told = parsed(path)
        try:
            features = [feature["properties"] for feature in told["features"]] if path.suffix == ".geojson" else None
            rows_of = records(told) if features is None else features
            return {name: [listed_values(row[name]) for row in rows_of] for name in rows_of[0]}
        except (KeyError, IndexError) as error:
            lacks = f"a record without {error}" if isinstance(error, KeyError) else "no record"
            raise ValueError(f"the table {path} has {lacks}; get it again") from error
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise ValueError(f"the table {path} is empty; get it again")
    names = rows.pop(0) if titles else [str(i) for i in range(len(rows[0]))]
    if short := next((row for row in rows if len(row) < len(names)), None):
        raise ValueError(f"the table {path} has {len(names)} columns, but a row ends after {','.join(short)!r}")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}


def parsed(path: Path) -> Any:
    """What a json file holds; ValueError where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); get it again") from error


def records(told: Any) -> list[Any]:
    """Those in a list, or in lists by name."""
    return [record for group in told.values() for record in group] if isinstance(told, dict) else told


def listed_values(value: Any) -> Any:
    """The values of a mapping (or of its JSON text) as text; anything else as it is."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    return [str(entry) for entry in value.values()] if isinstance(value, dict) else value
