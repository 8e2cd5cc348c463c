"""Prediction maps of a report: test images beside their truth and what trained decoders make of them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_hex

from eval.cells import Cell
from eval.datasets import EvalDataset, Split
from eval.datasets.base import IGNORE
from eval.dense_metrics import predicted_classes
from eval.encoders import name_of
from eval.joining import physical
from eval.pictures import Gallery, png, true_colour
from eval.reading import VIEW, batches
from eval.trained import load_trained

COUNT = 4  # images of an evaluation
LOOKED_AT = 64  # test images among which they are chosen
SIDE = 256  # pixels of a picture; larger images are thinned out
GREY = (0.75, 0.75, 0.75)  # where there is no truth


def palette(classes: int) -> np.ndarray:
    """``[K, 3]`` colours in [0, 1]: hues a golden angle apart, in turn bright, dark and pale."""
    tones = ((0.8, 0.95), (0.8, 0.55), (0.45, 0.95))  # saturation, brightness
    hues = [(0.09 + 0.618034 * k) % 1 for k in range(classes)]
    return np.array([colorsys.hsv_to_rgb(h, *tones[k % 3]) for k, h in enumerate(hues)])


def finished(cells: Sequence[Cell]) -> dict[str, dict[str, Path]]:
    """By evaluation and model the trained decoder of the first seed."""
    found: dict[str, dict[str, Path]] = {}
    for cell in cells:
        if cell.file.trained.is_file() and not cell.file.error.is_file():
            found.setdefault(cell.evaluation.name, {}).setdefault(name_of(cell.model), cell.file.trained)
    return found


def telling(split: Split, kind: str) -> list[int]:
    """Rows of the ``COUNT`` images that show the most classes, or the widest range of values; in their order."""

    def variety(target: np.ndarray) -> float:
        if kind == "segmentation":
            return len(np.unique(target[target != IGNORE]))
        known = target[np.isfinite(target)]
        return float(np.ptp(known)) if known.size else 0.0

    found = [variety(split.target(i)) for i in range(min(LOOKED_AT, len(split)))]
    return sorted(np.argsort(-np.array(found), kind="stable")[:COUNT].tolist())


def painter(
    dataset: EvalDataset, truths: Sequence[np.ndarray]
) -> tuple[Callable[[np.ndarray], np.ndarray], list[tuple[str, str]]]:
    """What gives a map ``[H, W]`` of classes or values its colours ``[H, W, 3]``, and the legend (name, colour)."""
    if dataset.kind == "segmentation":
        colours = np.vstack([palette(len(dataset.classes)), GREY])  # IGNORE is -1: the last
        legend = list(zip((*dataset.classes, "no label"), map(to_hex, colours), strict=True))
        return lambda values: colours[values], legend
    known = np.concatenate([t[np.isfinite(t)] for t in truths])
    low, high = float(known.min()), float(known.max())
    scale = matplotlib.colormaps["viridis"].with_extremes(bad=GREY)
    steps = [(f"{low + s * (high - low):.3g} {dataset.unit}", to_hex(scale(s)[:3])) for s in (0.0, 0.5, 1.0)]
    return lambda values: scale((values - low) / (high - low or 1))[..., :3], [*steps, ("no value", to_hex(GREY))]


def thinned(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that at most ``SIDE`` are left."""
    step = -(-max(image.shape[:2]) // SIDE)
    return image[::step, ::step]


@torch.inference_mode()
def prediction_maps(dataset: EvalDataset, trained: Mapping[str, Path], device: torch.device) -> Gallery:
    """Images of the test split, of series the first date, of pairs both; truth; and the map of every trained model.

    All maps have the same colours. ``trained``: name of a model -> the file of its decoder.
    """
    test = dataset.splits["test"]
    rows = telling(test, dataset.kind)
    keys = [test.keys[i] for i in rows]
    chosen = Split(keys, None, lambda i: test[rows[i]], lambda i: test.target(rows[i]))
    truths = [chosen.target(i) for i in range(len(rows))]
    paint, legend = painter(dataset, truths)
    columns: dict[str, list[str]] = {}

    def show(title: str, pictures: Sequence[np.ndarray]) -> None:
        columns[title] = [png(thinned(x)) for x in pictures]

    plain = physical(dataset)
    views = [b.views[VIEW] for b in batches(chosen, plain, device, batch_size=1, workers=0, frames=dataset.frames)]
    for title, date in {"before": 0, "after": 1}.items() if dataset.pair else [("image", 0)]:
        at = [v if dataset.frames == 1 else {name: x[:, date] for name, x in v.items()} for v in views]
        show(title, [true_colour(v, dataset.band_names, plain.norm)[0] for v in at])
    show("truth", [paint(t) for t in truths])
    for model, file in trained.items():
        logits = load_trained(file, device).predictions(chosen, device, batch_size=1)
        segments = dataset.kind == "segmentation"
        found = [(predicted_classes(x) if segments else x[:, 0])[0].float().cpu().numpy() for x in logits]
        show(model, [paint(x.astype(int) if segments else x) for x in found])
    return Gallery(keys, columns, legend)
