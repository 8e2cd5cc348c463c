"""Which bands of a dataset reach a model, in which order, unit and size, and how they are normalised.

A released encoder says what it expects (``dinov2.models.zoo.release.Expects``); all else takes the dataset's bands in
their order. Bands are joined by name within a sensor, by wavelength or polarisation between sensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinov2.data.batch import View
from dinov2.data.sample import ImageSpec
from dinov2.data.stats import Normalisation
from dinov2.models.zoo.release import Bands, Expects
from dinov2.sensors import SENSORS, Band, suggest
from eval.datasets import EvalDataset
from eval.networks import Model

MISSING = ("error", "drop", "zero")  # what to do about a band that the encoder expects and the dataset lacks
ZEROS = "zeros"  # in a row's bands: what stands for a band that the dataset lacks
LIMIT = 20.0  # a normalised band's mean and deviation stay far below, unless its unit or statistics are wrong
SCALINGS: Mapping[str, Callable[[Tensor], Tensor]] = {  # of standardised pixels
    "standardise": lambda x: x,
    "two_sigma": lambda x: ((x + 2) / 4).clamp(0, 1),
    "clip": lambda x: x.clamp(0, 1),
}


@dataclass(frozen=True)
class Channel:
    """A band of the dataset."""

    spec: ImageSpec
    name: str

    @property
    def band(self) -> Band:
        """Its wavelength or polarisation."""
        return SENSORS[self.spec.sensor].band(self.name)

    def __str__(self) -> str:
        return f"{self.spec.sensor}/{self.name}"


@dataclass(frozen=True)
class Join:
    """How samples of a dataset become the input of a model.

    ``images``, ``bands`` and ``size`` choose the pixels, as :func:`dinov2.data.views.full_view` takes them; ``norm``
    standardises them, ``scaling`` (a key of ``SCALINGS``) comes after; ``words`` tell where the statistics are from.
    ``channels`` are what the model receives in its order, None where it receives zeros; ``expected`` the names that it
    has for them.
    """

    images: list[str]
    bands: tuple[str, ...] | None
    size: int | None
    norm: Normalisation
    words: str
    channels: tuple[Channel | None, ...]
    expected: tuple[str, ...]
    scaling: str = "standardise"

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
        deviation beyond ``LIMIT``, a band without any contrast.
        """
        stds, means = torch.std_mean(imgs.float().transpose(0, 1).flatten(1), 1)  # [C]
        rows = []
        for channel, expected, mean, std in zip(
            self.channels, self.expected, means.tolist(), stds.tolist(), strict=True
        ):
            row = {"band": str(channel) if channel else ZEROS, "expected": expected, "mean": mean, "std": std}
            if channel:
                if not (abs(mean) <= LIMIT and 0 < std <= LIMIT):
                    raise ValueError(
                        f"band {channel} reaches the encoder with mean {mean:.4g} and standard deviation {std:.4g} "
                        f"({self.words}); correct its unit, scale or nodata value, or leave it out by dataset.bands"
                    )
                row |= {"id": channel.band.channel_id, "unit": channel.spec.model_unit}
            rows.append(row)
        return rows


def join(model: Model, dataset: EvalDataset, missing: str = "error") -> Join:
    """How ``dataset`` becomes the input of ``model``.

    ``missing``: what to do about a band that the model expects and the dataset lacks, one of ``MISSING``. The size is
    the dataset's where its config gives one, else the one the encoder was released for. ValueError names a band that
    the dataset lacks, that the model cannot take, or whose unit does not fit.
    """
    if missing not in MISSING:
        raise ValueError(f"model.missing is {missing!r}{suggest(missing, MISSING)} Known: {', '.join(MISSING)}")
    channels = available(dataset)
    names = tuple(map(str, channels))
    if model.expects is None:
        norm, words = joined_normalisation(model, dataset)
        return Join(dataset.images, dataset.bands, dataset.size, norm, words, channels, names)
    size = dataset.size or model.expects.size
    if not model.expects.bands:
        strange = next((c for c in channels if c.band.surface), None)
        if strange:
            raise ValueError(
                f"model {model.name} tells bands apart by wavelength or polarisation and cannot take {strange}; leave "
                "it out by dataset.images or dataset.bands"
            )
        words = "standardise (dataset)"
        return Join(dataset.images, dataset.bands, size, dataset.normalisation(), words, channels, names)
    found = tuple(c for bands in model.expects.bands for c in stand_ins(bands, channels))
    expected = tuple(f"{bands.sensor}/{name}" for bands in model.expects.bands for name in bands.names)
    check_missing(model, dataset, [e for e, c in zip(expected, found, strict=True) if c is None], expected, missing)
    used = [c for c in found if c]
    norm, words = expected_normalisation(model.expects, found, dataset)
    images = list(dict.fromkeys(c.spec.key for c in used))
    check_unique(used, [c for c in channels if c.spec.key in images], dataset)
    return Join(images, tuple(c.name for c in used), size, norm, words, found, expected, model.expects.scaling)


def physical(dataset: EvalDataset) -> Join:
    """The dataset's bands in their units, as no model takes them: for pictures."""
    channels = available(dataset)
    table = {s.sensor: {c.name: (0.0, 1.0) for c in channels if c.spec.sensor == s.sensor} for s in dataset.specs}
    norm = Normalisation(table, {s.sensor: s.model_unit for s in dataset.specs})
    return Join(dataset.images, dataset.bands, dataset.size, norm, "none", channels, tuple(map(str, channels)))


def available(dataset: EvalDataset) -> tuple[Channel, ...]:
    """The dataset's channels in its order."""
    every = [Channel(spec, band) for spec in dataset.specs for band in spec.bands]
    wanted = dataset.bands
    return tuple(every if wanted is None else (c for name in wanted for c in every if c.name == name))


def stand_ins(expected: Bands, channels: Sequence[Channel]) -> list[Channel | None]:
    """A channel (None: there is none) for every expected band, all of one sensor: the expected one, else the best."""
    sensors: dict[str, list[Channel]] = {}
    for channel in channels:
        sensors.setdefault(channel.spec.sensor, []).append(channel)
    if expected.sensor in sensors:
        named = {c.name: c for c in reversed(sensors[expected.sensor])}
        return [named.get(name) for name in expected.names]
    bands = SENSORS[expected.sensor].select(expected.names).bands
    tried = [[stand_in(band, theirs) for band in bands] for theirs in sensors.values()]
    return max(tried, key=lambda found: len(found) - found.count(None))


def stand_in(wanted: Band, channels: Sequence[Channel]) -> Channel | None:
    """Another sensor's channel that sees what ``wanted`` sees, the nearest in wavelength.

    Optical: each band's centre lies within the other's width, or the names agree and the responses overlap. Radar: the
    same polarisation, and orbit where one is wanted.
    """
    if wanted.is_sar:
        same = (c for c in channels if c.band.polarisation == wanted.polarisation)
        return next((c for c in same if wanted.orbit in (None, c.band.orbit)), None)
    near = []
    for channel in channels:
        theirs = channel.band
        if wanted.centre_nm and wanted.fwhm_nm and theirs.centre_nm and theirs.fwhm_nm:
            distance, widths = abs(wanted.centre_nm - theirs.centre_nm), (wanted.fwhm_nm, theirs.fwhm_nm)
            if distance <= (sum(widths) if theirs.name == wanted.name else min(widths)) / 2:
                near.append((distance, channel))
    return min(near, key=lambda pair: pair[0])[1] if near else None


def check_missing(
    model: Model, dataset: EvalDataset, lacking: Sequence[str], expected: Sequence[str], missing: str
) -> None:
    """ValueError unless the encoder may go without the ``lacking`` bands."""
    if not lacking or (missing == "zero" and len(lacking) < len(expected)):
        return
    advice = "evaluate the model on data that has them"
    if missing == "drop":
        advice = "its weights are for fixed bands, so that none can be dropped; model.missing=zero gives zeros instead"
    elif len(lacking) < len(expected):
        advice += ", or set model.missing=zero to give zeros instead"
    has = ", ".join(dataset.band_names[:15]) + (" ..." if len(dataset.band_names) > 15 else "")
    raise ValueError(
        f"dataset {dataset.name} lacks {', '.join(lacking)} for model {model.name} (it has {has}): {advice}"
    )


def check_unique(used: Sequence[Channel], channels: Sequence[Channel], dataset: EvalDataset) -> None:
    """ValueError where a used name occurs twice in the images: pixels are chosen by band name."""
    names = [c.name for c in channels]
    twice = next((c for c in used if names.count(c.name) > 1), None)
    if twice:
        raise ValueError(f"dataset {dataset.name} holds {twice} in several images; name one of them in dataset.images")


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
