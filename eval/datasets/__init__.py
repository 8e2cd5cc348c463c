"""Evaluation datasets: samples with a label, divided into train, val and test once and for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dinov2 import config
from eval.datasets.base import SPLITS, EvalDataset, Split
from eval.datasets.shards import shards

__all__ = ["DATASETS", "SPLITS", "EvalDataset", "Split", "build_dataset"]

DATASETS: Mapping[str, Callable[..., EvalDataset]] = {"shards": shards}


def build_dataset(cfg: Mapping[str, Any]) -> EvalDataset:
    """The dataset that ``{name: ..., option: ...}`` describes; unknown names and options raise."""
    given = dict(config.plain(cfg))
    name = given.pop("name", None)
    if name not in DATASETS:
        raise ValueError(f"dataset.name {name!r} is unknown; known: {', '.join(DATASETS)}")
    schema = config.signature_schema("Dataset", DATASETS[name])
    return DATASETS[name](**config.plain(config.merge(schema, given, origin=f"dataset {name}")))
