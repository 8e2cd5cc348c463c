"""The files that become of a scene: classes, probabilities, values or embeddings, and how they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.geotiff import FLOATS, Storage
from eval.scene_encoder import EMBEDS
from eval.series.precision import STORAGE, to_store
from eval.trained import Trained

CLASSES = Storage("int16", -1, 2)
SHARE = 1e-4  # a step of the stored probabilities


@dataclass(frozen=True)
class Extras:
    """What is asked for beside the map: the class's probability as a second band, a file of all; of embeddings the
    ``precision``.
    """

    confidence: bool = False
    probabilities: bool = False
    precision: str = "float32"


@dataclass(frozen=True)
class Layer:
    """A file to be made of a scene: ``stored`` gives its pixels from values ``[K, rows, W]``, NaN without observation.

    ``scales`` of its bands, by which stored numbers become values.
    """

    path: Path
    names: Sequence[str]
    storage: Storage
    resampling: str
    stored: Callable[[np.ndarray], np.ndarray]
    scales: tuple[float, ...] = ()


def classes_of(values: np.ndarray) -> np.ndarray:
    """int16 ``[1, H, W]``, -1 without observation."""
    return np.where(np.isnan(values[:1]), -1, values.argmax(0, keepdims=True)).astype(np.int16)


def shares_of(values: np.ndarray) -> np.ndarray:
    """int16 ``[1 + K, H, W]`` of probabilities: the largest and all, in steps of ``SHARE``, -1 without observation."""
    both = np.concatenate([values.max(0, keepdims=True), values])
    return np.where(np.isnan(both), -1, np.rint(both / SHARE)).astype(np.int16)


def sure_classes_of(values: np.ndarray) -> np.ndarray:
    """int16 ``[2, H, W]``: the class and its probability."""
    return np.concatenate([classes_of(values), shares_of(values)[:1]])


def layers(trained: Trained, base: Path, extras: Extras) -> list[Layer]:
    """The files whose names begin like ``base`` that become of one; the map itself is the first."""
    names = list(trained.classes)

    def beside(what: str) -> Path:
        return base.with_name(f"{base.name}_{what}.tif")

    if trained.kind == EMBEDS:
        return embeddings(names, beside("embedding"), beside("embedding_scale"), extras.precision)
    if trained.kind != "segmentation":
        return [Layer(beside("pred"), names, FLOATS, "average", lambda x: x)]
    made = [Layer(beside("pred"), ["class"], CLASSES, "mode", classes_of)]
    if extras.confidence:
        made = [Layer(beside("pred"), ["class", "confidence"], CLASSES, "mode", sure_classes_of, (1.0, SHARE))]
    if extras.probabilities:
        every = ["confidence", *names]
        made.append(Layer(beside("prob"), every, CLASSES, "average", shares_of, (SHARE,) * len(every)))
    return made


def embeddings(names: Sequence[str], path: Path, scale: Path, precision: str) -> list[Layer]:
    """The map of embeddings, and of codes that of their scales."""
    mean = "nearest" if precision == "int8" else "average"  # codes of different scales have no mean

    def part(kind: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.moveaxis(np.atleast_3d(to_store(np.moveaxis(x, 0, 2), precision)[kind]), 2, 0)

    made = [Layer(path, names, STORAGE[precision], mean, part("values"))]
    if precision == "int8":
        made.append(Layer(scale, ["value of one step of a code"], FLOATS, mean, part("scales")))
    return made
