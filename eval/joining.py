"""Which bands of a dataset reach a model, in which order, unit and size, and how they are normalised.

A released encoder says what it expects (``dinov2.models.zoo.release.Expects``), one of fixed bands that was trained
here takes those of its normalisation; all else takes the dataset's bands in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Column, Table
from torch import Tensor

from dinov2.data.batch import View
from dinov2.data.stats import Normalisation
from dinov2.models.zoo.release import Expects
from dinov2.sensors import suggest
from eval.bands import Channel, available, by_wavelength, check_missing, check_unique, stand_ins
from eval.datasets import EvalDataset
from eval.networks import Model

MISSING = ("error", "drop", "zero")  # what to do about a band that the encoder expects and the dataset lacks
NORMALISATIONS = ("model", "dataset")  # whose statistics standardise what an encoder receives
SIZING = ("resize", "tile", "interpolate")  # how images of another size than the encoder's are treated
WHOLE = "whole images"  # in a row's sizing: tiles were asked for, but nothing says how large
ZEROS = "zeros"  # in a row's bands: what stands for a band that the dataset lacks
LIMIT = 20.0  # a normalised band's mean and deviation stay far below, unless its unit or statistics are wrong
LEAST = {"standardise": 1e-3, "two_sigma": 1e-3, "clip": 5e-5}  # of a deviation; that of cirrus in 0..1 is small
SCALINGS: Mapping[str, Callable[[Tensor], Tensor]] = {  # of standardised pixels
    "standardise": lambda x: x,
    "two_sigma": lambda x: ((x + 2) / 4).clamp(0, 1),
    "clip": lambda x: x.clamp(0, 1),
}


@dataclass(frozen=True)
class Join:
    """How samples of a dataset become the input of a model.

    ``images``, ``bands`` and ``size`` choose the pixels, as :func:`dinov2.data.views.full_view` takes them; ``norm``
    standardises them, ``scaling`` (a key of ``SCALINGS``) comes after; ``words`` tell where the statistics are from.
    ``channels`` are what the model receives in its order, None where it receives zeros; ``expected`` the names that it
    has for them. ``window`` is the side of the tiles that the model is shown one by one, None: whole images; ``stride``
    how far apart they are, None: as far as possible; ``sizing`` tells what becomes of the size.
    """

    images: list[str]
    bands: tuple[str, ...] | None
    size: int | None
    norm: Normalisation
    words: str
    channels: tuple[Channel | None, ...]
    expected: tuple[str, ...]
    scaling: str = "standardise"
    window: int | None = None
    stride: int | None = None
    sizing: str = "as it is"

    def view(self, view: View) -> View:
        """A standardised view as the model takes it: scaled, with zeros (and masked) where the dataset lacks a band."""
        imgs = SCALINGS[self.scaling](view["imgs"])  # [B, C', H, W]
        if None not in self.channels:
            return {**view, "imgs": imgs}
        slots = [i for i, channel in enumerate(self.channels) if channel]
        b, c = len(imgs), len(self.channels)
        full, ids = imgs.new_zeros(b, c, *imgs.shape[2:]), view["chn_ids"].new_zeros(b, c)
        masks = torch.ones_like(ids, dtype=torch.bool)
        full[:, slots], ids[:, slots], masks[:, slots] = imgs, view["chn_ids"], False
        return {"imgs": full, "chn_ids": ids, "spec_masks": masks}

    def received(self, imgs: Tensor) -> list[dict[str, Any]]:
        """What the model receives, band by band, measured on a batch ``[B, C, H, W]`` of its input.

        Values that no right unit and statistics give raise ValueError naming the band: non-finite ones, a mean or
        deviation beyond ``LIMIT``, a deviation below ``LEAST`` (no contrast).
        """
        stds, means = torch.std_mean(imgs.float().transpose(0, 1).flatten(1), 1)  # [C]
        rows = []
        for channel, expected, mean, std in zip(
            self.channels, self.expected, means.tolist(), stds.tolist(), strict=True
        ):
            row = {"band": str(channel) if channel else ZEROS, "expected": expected, "mean": mean, "std": std}
            if channel:
                if not (abs(mean) <= LIMIT and LEAST[self.scaling] <= std <= LIMIT):
                    raise ValueError(
                        f"band {channel} reaches the encoder with mean {mean:.4g} and standard deviation {std:.4g} "
                        f"({self.words}); correct its unit, scale or nodata value, or leave it out by dataset.bands"
                    )
                row |= {"id": channel.band.channel_id, "unit": channel.spec.model_unit}
            rows.append(row)
        return rows


def join(
    model: Model,
    dataset: EvalDataset,
    missing: str = "error",
    sizing: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    normalisation: str = "model",
) -> Join:
    """How ``dataset`` becomes the input of ``model``.

    ``missing``: what to do about a band that the model expects and the dataset lacks, one of ``MISSING``; a model that
    tells bands apart by wavelength goes without those that have none under ``drop``. ``sizing``: one of ``SIZING``, and
    ``window``: see :func:`sized`; ``stride`` of such windows. ``normalisation``: one of ``NORMALISATIONS``, by the
    encoder's statistics where it has some, or by those of the training images. ValueError names a band that the dataset
    lacks, that the model cannot take, or whose unit does not fit.
    """
    if missing not in MISSING:
        raise ValueError(f"model.missing is {missing!r}{suggest(missing, MISSING)} Known: {', '.join(MISSING)}")
    if normalisation not in NORMALISATIONS:
        near = suggest(normalisation, NORMALISATIONS)
        raise ValueError(f"model.normalisation is {normalisation!r}{near} Known: {', '.join(NORMALISATIONS)}")
    joined = join_bands(model, dataset, missing)
    if normalisation == "dataset":
        if joined.scaling == "clip":
            raise ValueError(f"model.normalisation=dataset: {model.name} takes no standardised values, but 0 to 1")
        joined = replace(joined, norm=dataset.normalisation(), words=f"{joined.scaling} (dataset)")
    size = sized(model, dataset, sizing, window)
    if stride and not (size["window"] and stride <= size["window"]):
        raise ValueError(f"model.stride is {stride}: it goes with model.size=tile and is at most the size of a tile")
    return replace(joined, stride=stride, **size)


def join_bands(model: Model, dataset: EvalDataset, missing: str) -> Join:
    """:func:`join` at the dataset's own size."""
    channels = available(dataset)
    names, size = tuple(map(str, channels)), dataset.size
    if not model.bands and not model.expects:
        norm, words = joined_normalisation(model, dataset)
        return Join(dataset.images, dataset.bands, size, norm, words, channels, names)
    if not model.bands:
        images, bands, channels = by_wavelength(model, dataset, channels, missing)
        words = "standardise (dataset)"
        return Join(images, bands, size, dataset.normalisation(), words, channels, tuple(map(str, channels)))
    found = tuple(c for bands in model.bands for c in stand_ins(bands, channels))
    expected = tuple(f"{bands.sensor}/{name}" for bands in model.bands for name in bands.names)
    check_missing(model, dataset, [e for e, c in zip(expected, found, strict=True) if c is None], expected, missing)
    used = [c for c in found if c]
    images = list(dict.fromkeys(c.spec.key for c in used))
    check_unique(used, [c for c in channels if c.spec.key in images], dataset)
    if model.expects:
        (norm, words), scaling = expected_normalisation(model.expects, found, dataset), model.expects.scaling
    else:
        (norm, words), scaling = joined_normalisation(model, dataset), "standardise"
    return Join(images, tuple(c.name for c in used), size, norm, words, found, expected, scaling)


def sized(model: Model, dataset: EvalDataset, sizing: str | None, window: int | None = None) -> dict[str, Any]:
    """``size``, ``window`` and ``sizing`` of a join.

    ``resize``: images become as large as the encoder was made for; ``tile``: the encoder sees windows of that size, one
    that was made for no size windows of ``window`` pixels, or without that whole images; ``interpolate``: it sees the
    image as it is, its positions are resized. By default released encoders resize and all
    others interpolate. ``dataset.size`` is the size of images before tiles are cut, and overrides that of ``resize``.
    """
    how = sizing or ("resize" if model.expects else "interpolate")
    if how not in SIZING:
        raise ValueError(f"model.size is {how!r}{suggest(how, SIZING)} Known: {', '.join(SIZING)}")
    if how == "interpolate":
        return {"size": dataset.size, "window": None, "sizing": "positions interpolated"}
    if how == "tile":
        window = model.native or window
        return {"size": dataset.size, "window": window, "sizing": f"tiles of {window}" if window else WHOLE}
    if model.native is None:
        raise ValueError(f"model {model.name} was made for no size: model.size={how} cannot be, take interpolate")
    size = dataset.size or model.native
    return {"size": size, "window": None, "sizing": f"resized to {size}"}


def physical(dataset: EvalDataset) -> Join:
    """The dataset's bands in their units, as no model takes them: for pictures."""
    channels = available(dataset)
    table = {s.sensor: {c.name: (0.0, 1.0) for c in channels if c.spec.sensor == s.sensor} for s in dataset.specs}
    norm = Normalisation(table, {s.sensor: s.model_unit for s in dataset.specs})
    return Join(dataset.images, dataset.bands, dataset.size, norm, "none", channels, tuple(map(str, channels)))


def expected_normalisation(
    expects: Expects, found: Sequence[Channel | None], dataset: EvalDataset
) -> tuple[Normalisation, str]:
    """The published statistics where there are any in the data's unit, else the dataset's; and in words."""
    units = [bands.unit for bands in expects.bands for _ in bands.names]
    pairs = [(c, unit) for c, unit in zip(found, units, strict=True) if c]
    other = next(((c, unit) for c, unit in pairs if c.spec.model_unit != unit), None)
    kinds = {c.spec.sensor: c.spec.model_unit for c, _ in pairs}
    if expects.scaling == "clip":
        if other:
            raise ValueError(f"{other[0]} is in {other[0].spec.model_unit}; clipping to 0..1 needs {other[1]}")
        values, words = [(0.0, 1.0)] * len(found), "clip to 0..1"
    elif other or not expects.mean:
        why = f"; published: {other[1]}" if other and expects.mean else ""
        return dataset.normalisation(), f"{expects.scaling} (dataset{why})"
    else:
        values, words = list(zip(expects.mean, expects.std, strict=True)), f"{expects.scaling} (published)"
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for channel, value in zip(found, values, strict=True):
        if channel:
            table.setdefault(channel.spec.sensor, {})[channel.name] = value
    return Normalisation(table, kinds), words


def joined_normalisation(model: Model, dataset: EvalDataset) -> tuple[Normalisation, str]:
    """The checkpoint's statistics, and the dataset's for sensors that the checkpoint has never seen; and in words."""
    sensors = sorted({spec.sensor for spec in dataset.specs})
    known = model.normalisation.table if model.normalisation else {}
    unseen = [s for s in sensors if s not in known]
    if model.normalisation and not unseen:
        return model.normalisation, "checkpoint"
    own = dataset.normalisation()
    if model.normalisation is None:
        return own, "dataset"
    word = "dataset" if len(unseen) == len(sensors) else f"checkpoint; dataset for {', '.join(unseen)}"
    return model.normalisation.updated(own), word


def received_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What :meth:`Join.received` found, to look at before training: source, channel id, unit, mean, deviation."""
    right = [Column(title, justify="right") for title in ("id", "mean", "std")]
    table = Table("expected", "receives", right[0], "unit", *right[1:], title="what the encoder receives")
    for row in rows:
        values = f"{row['mean']:.3f}", f"{row['std']:.3f}"
        table.add_row(row["expected"], row["band"], str(row.get("id", "")), row.get("unit", ""), *values)
    return table
