"""A self-contained HTML page of one or several runs and their evaluation. Same input, same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dinov2.files import write_atomic
from eval.pictures import Curve, Gallery, chart
from eval.results import Line, Row, summarise, verdicts

TEMPLATES = Path(__file__).parent / "templates"
SPEED = {"lr", "grad_norm", "images_per_s", "data_wait", "memory_mib"}
SECTIONS = (  # title, which scalars of metrics.jsonl
    (
        "Loss and learning curves",
        lambda key: key.startswith(("eval/", "probe/")) or ("/" not in key and key not in SPEED),
    ),
    ("Health of the embedding", lambda key: key.startswith("health/")),
    ("Optimisation and speed", lambda key: key.partition("/")[0] in SPEED),
)


def write_report(path: Path, rows: Sequence[Row], runs: Sequence[Path] = (), gallery: Gallery | None = None) -> Path:
    """Write the page of ``rows`` (their order is the tables'), of the run folders' curves and of a patch gallery."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["breakable"] = lambda text: re.sub(r"(?<=[:/_-])", "\u200b", text)  # narrow columns
    environment.filters["plain"] = lambda x: (
        "none" if x is None else ", ".join(map(str, x)) if isinstance(x, list) else x
    )
    environment.filters["percent"] = lambda x: "–" if x is None or np.isnan(x) else f"{100 * x:.1f}"
    page = environment.get_template("report.html").render(
        title=", ".join(run.name for run in runs) or "Floors",
        verdicts=verdicts(rows),
        benchmarks=[benchmark(c, rows) for c in dict.fromkeys(row["config"] for row in rows if row["confusion"])],
        charts=charts(runs),
        runs=[facts(run) for run in runs],
        gallery=gallery,
    )
    write_atomic(path, page)
    return path


def benchmark(config: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What the page shows of one evaluation config."""
    rows = [row for row in rows if row["config"] == config]
    lines = summarise(rows)
    first = rows[0]
    truth = np.sum(first["confusion"], axis=1)  # test images per class
    return {
        "config": config,
        "lines": lines,
        "first": first,
        "majority": truth.max() / truth.sum(),
        "classes": per_class(rows, lines),
        "confusion": confusion(rows, lines),
        "details": {line.model: next(r for r in rows if r["model"] == line.model) for line in lines},
    }


def per_class(rows: Sequence[Row], lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Per class: name, test images and every model's F1 (mean over seeds)."""
    f1 = {
        line.model: np.mean([np.array(r["per_class"]["f1"], float) for r in rows if r["model"] == line.model], axis=0)
        for line in lines
    }
    support = np.sum(rows[0]["confusion"], axis=1)
    return [
        {"name": name, "support": int(support[i]), "f1": [float(f1[line.model][i]) for line in lines]}
        for i, name in enumerate(rows[0]["classes"])
    ]


def confusion(rows: Sequence[Row], lines: Sequence[Line]) -> dict[str, Any]:
    """Counts of the best pretrained model (of the best model where none is pretrained), summed over seeds."""
    best = next((line for line in lines if line.role == "pretrained"), lines[0])
    counts = np.sum([r["confusion"] for r in rows if r["model"] == best.model], axis=0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [list(zip(c, s, strict=True)) for c, s in zip(counts.tolist(), shares.tolist(), strict=True)]
    return {"model": best.model, "rows": list(zip(rows[0]["classes"], cells, strict=True))}


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
