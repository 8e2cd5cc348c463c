"""Channels of a view that come from one image: which bands, their ids and statistics, and how they are cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dinov2.data.collate import Piece
from dinov2.data.crops import Box
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.simulate import draw_responses
from dinov2.data.stats import Normalisation
from dinov2.sensors import SENSORS


@cache
def _channel_ids(sensor: str, bands: tuple[str, ...]) -> np.ndarray:
    return np.array(SENSORS[sensor].channel_ids(bands), np.int64)


@dataclass(frozen=True)
class Channels:
    """The bands at ``index`` of one image ``[C, H, W]``, or K mixtures of these c bands by ``weights`` ``[K, c]``.

    ``chn_ids``, ``mean`` and ``std`` (model unit) are those of the resulting channels, ``slots`` their places in the
    view.
    """

    image: np.ndarray
    spec: ImageSpec
    index: np.ndarray
    slots: np.ndarray
    chn_ids: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray | None = None

    def mixed(self, count: int, rng: np.random.Generator) -> Channels:
        """``count`` simulated broad bands; stds just add, as they do for bands that vary together."""
        ids, weights = draw_responses(self.spec, count, rng)
        used = weights.any(0)
        mean, std = weights @ self.mean, weights @ self.std
        return Channels(self.image, self.spec, self.index[used], np.arange(count), ids, mean, std, weights[:, used])

    def cut(self, box: Box) -> np.ndarray:
        """Stored planes ``[c, h, w]`` in the box, or mixed ones ``[K, h, w]`` in the model unit (NaN: nodata)."""
        planes = self.image[(slice(None), *box.window(self.image.shape))][self.index]
        if self.weights is None:
            return planes
        mixed = np.tensordot(self.weights, self.spec.to_model(planes), 1)
        mixed[:, self.spec.invalid(planes).any(0)] = np.nan
        return mixed

    def nodata(self, planes: np.ndarray) -> float:
        """The fraction of ``planes``, as cut, that holds nodata."""
        if self.weights is None and self.spec.nodata is None:
            return 0.0
        return float((self.spec.invalid(planes) if self.weights is None else np.isnan(planes)).mean())

    def piece(self, planes: np.ndarray, jitter: np.ndarray, noise: np.ndarray, looks: float) -> Piece:
        """What is shipped of ``planes``, as cut; ``jitter`` ``[C, 3]`` and ``noise`` ``[C]`` of the whole view."""
        spec, as_stored = self.spec, self.weights is None
        params = np.empty((len(planes), 8), np.float32)
        params[:, :3] = (spec.scale, spec.offset, np.nan) if as_stored else (1, 0, np.nan)
        if as_stored and spec.nodata is not None:
            params[:, 2] = spec.nodata
        params[:, 3], params[:, 4], params[:, 5:] = self.mean, self.std, jitter[self.slots]
        speckle = looks if spec.model_unit == "db" else 0.0
        return Piece(planes, self.slots, params, noise[self.slots], spec.unit == "linear_power", speckle)


def select(sample: Sample, found: Sequence[tuple[str, int]], norm: Normalisation, date: int = 0) -> list[Channels]:
    """The channels (image key, band index) of a view in this order, one entry per image."""
    places: dict[str, list[int]] = {}
    for slot, (name, _) in enumerate(found):
        places.setdefault(name, []).append(slot)
    out = []
    for name, slots in places.items():
        image, spec, index = sample.images[name], sample.specs[name], [found[slot][1] for slot in slots]
        mean, std = norm.lookup(spec, [spec.bands[i] for i in index])
        ids = _channel_ids(spec.sensor, spec.bands)[index]
        image = image[date] if image.ndim == 4 else image
        out.append(Channels(image, spec, np.array(index), np.array(slots), ids, mean, std))
    return out
