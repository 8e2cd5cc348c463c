"""JSON files beside the samples, one for each: some of what they say becomes columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.datasets.listing import Columns, Pattern
from eval.datasets.stores import require


def add_entries(columns: Columns, root: Path, wanted: Mapping[str, Sequence[str]]) -> list[Path]:
    """More columns: of the file with each path of ``wanted``, with {field} as everywhere, the entries named there.

    The files read are returned; ValueError names one that is missing or damaged.
    """
    read: list[Path] = []
    for form, names in wanted.items():
        pattern = Pattern(form)
        fields = {name: columns[name] for name in pattern.fields}
        paths = [root / pattern.fill({name: fields[name][i] for name in fields}) for i in range(len(columns["id"]))]
        told = [entries(path, names) for path in paths]
        columns |= {name: [values[i] for values in told] for i, name in enumerate(names)}
        read += paths
    return read


def entries(path: Path, names: Sequence[str]) -> list[Any]:
    """The entries called ``names`` of a JSON file."""
    require(path)
    try:
        told = json.loads(path.read_text())
        return [told[name] for name in names]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or has no such entry ({error}); get the file again") from error
