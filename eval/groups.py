"""Few labels of every place: n images of each group that a dataset names, or a share of its files, kept in index files.

The n-shot and p-split protocols of PhilEO Bench (Fibaek et al. 2024, arXiv 2401.04464), without their padding by empty
images and with a choice that a seed repeats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dinov2.env import expand
from dinov2.files import write_atomic
from eval.datasets import EvalDataset, Split
from eval.reading import targets

if TYPE_CHECKING:
    from eval.labels import Labels

EMPTY_SHARE = 0.25  # of the images that count as empty, so many are used


def of_groups(dataset: EvalDataset, labels: Labels, name: str) -> list[int]:
    """Rows of the split ``name`` (train or val), in its order: those in the index file, or a choice by the seed."""
    split = dataset.splits[name]
    if labels.index is None:
        return drawn(dataset, labels, name)
    keys = index(dataset, labels)[name]
    rows = {key: row for row, key in enumerate(split.keys)}
    unknown = next((key for key in keys if key not in rows), None)
    if unknown is not None:
        raise ValueError(f"{index_file(dataset, labels)} names {unknown!r}, no {name} sample of dataset {dataset.name}")
    return sorted(rows[key] for key in keys)


def drawn(dataset: EvalDataset, labels: Labels, name: str) -> list[int]:
    """The choice that the seed makes."""
    if name == "val" and labels.val is None:
        return list(range(len(dataset.splits["val"])))
    split, generator = dataset.splits[name], torch.Generator().manual_seed(labels.seed)
    order = torch.randperm(len(split), generator=generator).tolist()
    spared = (torch.rand(len(split), generator=generator) < EMPTY_SHARE).tolist()
    counts: Mapping[str, int] = {}
    if name == "val":
        train = dataset.splits["train"]
        learnt = grouped(dataset, train, drawn(dataset, labels, "train"))
        counts = {group: ceil((labels.val or 0) * len(rows)) for group, rows in learnt.items()}
    elif labels.shots is not None:
        counts = dict.fromkeys(dataset.groups, labels.shots)
    chosen: list[int] = []
    groups = grouped(dataset, split, order)
    groups |= {group: [] for group in counts if group not in groups}  # too few, as any other
    for group, rows in groups.items():
        if name == "train" and labels.shots is None:
            chosen += files(split, rows, labels.fraction) if labels.whole else share(rows, labels.fraction)
            continue
        usable = (row for row in rows if labels.empty is None or spared[row] or mean(split, row) > labels.empty)
        found = list(islice(usable, count := counts.get(group, 0)))
        if len(found) < count:
            raise ValueError(
                f"group {group!r} of dataset {dataset.name} has {len(found)} usable {name} images, {count} are wanted: "
                "lower labels.shots or labels.val"
            )
        chosen += found
    return sorted(chosen)


def grouped(dataset: EvalDataset, split: Split, order: Sequence[int]) -> dict[str, list[int]]:
    """Rows by group, in this order; ValueError for a sample that is in none."""
    if not dataset.groups:
        raise ValueError(f"labels.strategy=group: dataset {dataset.name} names no groups of its samples")
    out: dict[str, list[int]] = {}
    for row in order:
        key = split.keys[row]
        group = next((g for g, starts in dataset.groups.items() if key.startswith(tuple(starts))), None)
        if group is None:
            raise ValueError(f"sample {key!r} of dataset {dataset.name} is in none of its groups")
        out.setdefault(group, []).append(row)
    return out


def share(rows: Sequence[int], fraction: float) -> list[int]:
    """The first of the rows, at least one."""
    return list(rows[: max(1, round(fraction * len(rows)))])


def files(split: Split, rows: Sequence[int], fraction: float) -> list[int]:
    """Rows of whole files, in the order of the first of each, as close to the fraction as they allow; at least one.

    Keys of a file's samples differ in the number after the last "_".
    """
    stacks: dict[str, list[int]] = {}
    for row in rows:
        stacks.setdefault(split.keys[row].rpartition("_")[0], []).append(row)
    ends = list(accumulate(map(len, stacks.values())))
    count = min(range(len(ends)), key=lambda i: abs(ends[i] - fraction * len(rows))) + 1
    return [row for stack in list(stacks.values())[:count] for row in stack]


def mean(split: Split, row: int) -> float:
    """The mean value of an image."""
    (target,) = targets(split, [row])
    return float(target.float().nanmean())


def index_file(dataset: EvalDataset, labels: Labels) -> Path:
    """Where a choice is kept."""
    amount = f"{labels.shots}-shot" if labels.shots else f"{100 * labels.fraction:g}-percent"
    return Path(expand(labels.index or "")) / f"{dataset.name}_{amount}_seed-{labels.seed}.json"


def index(dataset: EvalDataset, labels: Labels) -> dict[str, Any]:
    """Keys of the chosen samples by split; made and written on the first call. ValueError for a file that was changed,
    or made with other options.
    """
    path, asked = index_file(dataset, labels), asdict(labels) | {"index": None}
    if not path.is_file():
        keys = {n: [dataset.splits[n].keys[row] for row in drawn(dataset, labels, n)] for n in ("train", "val")}
        content = {"dataset": dataset.name, "labels": asked, **keys}
        write_atomic(path, json.dumps({**content, "sha256": digest(content)}, indent=1) + "\n")
    content = json.loads(path.read_text())
    if content.pop("sha256", None) != digest(content):
        raise ValueError(f"{path} was changed after it was made: restore it, or remove it to choose anew")
    if content["labels"] != asked:
        other = next(name for name in asked if content["labels"].get(name) != asked[name])
        raise ValueError(
            f"{path} was made with labels.{other}={content['labels'].get(other)}, not {asked[other]}: name another "
            "folder as labels.index"
        )
    return content


def digest(content: Mapping[str, Any]) -> str:
    """sha256 of what an index file holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
