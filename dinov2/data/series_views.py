"""The two views of a pixel that pretraining draws, random subsets of its dates, and their batch.

Apart from ``series``, which data preparation reads without torch. Legend: K dates of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dinov2.data.batch import Batch, View
from dinov2.data.sample import Sample
from dinov2.data.series import Series, Track, tracks
from dinov2.data.stats import Normalisation
from dinov2.data.views import Key, generator

VIEW = "crop"  # of the two-view objectives
VIEWS = 2


class Drawn(NamedTuple):
    """The views of one pixel before they are joined: each as the encoder's dictionary without its batch axis."""

    key: str
    position: int
    views: list[dict[str, np.ndarray]]
    labels: dict[str, int]


def draw(sample: Sample, options: Series, norm: Normalisation, key: Key) -> Drawn:
    """Two views of one pixel of ``sample``: random subsets of its valid dates, in order; ``key`` as in ``data.views``.

    Raises ValueError, naming the sample, where no pixel was ever observed, and as :func:`observe` does.
    """
    seen = tracks(sample, options.inputs, norm)
    observed = np.flatnonzero(np.any([track.valid.any(0) for track in seen.values()], axis=0))
    if not observed.size:
        raise ValueError(f"sample {sample.key!r}: no pixel has a valid date")
    pixel = observed[generator(key, VIEW, 0).integers(len(observed))]
    views = [_view(seen, pixel, options, generator(key, VIEW, 1 + i)) for i in range(VIEWS)]
    labels = {name: int(value) for name, value in sample.labels.items() if isinstance(value, int | np.integer)}
    return Drawn(sample.key, key[2], views, labels)


def _view(
    seen: Mapping[str, Track], pixel: np.intp, options: Series, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One view of a pixel."""
    valid = {name: np.flatnonzero(track.valid[:, pixel]) for name, track in seen.items()}
    both = [name for name, dates in valid.items() if dates.size]
    dropped = both[rng.integers(2)] if rng.random() < options.drop_sensor and len(both) == 2 else None
    gap = _gap(np.concatenate([seen[n].dates[d] for n, d in valid.items()]), options, rng)
    view: dict[str, np.ndarray] = {}
    for name, track in seen.items():
        dates = valid[name] if name != dropped else valid[name][:0]
        outside = dates[(track.dates[dates] < gap[0]) | (track.dates[dates] >= gap[1])]
        dates = outside if outside.size else dates  # a gap never takes a sensor's last date
        count = min(options.dates, max(1, round(options.keep * len(dates))), len(dates))
        kept = np.sort(rng.permutation(dates)[:count])
        chosen = np.concatenate([kept, np.zeros(options.dates - count, int)])  # [K]
        shown = np.arange(options.dates) < count
        picked = track.pick(name, np.array([pixel]), chosen[None], shown[None])
        view.update({k: v[0] for k, v in picked.items()})
    return view


def _gap(dates: np.ndarray, options: Series, rng: np.random.Generator) -> tuple[int, int]:
    """First day of a gap within the span of ``dates``, and the day after it; empty where there is none."""
    start = int(rng.integers(dates.min(), dates.max(), endpoint=True))
    return start, start + options.window_days * bool(rng.random() < options.window_probability)


def collate(drawn: Sequence[Drawn]) -> Batch:
    """Join pixels, view-major: standardised already, so the device has nothing left to compute."""
    rows = [d.views[i] for i in range(VIEWS) for d in drawn]
    view: View = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    labels = sorted({label for d in drawn for label in d.labels})
    return Batch(
        {VIEW: view},
        torch.tensor([d.position for d in drawn]),
        [d.key for d in drawn],
        {label: torch.tensor([d.labels.get(label, -1) for d in drawn]) for label in labels},
    )
