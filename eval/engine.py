"""The grid of models x evaluations x seeds: planned, run cell by cell, collected from files."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dinov2 import distributed
from eval import metrics, schema
from eval.datasets import EvalDataset, build_dataset
from eval.encoders import Model, home_of, load_model, name_of, seeded
from eval.features import FeatureCache
from eval.joining import ZEROS
from eval.probe import ProbeData
from eval.results import CellFile, Row, write_tables


@dataclass(frozen=True)
class Cell:
    """One model on one evaluation with one seed, and the file that will hold its row."""

    model: str
    evaluation: schema.Evaluation
    seed: int
    file: CellFile

    @property
    def group(self) -> str:
        """Cells of one group share features, so one rank does them all."""
        return f"{self.model} {sorted(self.evaluation.dataset.items())}"

    def __str__(self) -> str:
        return f"{self.evaluation.name}, {name_of(self.model)}, seed {self.seed}"


@dataclass
class Bench:
    """Models, datasets and features that the cells of one call share."""

    device: torch.device
    features: FeatureCache = field(default_factory=FeatureCache)
    datasets: dict[str, EvalDataset] = field(default_factory=dict)
    loaded: tuple[tuple[str, int], Model] | None = None  # the latest model only: cells come sorted by it

    def dataset(self, options: Mapping[str, Any]) -> EvalDataset:
        """Opened on first use."""
        key = repr(sorted(options.items()))
        if key not in self.datasets:
            self.datasets[key] = build_dataset(options)
        return self.datasets[key]

    def model(self, obj: str, seed: int) -> Model:
        """Loaded on first use; only a random model depends on the seed."""
        key = (obj, seed if seeded(obj) else 0)
        if self.loaded is None or self.loaded[0] != key:
            self.loaded = key, load_model(obj, self.device, seed)
        return self.loaded[1]


def run_cell(cell: Cell, bench: Bench) -> Row:
    """The cell's row: the stored one if nothing that decides it has changed, else a new one."""
    evaluation, dataset = cell.evaluation, bench.dataset(cell.evaluation.dataset)
    model = bench.model(cell.model, cell.seed)
    identity = {
        "config_hash": evaluation.config_hash,
        "data_hash": dataset.data_hash,
        "split_hash": dataset.split_hash,
        "model_hash": model.digest,
    }
    done = cell.file.done(identity)
    if done is not None:
        return done
    start = time.perf_counter()
    features = bench.features.get(model, dataset, bench.device, evaluation.missing, **evaluation.running)
    labels = {name: split.labels.to(bench.device) for name, split in dataset.splits.items()}
    classes = len(dataset.classes)
    data = ProbeData(**features.pooled, train_labels=labels["train"], val_labels=labels["val"], classes=classes)
    task = dict(evaluation.task)
    outcome = schema.TASKS[task.pop("name")](data, cell.seed, **task)
    scores = metrics.score(outcome.predicted, labels["test"], classes, resamples=evaluation.resamples, seed=cell.seed)
    row = Row(
        model=model.name,
        role=model.role,
        dataset=dataset.name,
        task=evaluation.task["name"],
        seed=cell.seed,
        config=evaluation.name,
        normalisation=features.normalisation,
        bands=[r["band"] for r in features.received],
        missing=[r["expected"] for r in features.received if r["band"] == ZEROS],
        received=features.received,
        input_size=features.size,
        chosen=outcome.chosen,
        n_train=len(labels["train"]),
        n_val=len(labels["val"]),
        ignored=dataset.ignored,
        classes=list(dataset.classes),
        seconds=round(time.perf_counter() - start, 2),
        **identity,  # type: ignore[typeddict-item]
        **scores,
    )
    cell.file.write(row)
    return row


def plan(models: Sequence[str], evaluations: Sequence[schema.Evaluation], output: Path | None) -> list[Cell]:
    """All cells, those that share features side by side. Without ``output`` rows lie in the models' run folders."""
    names = [name_of(obj) for obj in models]
    for what, called in (("models", names), ("configs", [e.name for e in evaluations])):
        twice = sorted({n for n in called if called.count(n) > 1})
        if twice:
            raise ValueError(f"two {what} are called {', '.join(twice)}: evaluate them in separate calls")
    shared = output or default_output(models)
    cells = []
    for obj, name in zip(models, names, strict=True):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        home = (None if output else home_of(obj)) or shared / slug
        for seed in dict.fromkeys(s for e in evaluations for s in e.seeds):
            for e in sorted(evaluations, key=lambda e: repr(sorted(e.dataset.items()))):
                if seed in e.seeds:
                    cells.append(Cell(obj, e, seed, CellFile(home / e.name, seed)))
    return cells


def default_output(models: Sequence[str]) -> Path:
    """The evaluation folder of the first run among the models."""
    homes = [home for home in map(home_of, models) if home]
    if not homes:
        raise ValueError("there is no run folder among the models: name a folder with --output-dir")
    return homes[0]


def run(cells: Sequence[Cell], bench: Bench, part: tuple[int, int] = (0, 1)) -> None:
    """Do this part's cells: group i goes to part i mod n. A failure is recorded and the rest goes on."""
    groups = list(dict.fromkeys(cell.group for cell in cells))
    mine = [c for c in cells if groups.index(c.group) % part[1] == part[0]]
    for i, cell in enumerate(mine, 1):
        try:
            row = run_cell(cell, bench)
            print(f"[{i}/{len(mine)}] {cell}: {100 * row['value']:.1f} % ({row['seconds']:.1f} s)", flush=True)
        except Exception as error:  # whatever it was, it is kept with its traceback and turns the exit code
            cell.file.fail(traceback.format_exc())
            print(f"[{i}/{len(mine)}] {cell}: FAILED: {error} (traceback in {cell.file.error})", flush=True)


def collect(cells: Sequence[Cell]) -> tuple[list[Row], list[str]]:
    """Rows of the cells that are done, and one line per cell that failed."""
    failed = [f"{c}: {c.file.error.read_text().strip().splitlines()[-1]}" for c in cells if c.file.error.is_file()]
    return [c.file.read() for c in cells if not c.file.error.is_file()], failed


def evaluate(
    models: Sequence[str],
    configs: Sequence[str | Path | Mapping[str, Any]],
    output: Path | None = None,
    overrides: Sequence[str] = (),
) -> list[Row]:
    """All models on all configs (files, folders or mappings), in this process; raises RuntimeError if a cell failed.

    Tables go to ``output`` (None: into the first run); ``overrides`` are ``key=value`` for every config.
    """
    sources = [s for c in configs for s in ([c] if isinstance(c, Mapping) else schema.expand_configs(str(c)))]
    cells = plan(models, [schema.load(s, overrides) for s in sources], output)
    run(cells, Bench(distributed.device()))
    rows, failed = collect(cells)
    write_tables(rows, output or default_output(models))
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cells)} evaluation cells failed; first: {failed[0]}")
    return rows
