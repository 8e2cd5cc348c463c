"""The grid of models x evaluations x seeds: run cell by cell, collected from files."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dinov2 import distributed
from dinov2.train.log import TRACKERS
from eval import schema
from eval.bench import Bench
from eval.cells import Cell, default_output, plan
from eval.costs import model_cost
from eval.datasets import EvalDataset
from eval.encoders import name_of, seeded
from eval.features import Trial
from eval.finetuned import RELEASED, TASKS, finetuned, is_finetuned
from eval.joining import ZEROS
from eval.labels import Labels, labels_hash, limited
from eval.networks import Model
from eval.probe import ProbeData
from eval.results import Row, write_tables, written
from eval.scoring import Outcome, score, states_of
from eval.tasks.decoder import Options, decoder
from eval.tasks.heads import Wanted
from eval.trained import Trained, load_trained

__all__ = ["Bench", "Cell", "collect", "default_output", "evaluate", "plan", "run", "run_cell"]


def run_cell(cell: Cell, bench: Bench) -> Row:
    """The cell's row: the stored one if nothing that decides it has changed, else a new one."""
    evaluation, dataset = cell.evaluation, bench.data(cell.evaluation)
    model = bench.model(cell.source, cell.seed)
    rows = limited(dataset, Labels(**evaluation.labels))
    identity = identity_of(cell, dataset, model, rows)
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
        cost=model_cost(trial.model, trial.example, maps=evaluation.task["name"] == "decoder"),
        seconds=round(time.perf_counter() - start, 2),
        **identity,  # type: ignore[typeddict-item]
        **scores,
    )
    if outcome.trained:
        row["training_hash"] = cell.evaluation.training_hash
    if evaluation.family:
        row["family"] = evaluation.family
    cell.file.write(row)
    return row


def identity_of(cell: Cell, dataset: EvalDataset, model: Model, rows: Sequence[int]) -> dict[str, str]:
    """What decides a cell's result."""
    identity = {
        "config_hash": cell.evaluation.config_hash,
        "data_hash": dataset.data_hash,
        "split_hash": dataset.split_hash,
        "model_hash": model.digest,
    }
    few = len(rows) < len(dataset.splits["train"])
    return identity | ({"labels_hash": labels_hash(dataset, rows)} if few else {})


def test_again(cell: Cell, bench: Bench) -> Row:
    """A finished cell's row: a decoder's with new scores of its kept head on the test images, normalised as in its
    training; any other task keeps no head, its row stays as it is.

    A decoder's test images may be others than before (``dataset.test``). ValueError where there is no row, or one of
    another config, model, labels or number of training images (without a head: of other data, too).
    """
    start, dataset = time.perf_counter(), bench.data(cell.evaluation)
    model, rows = bench.model(cell.source, cell.seed), limited(dataset, Labels(**cell.evaluation.labels))
    identity, decodes = identity_of(cell, dataset, model, rows), cell.evaluation.task["name"] == "decoder"
    tested = {k: identity[k] for k in ("config_hash", "data_hash", "split_hash")}
    learnt = {k: v for k, v in identity.items() if k not in tested} | {"training_hash": cell.evaluation.training_hash}
    stored = cell.file.done(learnt if decodes else identity)
    if stored is None or stored["n_train"] != len(rows):
        raise ValueError(
            f"there is no {cell.file.path} of this config, model and data to be tested: run it without --test-only"
        )
    if not decodes:
        return stored
    trained, running = load_trained(cell.file.trained, bench.device), cell.evaluation.running
    logits = trained.predictions(dataset.splits["test"], bench.device, running["batch_size"], running["workers"])
    scores = scored(cell, dataset, logits)
    seconds = round(time.perf_counter() - start, 2)
    row: Row = {**stored, **tested, **scores, "seconds": seconds}  # type: ignore[typeddict-item]
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
    if name == "decoder" and task.get("train") == RELEASED:
        return as_released(cell, bench, trial)
    if name == "decoder":
        return learn_together(cell, bench, trial, rows, Options(**task))
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


def as_released(cell: Cell, bench: Bench, trial: Trial) -> Outcome:
    """What a released fine-tuned model predicts of the test images: nothing is trained."""
    if not is_finetuned(cell.source):
        raise ValueError(f"task.train={RELEASED}: {cell.source} is none of {', '.join(TASKS)} with a file")
    trained, running = finetuned(cell.source, bench.device), cell.evaluation.running
    if len(trained.classes) != len(trial.dataset.classes):
        raise ValueError(
            f"{cell.source} tells {len(trained.classes)} classes apart; {trial.dataset.name} has "
            f"{len(trial.dataset.classes)}: choose the data it was fine-tuned on"
        )
    test = trial.dataset.splits["test"]
    seen = replace(trained, joined=trial.joined)
    logits = seen.predictions(test, bench.device, running["batch_size"], running["workers"])
    return Outcome(logits, {"train": RELEASED})


def learn_together(cell: Cell, bench: Bench, trial: Trial, rows: Sequence[int], options: Options) -> Outcome:
    """A decoder cell's outcome; cells that differ in seed and labels only learn from the same passes of the encoder."""
    if cell.file.path not in bench.learnt:
        bench.store.limit = cell.evaluation.running["memory"]
        wanted = {cell.file.path: Wanted(cell.seed, rows, course_of(cell))}
        for other in bench.cells if options.train == "frozen" and not seeded(cell.source) else ():
            if other.companion(cell) and other is not cell:
                try:
                    theirs = limited(trial.dataset, Labels(**other.evaluation.labels))
                except ValueError:  # it says so itself when its turn comes
                    continue
                if other.file.done(identity_of(other, trial.dataset, bench.model(cell.source, 0), theirs)) is None:
                    wanted[other.file.path] = Wanted(other.seed, theirs, course_of(other))
        outcomes = decoder(trial, bench.store, list(wanted.values()), options)
        bench.learnt |= dict(zip(wanted, outcomes, strict=True))
    return bench.learnt.pop(cell.file.path)


def course_of(cell: Cell) -> Callable[[int, Mapping[str, float]], None]:
    """What is told the course of a cell's learning: ``seed-N/tensorboard`` beside its row, where that is asked for."""
    wanted = cell.evaluation.running["tensorboard"]
    return TRACKERS["tensorboard"](cell.file.path.with_suffix("")) if wanted else lambda epoch, values: None


def run(cells: Sequence[Cell], bench: Bench, part: tuple[int, int] = (0, 1), test_only: bool = False) -> None:
    """Do this part's cells: group i goes to part i mod n. A failure is recorded and the rest goes on.

    ``test_only``: no training, finished cells are tested again; where that fails it is the end, and the row stays.
    """
    groups = list(dict.fromkeys(cell.group for cell in cells))
    mine = [c for c in cells if groups.index(c.group) % part[1] == part[0]]
    bench.cells, start = mine, time.perf_counter()
    for i, cell in enumerate(mine, 1):
        try:
            row = test_again(cell, bench) if test_only else run_cell(cell, bench)
            words = f"{written(row['metric'], row['value'], row['unit'])} ({row['seconds']:.1f} s)"
        except Exception as error:  # whatever it was, it is kept with its traceback and turns the exit code
            if test_only and cell.file.path.is_file():
                raise
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
    cells = plan(models, [e for s in sources for e in schema.load_all(s, overrides)], output)
    run(cells, Bench(distributed.device()))
    rows, failed = collect(cells)
    write_tables(rows, output or default_output(models))
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cells)} evaluation cells failed; first: {failed[0]}")
    return rows
