"""Few labels: which training images an evaluation may learn from, and which images validate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dinov2.config import fingerprint
from dinov2.env import expand
from eval.datasets import EvalDataset
from eval.datasets.base import IGNORE
from eval.groups import of_groups
from eval.reading import targets

STRATEGIES = ("random", "stratified", "group", "file")
BINS = 3  # of a class' share in an image, and of an image's mean value


@dataclass
class Labels:
    """Of the training split; the test split stays whole. With one seed the smaller choice is part of the larger."""

    fraction: float = 1.0  # of the training images
    shots: int | None = None  # so many images of each class (strategy group: of each group), in place of a fraction
    strategy: str = "random"  # random | stratified (of images of every kind) | group (of the dataset's groups) | file
    file: str | None = None  # keys of training samples, one a line
    seed: int = 0  # of the choice
    whole: bool = False  # group: the fraction is of whole files of samples, as close to it as these allow
    empty: float | None = None  # group: of images whose mean value is at most so much, a quarter is used; with shots
    val: float | None = None  # group: so many validation images per training image of a group; null = all there are
    curve: list[float] | None = None  # amounts, an evaluation each: shots, or up to 1 fractions; the report draws them
    index: str | None = None  # group: folder where the choice is written when first made, and read from then on


def limited(dataset: EvalDataset, labels: Labels) -> list[int]:
    """Rows of the training split, in its order. ValueError for a choice that is empty, unknown or contradictory."""
    split = dataset.splits["train"]
    if labels.strategy not in STRATEGIES:
        raise ValueError(f"labels.strategy {labels.strategy!r} is not one of {', '.join(STRATEGIES)}")
    if (labels.strategy == "file") != (labels.file is not None):
        raise ValueError("labels.strategy=file and labels.file=FILE go together")
    if not 0 < labels.fraction <= 1 or (labels.shots is not None and (labels.shots < 1 or labels.fraction < 1)):
        raise ValueError("labels: give a fraction above 0 and up to 1, or at least one of shots")
    own = labels.whole or labels.empty is not None or labels.val is not None or labels.index is not None
    if own and labels.strategy != "group":
        raise ValueError("labels.whole, labels.empty, labels.val and labels.index need labels.strategy=group")
    if (labels.whole and labels.shots is not None) or (labels.empty is not None and labels.shots is None):
        raise ValueError("labels.whole is of a fraction, labels.empty of shots")
    if labels.strategy == "group":
        return of_groups(dataset, labels, "train")
    if labels.file is not None:
        return from_file(dataset, Path(expand(labels.file)))
    if labels.shots is not None and dataset.kind != "classification":
        raise ValueError(f"labels.shots counts images of a class; dataset {dataset.name} is for {dataset.kind}")
    alike = [0] * len(split) if labels.shots is None and labels.strategy == "random" else strata(dataset)
    groups: dict[Any, list[int]] = {}
    for row in torch.randperm(len(split), generator=torch.Generator().manual_seed(labels.seed)).tolist():
        groups.setdefault(alike[row], []).append(row)
    few = min(groups, key=lambda like: len(groups[like]))
    if labels.shots is not None and len(groups[few]) < labels.shots:
        raise ValueError(
            f"labels.shots is {labels.shots}; class {dataset.classes[few[0]]!r} of dataset {dataset.name} has "
            f"{len(groups[few])} training images"
        )
    return sorted(
        row for rows in groups.values() for row in rows[: labels.shots or max(1, round(labels.fraction * len(rows)))]
    )


def validated(dataset: EvalDataset, labels: Labels) -> EvalDataset:
    """The dataset with the validation images that are chosen; itself where these are all."""
    if labels.strategy != "group" or labels.val is None:
        return dataset
    part = dataset.splits["val"].part(of_groups(dataset, labels, "val"))
    return replace(dataset, splits={**dataset.splits, "val": part})


def strata(dataset: EvalDataset) -> list[Any]:
    """For every training image what makes it like others: its labels, the classes' shares of it, its mean value."""
    split, classes = dataset.splits["train"], len(dataset.classes)
    found = targets(split, range(len(split)))
    if dataset.kind == "segmentation":
        known = [target[target != IGNORE] for target in found]
        shares = [torch.bincount(x, minlength=classes) / max(len(x), 1) for x in known]
        return [tuple((BINS * share).ceil().int().tolist()) for share in shares]
    if dataset.kind == "regression":
        means = torch.stack([target.float().nanmean() for target in found])
        edges = means[means.isfinite()].quantile(torch.linspace(0, 1, BINS + 1)[1:-1])
        return torch.bucketize(means, edges).tolist()
    return [tuple(target.int().reshape(-1).tolist()) for target in found]


def from_file(dataset: EvalDataset, path: Path) -> list[int]:
    """The rows of the keys in a file."""
    if not path.is_file():
        raise ValueError(f"labels.file {path} does not exist")
    rows = {key: row for row, key in enumerate(dataset.splits["train"].keys)}
    keys = path.read_text().split()
    unknown = next((key for key in keys if key not in rows), None)
    if unknown or not keys:
        what = f"{unknown!r} is no training sample" if unknown else "no key is in it"
        raise ValueError(f"labels.file {path}: {what} of dataset {dataset.name}")
    return sorted({rows[key] for key in keys})


def labels_hash(dataset: EvalDataset, rows: Sequence[int]) -> str:
    """Twelve hex digits of which training samples were learnt from."""
    return fingerprint([dataset.splits["train"].keys[row] for row in rows])
