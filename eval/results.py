"""Result rows: the files they live in, the tables they make, and whether a model beats its floors."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from dinov2.files import write_atomic
from eval.scoring import LOWER


class Row(TypedDict):
    """One cell: model x dataset x task x seed. Scores are fractions but for errors, which are in the target's unit;
    ``ci_*`` is the 95 % interval over test images.
    """

    model: str
    role: str  # pretrained | floor | baseline (trained from scratch)
    dataset: str
    kind: str  # classification | multilabel | segmentation | regression
    unit: str  # of the values of a regression
    task: str
    metric: str  # accuracy | map | miou | rmse
    value: float
    ci_low: float
    ci_high: float
    n: int  # test images
    seed: int
    config: str
    config_hash: str
    training_hash: NotRequired[str]  # of rows of decoders: the config without its test images
    split_hash: str
    data_hash: str
    model_hash: str
    normalisation: str  # checkpoint | dataset | published, in words; how released encoders scale
    bands: list[str]  # sensor/band of every channel the model received, "zeros" for one that the dataset lacks
    missing: list[str]  # sensor/band that the model expects and the dataset lacks
    received: list[dict[str, Any]]  # band by band: source, expected, channel id, unit, mean and std of the input
    input_size: int  # pixels
    sizing: str  # what became of the images' size, in words
    chosen: dict[str, Any]  # by validation: pooling, learning rate, epoch
    curve: dict[str, Any]  # of validation, over the epochs of a decoder
    labels_hash: NotRequired[str]  # of the training samples, where they are a part of the split
    family: NotRequired[str]  # the name that evaluations with several amounts of labels share
    n_train: int
    n_val: int
    ignored: int  # samples without a label
    metrics: dict[str, float]
    classes: list[str]
    per_class: dict[str, list[float]]
    confusion: list[list[int]]  # row = true class; empty where a prediction is not one class
    cost: NotRequired[dict[str, int]]  # parameters of the encoder, flops of embedding one image (of one date)
    seconds: float


SHORT = ("model", "role", "dataset", "kind", "task", "metric", "unit", "value", "ci_low", "ci_high", "n", "seed",
         "config", "config_hash", "split_hash", "labels_hash", "n_train", "normalisation", "bands", "missing",
         "input_size", "sizing", "seconds")  # fmt: skip


def to_json(value: Any) -> str:
    """One line of JSON; NaN (a class without truth) becomes null."""
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class CellFile:
    """Where one cell's row, or the traceback of its failure, is kept: ``<home>/<config>/seed-<n>.json``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.path = folder / f"seed-{seed}.json"
        self.error = folder / f"seed-{seed}.error.txt"
        self.trained = folder / f"seed-{seed}.safetensors"

    def read(self) -> Row:
        """The stored row."""
        return json.loads(self.path.read_text())

    def done(self, identity: dict[str, str]) -> Row | None:
        """The stored row if it was made from the same config, data, split and model; it outlives a later failure."""
        if not self.path.is_file():
            return None
        row = self.read()
        if any(row.get(k) != v for k, v in identity.items()):
            return None
        self.error.unlink(missing_ok=True)
        return row

    def write(self, row: Row) -> None:
        """Keep a row; an earlier failure is forgotten. ``results.csv`` beside it lists all seeds of the same config."""
        write_atomic(self.path, to_json(row) + "\n")
        self.error.unlink(missing_ok=True)
        stored = [json.loads(p.read_text()) for p in sorted(self.folder.glob("seed-*.json"))]
        rows = [r for r in stored if all(r.get(k) == row.get(k) for k in ("config_hash", "split_hash", "data_hash"))]
        lines = [
            {"metric": k, "value": v, "seed": r["seed"], "n": r["n"]}
            | ({"ci_low": r["ci_low"], "ci_high": r["ci_high"]} if k == r["metric"] else {})
            for r in rows
            for k, v in r["metrics"].items()
        ]
        write_csv(self.folder / "results.csv", lines, ("metric", "value", "ci_low", "ci_high", "n", "seed"))

    def fail(self, trace: str) -> None:
        """Keep a traceback."""
        write_atomic(self.error, trace)


def write_csv(path: Path, rows: Iterable[dict[str, Any]] | Sequence[Row], fields: Sequence[str]) -> None:
    """The named fields of every row, lists joined by ``;``; what a row lacks stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: ";".join(v) if isinstance(v, list) else v for k, v in row.items() if k in fields})
    partial.replace(path)


@dataclass(frozen=True)
class Line:
    """A table line: the seeds of one (model, config) together.

    ``value`` is their mean; the interval is the widest of theirs, so that it holds seed and sampling noise.
    """

    model: str
    role: str
    dataset: str
    task: str
    config: str
    metric: str
    unit: str
    value: float
    low: float
    high: float
    seed_std: float
    n: int
    seeds: int

    @property
    def merit(self) -> float:
        """The value, negative where less is better."""
        return -self.value if self.metric in LOWER else self.value

    def beats(self, other: Line) -> bool:
        """Whether it is better by more than the intervals."""
        return self.high < other.low if self.metric in LOWER else self.low > other.high

    def __str__(self) -> str:
        """``82.1 [79.0, 85.2]``; errors with their unit."""
        return written(self.metric, self.value, self.unit, (self.low, self.high))


def written(metric: str, value: float, unit: str = "", interval: tuple[float, float] | None = None) -> str:
    """A score in percent, an error in its unit; with its interval ``82.1 [79.0, 85.2]``."""
    error = metric in LOWER
    numbers = [f"{x:.4g}" if error else f"{100 * x:.1f}" for x in (value, *(interval or ()))]
    end = f" {unit}" if error and unit else "" if error or interval else " %"
    return numbers[0] + (f" [{numbers[1]}, {numbers[2]}]" if interval else "") + end


def summarise(rows: Sequence[Row]) -> list[Line]:
    """One line per (config, model); within a config the best first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["config"], row["model"]), []).append(row)
    lines = []
    for (config, model), group in groups.items():
        first, values = group[0], [r["value"] for r in group]
        low, high = min(r["ci_low"] for r in group), max(r["ci_high"] for r in group)
        where = (model, first["role"], first["dataset"], first["task"], config, first["metric"], first.get("unit", ""))
        lines.append(Line(*where, float(np.mean(values)), low, high, float(np.std(values)), first["n"], len(group)))
    order = list(dict.fromkeys(row["config"] for row in rows))
    return sorted(lines, key=lambda x: (order.index(x.config), -x.merit, x.model))


@dataclass(frozen=True)
class Verdict:
    """A pretrained model against one floor: does it win by more than the intervals?"""

    model: str
    floor: str
    config: str
    margin: float  # difference of the values, positive where the model is better
    wins: bool
    unit: str = "points"  # of the margin

    def __str__(self) -> str:
        how = "beats" if self.wins else "does NOT beat"
        amount = (
            f"{100 * self.margin:+.1f} points" if self.unit == "points" else f"{self.margin:+.4g} {self.unit}".strip()
        )
        return f"{self.config}: {self.model} {how} {self.floor} by more than the intervals ({amount})"


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every pretrained model against every floor of the same config."""
    lines = summarise(rows)
    return [
        Verdict(m.model, f.model, m.config, m.merit - f.merit, m.beats(f), m.unit if m.metric in LOWER else "points")
        for m in lines
        for f in lines
        if m.role == "pretrained" and f.role == "floor" and m.config == f.config
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown: fractions in percent, errors in their unit, with their 95 % interval."""
    head = "| config | model | role | metric | value [95 % CI] | seed std | n |\n|---|---|---|---|---|---|---|\n"
    body = "".join(
        f"| {x.config} | {x.model} | {x.role} | {x.metric} | {x} | {written(x.metric, x.seed_std, x.unit)} | {x.n} |\n"
        for x in summarise(rows)
    )
    return head + body + "".join(f"\n{verdict}\n" for verdict in verdicts(rows))


def write_tables(rows: Sequence[Row], output: Path) -> None:
    """``results.jsonl`` (everything), ``results.csv`` and ``results.md``."""
    write_atomic(output / "results.jsonl", "".join(to_json(r) + "\n" for r in rows))
    write_csv(output / "results.csv", rows, SHORT)
    write_atomic(output / "results.md", markdown(rows))
