"""A self-contained HTML page of one or several runs and their evaluation. Same input, same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dinov2.files import write_atomic
from eval.leaderboard import Groups, columns, leaderboard
from eval.pictures import Curve, Gallery, chart
from eval.results import Line, Row, summarise, verdicts, written
from eval.scoring import LOWER

TEMPLATES = Path(__file__).parent / "templates"
PER_CLASS = {  # kind -> what the table of classes shows: key, title
    "classification": ("f1", "F1"),
    "segmentation": ("iou", "IoU"),
    "multilabel": ("average_precision", "Average precision"),
}
SPEED = {"lr", "grad_norm", "images_per_s", "data_wait", "memory_mib"}
SECTIONS = (  # title, which scalars of metrics.jsonl
    (
        "Loss and learning curves",
        lambda key: key.startswith(("eval/", "probe/")) or ("/" not in key and key not in SPEED),
    ),
    ("Health of the embedding", lambda key: key.startswith("health/")),
    ("Optimisation and speed", lambda key: key.partition("/")[0] in SPEED),
)


def write_report(
    path: Path,
    rows: Sequence[Row],
    runs: Sequence[Path] = (),
    gallery: Gallery | None = None,
    maps: Mapping[str, Gallery] | None = None,
    groups: Groups | None = None,
) -> Path:
    """Write the page of ``rows`` (their order is the tables') and of the run folders' curves.

    ``gallery``: patch features; ``maps``: predictions by evaluation; ``groups``: named averages over evaluations.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "breakable": lambda text: re.sub(r"(?<=[:/_-])", "\u200b", text),  # narrow columns
        "plain": lambda x: "none" if x is None else ", ".join(map(str, x)) if isinstance(x, list) else x,
        "percent": lambda x: "–" if x is None or np.isnan(x) else f"{100 * x:.1f}",
    }
    standings, verdict = leaderboard(rows, groups), verdicts(rows)
    averages, configs = columns(standings)
    page = environment.get_template("report.html").render(
        title=", ".join(run.name for run in runs) or "Evaluation",
        verdicts=verdict,
        lost={(v.model, v.config) for v in verdict if not v.wins},
        standings=standings,
        averages=averages,
        configs=configs,
        best={c: max((s.lines[c] for s in standings if c in s.lines), key=lambda x: x.merit).model for c in configs},
        benchmarks=[benchmark(c, rows) for c in dict.fromkeys(row["config"] for row in rows)],
        costs=costs(rows),
        families=families(rows),
        charts=charts(runs),
        runs=[facts(run) for run in runs],
        gallery=gallery,
        maps=maps or {},
    )
    write_atomic(path, page)
    return path


def benchmark(config: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What the page shows of one evaluation config."""
    rows = [row for row in rows if row["config"] == config]
    lines, first, answer = summarise(rows), rows[0], constant_answer(rows)
    error = first["metric"] in LOWER
    return {
        "config": config,
        "lines": lines,
        "first": first,
        "constant": answer,
        "constant_words": written(first["metric"], answer, first["unit"]) if answer is not None else "",
        "full": 1.05 * max([x.high for x in lines] + [answer or 0]) if error else 1.0,  # the value of a whole bar
        "score": PER_CLASS.get(first["kind"]),
        "classes": per_class(rows, lines),
        "confusion": confusion(rows, lines) if first["confusion"] else None,
        "details": {line.model: next(r for r in rows if r["model"] == line.model) for line in lines},
    }


def constant_answer(rows: Sequence[Row]) -> float | None:
    """What the best answer that is the same everywhere scores on the test images; None where no row tells.

    The largest class; as a mean IoU that class' share over the number of classes that occur; of labels the mean of
    their shares; of values their mean, whose error is their standard deviation RMSE / sqrt(1 - R2).
    """
    row = rows[0]
    if row["kind"] == "regression":
        known = [r["metrics"] for r in rows if r["metrics"]["r2"] is not None and r["metrics"]["r2"] < 1]
        return known[0]["rmse"] / (1 - known[0]["r2"]) ** 0.5 if known else None
    support = np.array(row["per_class"]["support"], float)
    if row["kind"] == "multilabel":
        return float(support[support > 0].mean() / row["n"])
    share = float(support.max() / support.sum())
    return share / int((support > 0).sum()) if row["kind"] == "segmentation" else share


def per_class(rows: Sequence[Row], lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Per class: name, test images (of maps: pixels) and every model's score (mean over seeds)."""
    if rows[0]["kind"] not in PER_CLASS:
        return []
    key = PER_CLASS[rows[0]["kind"]][0]
    found = {
        x.model: np.mean([np.array(r["per_class"][key], float) for r in rows if r["model"] == x.model], axis=0)
        for x in lines
    }
    return [
        {"name": name, "support": int(support), "scores": [float(found[x.model][i]) for x in lines]}
        for i, (name, support) in enumerate(zip(rows[0]["classes"], rows[0]["per_class"]["support"], strict=True))
    ]


def confusion(rows: Sequence[Row], lines: Sequence[Line]) -> dict[str, Any]:
    """Counts of the best pretrained model (of the best model where none is pretrained), summed over seeds."""
    best = next((line for line in lines if line.role == "pretrained"), lines[0])
    counts = np.sum([r["confusion"] for r in rows if r["model"] == best.model], axis=0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [list(zip(c, s, strict=True)) for c, s in zip(counts.tolist(), shares.tolist(), strict=True)]
    return {"model": best.model, "rows": list(zip(rows[0]["classes"], cells, strict=True))}


def costs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By model: parameters, least and most operations per image over the evaluations, seconds and number of cells."""
    out = []
    for model in dict.fromkeys(row["model"] for row in rows):
        its = [row for row in rows if row["model"] == model]
        flops = [row["cost"]["flops"] for row in its if "cost" in row]
        parameters = max((row["cost"]["parameters"] for row in its if "cost" in row), default=None)
        spent = {"seconds": sum(row["seconds"] for row in its), "cells": len(its)}
        out.append(
            {"model": model, "parameters": parameters, "flops": (min(flops), max(flops)) if flops else None} | spent
        )
    return out


def families(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Of evaluations with several amounts of labels (title, SVG address): scores over the number of training images."""
    pictures = []
    for family in dict.fromkeys(row["family"] for row in rows if row.get("family")):
        its = [row for row in rows if row.get("family") == family]
        images = {row["config"]: row["n_train"] for row in its}
        factor = 1.0 if its[0]["metric"] in LOWER else 100.0  # fractions as percent
        points: dict[str, list[tuple[float, ...]]] = {}
        for line in sorted(summarise(its), key=lambda line: images[line.config]):
            scores = (factor * x for x in (line.value, line.low, line.high))
            points.setdefault(line.model, []).append((images[line.config], *scores))
        columns = {model: tuple(zip(*found, strict=True)) for model, found in sorted(points.items())}
        curves, shades = ({m: (c[i], c[i + 1]) for m, c in columns.items()} for i in (0, 2))
        title = f"{family}: {its[0]['metric']}, {its[0]['unit'] if factor == 1 else '%'}"
        pictures.append((title, chart(curves, title, "training images", shades)))
    return pictures


def read_metrics(run: Path) -> dict[str, Curve]:
    """Every scalar of ``metrics.jsonl`` as (steps, values)."""
    path = run / "metrics.jsonl"
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        record = json.loads(line)
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float):
                steps, values = curves.setdefault(key, ([], []))
                steps.append(record["step"])
                values.append(value)
    return curves  # type: ignore[return-value]


def charts(runs: Sequence[Path]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of (name, SVG address); the loss itself comes first."""
    by_run = {run.name: read_metrics(run) for run in runs}
    keys = sorted({key for curves in by_run.values() for key in curves}, key=lambda key: (key != "loss", key))
    sections = []
    for title, belongs in SECTIONS:
        pictures = []
        for key in filter(belongs, keys):
            name = key.partition("/")[2] if key.startswith(("eval/", "health/")) else key
            pictures.append((name, chart({run: c[key] for run, c in by_run.items() if key in c}, name)))
        if pictures:
            sections.append((title, pictures))
    return sections


def facts(run: Path) -> dict[str, Any]:
    """Name, the configuration in the order of the file, and the environment of a run."""
    config, environment = run / "config.yaml", run / "environment.txt"
    sections = yaml.safe_load(config.read_text()) if config.is_file() else {}
    return {
        "name": run.name,
        "config": {k: v for k, v in sections.items() if isinstance(v, dict)},
        "environment": environment.read_text() if environment.is_file() else "",
    }
