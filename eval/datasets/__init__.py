"""Evaluation datasets: samples with a label or a map, divided into train, val and test once and for all.

A dataset is a file configs/datasets/NAME.yaml: its ``reader`` is one of ``READERS``, its ``card`` is for people
(docs/datasets.md), all else are the reader's options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dinov2 import config
from dinov2.sensors import suggest
from eval.datasets.base import SPLITS, EvalDataset, Split
from eval.datasets.files import files
from eval.datasets.geobench import geobench
from eval.datasets.open_canopy import squares
from eval.datasets.phileo import phileo
from eval.datasets.shards import shards

__all__ = ["CONFIGS", "DATASETS", "READERS", "SPLITS", "EvalDataset", "Split", "build_dataset", "defaults", "describe"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "datasets"
READERS: Mapping[str, Callable[..., EvalDataset]] = {
    "files": files,
    "geobench": geobench,
    "phileo": phileo,
    "shards": shards,
    "squares": squares,
}


class Catalogue(Mapping[str, Callable[..., EvalDataset]]):
    """The reader of every dataset: of those in configs/datasets, and of one that a config describes in full."""

    def __getitem__(self, name: str) -> Callable[..., EvalDataset]:
        return READERS[name] if name in READERS else READERS[describe(name)["reader"]]

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter([*READERS, *sorted(path.stem for path in CONFIGS.glob("*.yaml"))])

    def __len__(self) -> int:
        return sum(1 for _ in self)


DATASETS = Catalogue()


def describe(name: str) -> dict[str, Any]:
    """What configs/datasets/NAME.yaml holds; ValueError where its reader is unknown."""
    described = config.plain(config.read_yaml(CONFIGS / f"{name}.yaml"))
    if described.get("reader") not in READERS:
        raise ValueError(
            f"{CONFIGS / name}.yaml: reader {described.get('reader')!r} is unknown; known: {', '.join(READERS)}"
        )
    return described


def defaults(name: str) -> dict[str, Any]:
    """The options that a dataset's file gives to its reader (none for a reader's own name)."""
    if name not in DATASETS or name in READERS:
        return {}
    return {"title": name} | {key: value for key, value in describe(name).items() if key not in ("reader", "card")}


def build_dataset(cfg: Mapping[str, Any]) -> EvalDataset:
    """The dataset that ``{name: ..., option: ...}`` describes; unknown names and options raise."""
    given = dict(config.plain(cfg))
    name = given.pop("name", None)
    if name not in DATASETS:
        raise ValueError(
            f"dataset.name {name!r} is unknown{suggest(str(name), list(DATASETS))} Known: {', '.join(DATASETS)}"
        )
    schema = config.signature_schema("Dataset", DATASETS[name])
    merged = config.merge(schema, defaults(name), given, origin=f"dataset {name}")
    return DATASETS[name](**vars(OmegaConf.to_object(merged)))
