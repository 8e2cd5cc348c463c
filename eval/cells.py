"""Cells of the grid of models x evaluations x seeds."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval import schema
from eval.encoders import fresh, home_of, name_of
from eval.results import CellFile


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
        """Cells of one group are done by one rank: they share features, or the passes of a frozen encoder."""
        task = self.evaluation.task
        alone = f" {task} {self.seed if task['train'] != 'frozen' else ''}" if task["name"] == "decoder" else ""
        return f"{self.model} {sorted(self.evaluation.dataset.items())}{alone}"

    def companion(self, other: Cell) -> bool:
        """Whether both ask the same of the same encoder, but for the seed and the labels."""
        mine, theirs = self.evaluation, other.evaluation
        apart = (
            mine.task.get("crop") == "importance" or mine.labels["val"] or theirs.labels["val"]
        )  # look at the labels
        same_labels = mine.labels == theirs.labels or not apart
        parts = ((e.dataset, e.task, e.model, e.running) for e in (mine, theirs))
        return self.model == other.model and same_labels and operator.eq(*parts)

    def __str__(self) -> str:
        return f"{self.evaluation.name}, {name_of(self.model)}, seed {self.seed}"


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
