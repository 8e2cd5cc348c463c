"""Learners on tables of pixel features, the parts of the rows they see, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error, r2_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.series.tables import FEATURE

UNLABELLED = -1
NEIGHBOURS = 5
Learner = Callable[[int, int], Any]  # seed, number of training rows -> a scikit-learn estimator


def neighbours(rows: int) -> int:
    """Of k-NN, where labels are few too."""
    return max(1, min(NEIGHBOURS, rows // 2))


LEARNERS: Mapping[str, Mapping[str, Learner]] = {
    "classification": {
        "linear": lambda seed, rows: LogisticRegression(C=0.1, max_iter=1000),
        "knn": lambda seed, rows: KNeighborsClassifier(neighbours(rows)),
        "forest": lambda seed, rows: RandomForestClassifier(200, random_state=seed),
        "mlp": lambda seed, rows: MLPClassifier(hidden_layer_sizes=(128,), alpha=1e-2, max_iter=300, random_state=seed),
    },
    "regression": {
        "linear": lambda seed, rows: Ridge(1.0),
        "knn": lambda seed, rows: KNeighborsRegressor(neighbours(rows)),
        "forest": lambda seed, rows: RandomForestRegressor(200, random_state=seed),
        "mlp": lambda seed, rows: MLPRegressor(hidden_layer_sizes=(128,), alpha=1e-2, max_iter=300, random_state=seed),
    },
}
SCORES: Mapping[str, Mapping[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "classification": {
        "accuracy": accuracy_score,
        "macro_f1": lambda y, p: f1_score(y, p, average="macro", labels=np.unique(y)),  # classes that the truth holds
    },
    "regression": {
        "rmse": lambda y, p: mean_squared_error(y, p) ** 0.5,
        "mae": mean_absolute_error,
        "r2": r2_score,
    },
}


@dataclass(frozen=True)
class Data:
    """The labelled rows of a table: features ``[N, D]``, labels ``[N]``, places ``[N, 2]``."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    places: np.ndarray


def read_table(path: Path, label: str, task: str) -> Data:
    """A table of features; ValueError where the label or all features are absent, or a value is not finite."""
    table = pq.read_table(path)
    names = sorted((n for n in table.column_names if n[:1] == FEATURE and n[1:].isdigit()), key=lambda n: int(n[1:]))
    if label not in table.column_names or not names:
        raise ValueError(f"{path} has no label {label!r} beside its features; its other columns: "
                         f"{', '.join(n for n in table.column_names if n not in names)}")  # fmt: skip
    features = np.stack([table[n].to_numpy() for n in names], 1)
    labels = np.array(table[label].to_pylist(), object)
    if not np.isfinite(features).all():
        raise ValueError(f"{path}: {int((~np.isfinite(features)).any(1).sum())} rows have no embedding: leave them out")
    if task == "classification":
        known = ~table[label].is_null(nan_is_null=True).to_numpy() & (labels != UNLABELLED)
    else:
        known = np.isfinite(labels.astype(float))
    columns = (table[c].to_numpy() if c in table.column_names else np.full(len(table), np.nan) for c in "xy")
    return Data(path.stem, features[known], np.array(labels[known].tolist()), np.stack(list(columns), 1)[known])


def split(data: Data, block: float, seed: int, test: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and test: a random part, or with ``block`` > 0 the rows of a random part of the squares."""
    draw = np.random.default_rng(seed)
    if block:
        if not np.isfinite(data.places).all():
            raise ValueError(f"--block {block:g} needs x and y of every row; {data.name} lacks some")
        _, square = np.unique(np.floor(data.places / block), axis=0, return_inverse=True)
    else:
        square = np.arange(len(data.labels))
    groups = draw.permutation(square.max() + 1)
    share = np.cumsum(np.bincount(square)[groups]) / len(square)
    held = np.isin(square, groups[: np.searchsorted(share, test) + 1])
    if held.all() or not held.any():
        raise ValueError(f"--block {block:g} leaves one part empty: there are {square.max() + 1} squares")
    return np.flatnonzero(~held), np.flatnonzero(held)


def fewer(rows: np.ndarray, labels: np.ndarray, fraction: float, task: str, seed: int) -> np.ndarray:
    """A random part of the training rows, at least one of each class."""
    draw = np.random.default_rng([seed, round(1e6 * fraction)])
    order = draw.permutation(rows)
    kept = order[: max(2, round(fraction * len(rows)))]
    if task == "regression":
        return kept
    firsts = [order[labels[order] == c][0] for c in np.unique(labels[rows])]
    return np.unique(np.concatenate([kept, firsts]))


def fitted(learner: Any, features: np.ndarray, labels: np.ndarray) -> Any:
    """The learner behind a standardisation, trained."""
    return make_pipeline(StandardScaler(), learner).fit(features, labels)
