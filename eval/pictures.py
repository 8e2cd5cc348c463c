"""Pictures of a report: curves as SVG, images and patch features as PNG. Same input, same bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from dinov2.data.batch import View
from dinov2.data.stats import Normalisation
from eval.datasets import EvalDataset, Split
from eval.joining import Join, join, physical
from eval.networks import Model, Transformer
from eval.reading import VIEW, batches

RGB_NM = (665, 560, 490)  # wavelengths of a true-colour picture
GAMMA = 0.7  # brightens the dark half, where most of the land lies
COLOURS = ("#0b5c8a", "#c4622d", "#3f7d4e", "#7a4e9c", "#8a7a2b")
Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(image: np.ndarray) -> str:
    """``[H, W, 3]`` in [0, 1] as a data address."""
    buffer = io.BytesIO()
    imsave(buffer, (255 * image).round().astype(np.uint8), format="png", metadata={"Software": ""})
    return data_uri(buffer.getvalue(), "image/png")


def chart(
    curves: Mapping[str, Curve], title: str, xlabel: str = "step", intervals: Mapping[str, Curve] | None = None
) -> str:
    """Curves by name over the step, as an SVG data address.

    With ``intervals`` (lows, highs) by name, each has a shade around it, and the axis is logarithmic with a tick at
    every point.
    """
    style: Any = {"svg.hashsalt": title, "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": "#9aa5ab"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.2, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for colour, (name, (steps, values)) in zip(COLOURS * len(curves), curves.items(), strict=False):
            marker = "o" if len(steps) < 25 else None
            axes.plot(steps, values, color=colour, linewidth=1.5, marker=marker, markersize=3, label=name)
            if intervals:
                axes.fill_between(steps, *intervals[name], color=colour, alpha=0.15, linewidth=0)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color="#22303a")
        axes.grid(color="#e4e8ea", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color="#9aa5ab", labelcolor="#5b6870")
        axes.set_xlabel(xlabel, color="#5b6870")
        if intervals:
            points = sorted({step for steps, _ in curves.values() for step in steps})
            axes.set_xscale("log")
            axes.set_xticks(points, [f"{point:g}" for point in points])
            axes.set_xticks([], minor=True)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


def stretch(images: Tensor) -> np.ndarray:
    """``[B, 3, h, w]`` to ``[B, h, w, 3]`` in [0, 1]: each channel between its 2nd and 98th percentile."""
    flat = images.transpose(0, 1).flatten(1)  # [3, B*h*w]
    low, high = np.quantile(flat.numpy(), (0.02, 0.98), axis=1)
    low, high = (torch.from_numpy(x).view(1, 3, 1, 1) for x in (low, high))
    return ((images - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def true_colour(view: View, bands: Sequence[str], norm: Normalisation) -> np.ndarray:
    """``[B, H, W, 3]`` in [0, 1]: the bands nearest to red, green and blue under one stretch, so that hues are kept.

    ``bands`` are the view's channels as ``sensor/band``. Without optical bands: the first band in grey.
    """
    ids = view["chn_ids"][0].cpu()
    optical = (ids > 0).nonzero().flatten()
    channels = [int(optical[(ids[optical] - nm).abs().argmin()]) for nm in RGB_NM] if len(optical) else [0, 0, 0]
    table = [norm.table[sensor][band] for sensor, band in (bands[c].split("/") for c in channels)]
    mean, std = torch.tensor(table).T.reshape(2, 1, 3, 1, 1)
    physical = view["imgs"][:, channels].float().cpu() * std + mean  # [B, 3, H, W]
    low, high = np.quantile(physical.numpy(), (0.01, 0.97))
    return ((physical - low) / (high - low + 1e-9)).clamp(0, 1).pow(GAMMA).permute(0, 2, 3, 1).numpy()


def pca_colours(features: Tensor) -> np.ndarray:
    """``[B, D, h, w]`` to ``[B, h, w, 3]``: first three principal components of all patches together, as colours."""
    b, d, h, w = features.shape
    x = features.float().cpu().permute(0, 2, 3, 1).reshape(-1, d)  # [B*h*w, D]
    x = x - x.mean(0)
    axes = torch.linalg.eigh((x.T @ x).double())[1][:, -3:].flip(1).float()  # [D, 3], largest variance first
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # an eigenvector's sign is arbitrary
    return stretch((x @ axes).view(b, h, w, 3).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Gallery:
    """Test images and what models make of them: ``columns[title][i]`` is a PNG address; ``legend``: (name, colour)."""

    captions: list[str]
    columns: dict[str, list[str]]
    legend: Sequence[tuple[str, str]] = ()


@torch.inference_mode()
def patch_gallery(
    models: Sequence[Model],
    dataset: EvalDataset,
    device: torch.device,
    count: int = 6,
    missing: str = "error",
    sizing: str | None = None,
) -> Gallery:
    """Test images seen by every model that has feature maps: of each class the first, at most ``count`` in all.

    Where images do not have one class each, the first ones; of a series the first date. ``missing`` and ``sizing`` as
    in :func:`eval.joining.join`, but that no image is cut into tiles: a picture shows all of it.
    """
    test, classes = dataset.splits["test"], dataset.kind == "classification" and dataset.splits["test"].labels
    if isinstance(classes, Tensor):
        first = [int((classes == c).nonzero()[0]) for c in classes.unique().tolist()][:count]
        captions = [dataset.classes[int(classes[i])] for i in first]
    else:
        first = list(range(len(test)))[:count]
        captions = [test.keys[i] for i in first]
    rows = Split([test.keys[i] for i in first], [0] * len(first), lambda i: test[first[i]])
    columns: dict[str, list[str]] = {}
    plain = physical(dataset)

    def seen(joined: Join) -> View:
        (batch,) = batches(rows, joined, device, batch_size=count, workers=0, frames=dataset.frames)
        view = batch.views[VIEW]
        return view if dataset.frames == 1 else {name: x[:, 0] for name, x in view.items()}

    for model in models:
        if not isinstance(model.network, Transformer):
            continue
        if not columns:
            pictures = true_colour(seen(plain), dataset.band_names, plain.norm)
            columns["true colour"] = [png(x) for x in pictures]
        whole = ("resize" if model.native else "interpolate") if sizing == "tile" else sizing
        maps = model.maps(seen(join(model, dataset, missing, whole)))
        columns[model.name] = [png(x) for x in pca_colours(maps[-1])]
    return Gallery(captions, columns)
