"""The bands of a dataset, and which of them stand in for those that an encoder expects.

Bands are joined by name within a sensor, by wavelength or polarisation between sensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dinov2.data.sample import ImageSpec
from dinov2.models.zoo.release import Bands
from dinov2.sensors import SENSORS, Band
from eval.datasets import EvalDataset
from eval.networks import Model


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


def available(dataset: EvalDataset) -> tuple[Channel, ...]:
    """The dataset's channels in its order."""
    every = [Channel(spec, band) for spec in dataset.specs for band in spec.bands]
    wanted = dataset.bands
    return tuple(every if wanted is None else (c for name in wanted for c in every if c.name == name))


def by_wavelength(
    model: Model, dataset: EvalDataset, channels: tuple[Channel, ...], missing: str
) -> tuple[list[str], tuple[str, ...] | None, tuple[Channel, ...]]:
    """Images, bands and channels for a model that takes any which have a wavelength or polarisation."""
    strange = [c for c in channels if c.band.surface]
    if not strange:
        return dataset.images, dataset.bands, channels
    if missing != "drop" or len(strange) == len(channels):
        raise ValueError(
            f"model {model.name} tells bands apart by wavelength or polarisation and cannot take {strange[0]}; leave "
            "it out by dataset.images or dataset.bands, or by model.missing=drop"
        )
    kept = tuple(c for c in channels if not c.band.surface)
    images = list(dict.fromkeys(c.spec.key for c in kept))
    return images, dataset.bands and tuple(c.name for c in kept), kept


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
