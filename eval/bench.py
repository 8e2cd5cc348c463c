"""What the cells of one call share: models, datasets, features and heads that learn side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from eval import schema
from eval.cells import Cell
from eval.datasets import EvalDataset, build_dataset
from eval.encoders import load_model, seeded
from eval.features import Trial, extract
from eval.joining import received_table
from eval.labels import Labels, validated
from eval.networks import Model
from eval.scoring import Outcome
from eval.tasks.encoding import Store


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
    cells: Sequence[Cell] = ()  # those to be done; some learn side by side
    learnt: dict[Path, Outcome] = field(default_factory=dict)  # by the file of a cell whose turn is still to come

    def dataset(self, options: Mapping[str, Any]) -> EvalDataset:
        """Opened on first use."""
        key = repr(sorted(options.items()))
        if key not in self.datasets:
            self.datasets[key] = build_dataset(options)
        return self.datasets[key]

    def data(self, evaluation: schema.Evaluation) -> EvalDataset:
        """The dataset of an evaluation, with the validation images that its labels leave."""
        key = f"{sorted(evaluation.dataset.items())!r} {evaluation.labels!r}"
        if key not in self.datasets:
            self.datasets[key] = validated(self.dataset(evaluation.dataset), Labels(**evaluation.labels))
        return self.datasets[key]

    def model(self, obj: str, seed: int) -> Model:
        """Loaded on first use; only a random model depends on the seed."""
        key = (obj, seed if seeded(obj) else 0)
        if self.loaded is None or self.loaded[0] != key:
            self.loaded = key, load_model(obj, self.device, seed)
        return self.loaded[1]

    def trial(self, model: Model, dataset: EvalDataset, evaluation: schema.Evaluation) -> Trial:
        """The model on the dataset, joined and checked on first use."""
        treatment, running, window = evaluation.model, evaluation.running, evaluation.task.get("crop_size")
        parts = (repr(sorted(part.items())) for part in (evaluation.dataset, treatment))
        key = (model.digest, *parts, str(window), dataset.split_hash)
        if key not in self.trials:
            self.trials = {k: v for k, v in self.trials.items() if k[0] == model.digest}
            self.trials[key] = Trial.of(
                model,
                dataset,
                self.device,
                missing=evaluation.missing,
                sizing=treatment["size"],
                window=window,
                stride=treatment["stride"],
                normalisation=treatment["normalisation"],
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
