"""The grid of models x evaluations x seeds: planned, run cell by cell, collected from files."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dinov2 import distributed
from eval import schema
from eval.datasets import EvalDataset, build_dataset
from eval.encoders import fresh, home_of, load_model, name_of, seeded
from eval.features import Trial, extract
from eval.joining import ZEROS, received_table
from eval.labels import Labels, labels_hash, limited
from eval.networks import Model
from eval.probe import ProbeData
from eval.results import CellFile, Row, write_tables, written
from eval.scoring import Outcome, score, states_of
from eval.tasks.decoder import Options, decoder
from eval.tasks.encoding import Store
from eval.trained import Trained, load_trained


@dataclass(frozen=True)
class Cell:
    """One model on one evaluation with one seed, and the file that will hold its row."""

    model: str
    evaluation: schema.Evaluation
    seed: int
    file: CellFile

    @property
    def source(self) -> str:
        """The entry whose weights the encoder starts from."""
        return fresh(self.model) if self.evaluation.task.get("train") == "scratch" else self.model

    @property
    def group(self) -> str:
        """Cells of one group are done by one rank: probes share features, a decoder takes its time by itself."""
        alone = f" {self.evaluation.name} {self.seed}" if self.evaluation.task["name"] == "decoder" else ""
        return f"{self.model} {sorted(self.evaluation.dataset.items())}{alone}"

    def __str__(self) -> str:
        return f"{self.evaluation.name}, {name_of(self.model)}, seed {self.seed}"


@dataclass
class Bench:
    """Models, datasets and features that the cells of one call share."""

    device: torch.device
    show: bool = False  # print what every model receives, before it is evaluated
    datasets: dict[str, EvalDataset] = field(default_factory=dict)
    loaded: tuple[tuple[str, int], Model] | None = None  # the latest model only: cells come sorted by it
    trials: dict[tuple[str, ...], Trial] = field(default_factory=dict)  # of the latest model, too
    features: dict[tuple[str, ...], dict[str, dict[str, Tensor]]] = field(default_factory=dict)
    store: Store = field(default_factory=Store)

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

    def trial(self, model: Model, dataset: EvalDataset, evaluation: schema.Evaluation) -> Trial:
        """The model on the dataset, joined and checked on first use."""
        sizing, running = evaluation.model["size"], evaluation.running
        key = (model.digest, repr(sorted(evaluation.dataset.items())), evaluation.missing, str(sizing))
        if key not in self.trials:
            self.trials = {k: v for k, v in self.trials.items() if k[0] == model.digest}
            self.trials[key] = Trial.of(
                model,
                dataset,
                self.device,
                missing=evaluation.missing,
                sizing=sizing,
                batch_size=running["batch_size"],
                workers=running["workers"],
                key=key,
            )
            if self.show:
                joined = self.trials[key].joined
                print(f"{model.name} on {dataset.name}: {joined.sizing}; {joined.words}; it receives")
                Console(highlight=False).print(received_table(self.trials[key].received))
        return self.trials[key]

    def pooled(self, trial: Trial) -> dict[str, dict[str, Tensor]]:
        """The features of all splits, made on first use: datasets that differ in their targets alone share them."""
        key = (trial.key[0], trial.dataset.view_hash, *trial.key[2:])
        if key not in self.features:
            self.features = {k: v for k, v in self.features.items() if k[0] == key[0]}
            self.features[key] = extract(trial)
        return self.features[key]


def run_cell(cell: Cell, bench: Bench) -> Row:
    """The cell's row: the stored one if nothing that decides it has changed, else a new one."""
    evaluation, dataset = cell.evaluation, bench.dataset(cell.evaluation.dataset)
    model = bench.model(cell.source, cell.seed)
    rows = limited(dataset, Labels(**evaluation.labels))
    identity = {
        "config_hash": evaluation.config_hash,
        "data_hash": dataset.data_hash,
        "split_hash": dataset.split_hash,
        "model_hash": model.digest,
    }
    if len(rows) < len(dataset.splits["train"]):
        identity["labels_hash"] = labels_hash(dataset, rows)
    done = cell.file.done(identity)
    if done is not None:
        return done
    start = time.perf_counter()
    trial = bench.trial(model, dataset, evaluation)
    outcome = learn(cell, bench, trial, rows)
    scores = scored(cell, dataset, outcome.logits)
    if outcome.trained:
        whole = outcome.trained[0] is not model  # it has learnt, or was made for this data
        Trained.of(trial, *outcome.trained, whole, (cell.source, cell.seed)).save(cell.file.trained, **identity)
    row = Row(
        model=name_of(cell.model),
        role="baseline" if cell.source != cell.model else model.role,
        dataset=dataset.name,
        kind=dataset.kind,
        unit=dataset.unit,
        task=evaluation.task["name"],
        seed=cell.seed,
        config=evaluation.name,
        normalisation=trial.joined.words,
        bands=[r["band"] for r in trial.received],
        missing=[r["expected"] for r in trial.received if r["band"] == ZEROS],
        received=trial.received,
        input_size=trial.example["imgs"].shape[-1],
        sizing=trial.joined.sizing,
        chosen=outcome.chosen,
        curve=outcome.curve,
        n_train=len(rows),
        n_val=len(dataset.splits["val"]),
        ignored=dataset.ignored,
        classes=list(dataset.classes),
        seconds=round(time.perf_counter() - start, 2),
        **identity,  # type: ignore[typeddict-item]
        **scores,
    )
    cell.file.write(row)
    return row


def test_again(cell: Cell, bench: Bench) -> Row:
    """A finished cell's row with new scores of its kept head on the test images, normalised as in its training."""
    if not cell.file.trained.is_file():
        raise ValueError(
            f"there is no {cell.file.trained} to be tested: run the cell without --test-only (decoders only)"
        )
    start, dataset = time.perf_counter(), bench.dataset(cell.evaluation.dataset)
    trained, running = load_trained(cell.file.trained, bench.device), cell.evaluation.running
    logits = trained.predictions(dataset.splits["test"], bench.device, running["batch_size"], running["workers"])
    scores = scored(cell, dataset, logits)
    data = {"data_hash": dataset.data_hash, "split_hash": dataset.split_hash}
    row: Row = {**cell.file.read(), **data, **scores, "seconds": round(time.perf_counter() - start, 2)}  # type: ignore[typeddict-item]
    cell.file.write(row)
    return row


def scored(cell: Cell, dataset: EvalDataset, logits: Iterable[Tensor]) -> dict[str, Any]:
    """The metric fields of predictions of the test images."""
    states, resamples = states_of(dataset, "test", logits), cell.evaluation.resamples
    return score(dataset.kind, states, len(dataset.classes), resamples=resamples, seed=cell.seed)


def learn(cell: Cell, bench: Bench, trial: Trial, rows: Sequence[int]) -> Outcome:
    """What the cell's task makes of these training images."""
    task = dict(cell.evaluation.task)
    name, dataset = task.pop("name"), trial.dataset
    if name == "decoder":
        bench.store.limit = cell.evaluation.running["memory"]
        return decoder(trial, bench.store, rows, cell.seed, Options(**task))
    labels = {split: dataset.splits[split].labels for split in ("train", "val")}
    if labels["train"] is None or labels["val"] is None:
        raise ValueError(
            f"dataset {dataset.name} has a map per image: task.name={name} takes labels, decoder takes maps"
        )
    features, chosen = bench.pooled(trial), list(rows)
    data = ProbeData(
        train={pooling: x[chosen] for pooling, x in features["train"].items()},
        val=features["val"],
        test=features["test"],
        train_labels=labels["train"][chosen].to(trial.device),
        val_labels=labels["val"].to(trial.device),
        classes=len(dataset.classes),
        kind=dataset.kind,
    )
    return schema.TASKS[name](data, cell.seed, **task)


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


def run(cells: Sequence[Cell], bench: Bench, part: tuple[int, int] = (0, 1), test_only: bool = False) -> None:
    """Do this part's cells: group i goes to part i mod n. A failure is recorded and the rest goes on.

    ``test_only``: no training, finished cells are tested again.
    """
    groups = list(dict.fromkeys(cell.group for cell in cells))
    mine = [c for c in cells if groups.index(c.group) % part[1] == part[0]]
    start = time.perf_counter()
    for i, cell in enumerate(mine, 1):
        try:
            row = test_again(cell, bench) if test_only else run_cell(cell, bench)
            words = f"{written(row['metric'], row['value'], row['unit'])} ({row['seconds']:.1f} s)"
        except Exception as error:  # whatever it was, it is kept with its traceback and turns the exit code
            cell.file.fail(traceback.format_exc())
            words = f"FAILED: {error} (traceback in {cell.file.error})"
        left = (time.perf_counter() - start) / i * (len(mine) - i)
        rest = f", about {left:.0f} s left" if i < len(mine) else ""
        print(f"[{i}/{len(mine)}{rest}] {cell}: {words}", flush=True)


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
