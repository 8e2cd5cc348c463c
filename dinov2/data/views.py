"""Views: what a loader worker draws from a sample (``draw``, ``full_view``), and what the device makes of it.

The path of a pixel: ``draw`` picks sensor, bands, box, flips and jitter and ships the stored numbers of just those
pixels; ``collate`` joins samples; ``render`` computes on the device. Every random number comes from a counter-based
generator keyed on (seed, epoch, global sample position, view, crop): never on rank, worker or batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from dinov2.data.augment import Augment, draw_jitter
from dinov2.data.batch import ViewSpec
from dinov2.data.channels import Channels, select
from dinov2.data.collate import RawBatch, RawCrop, RawSample, RawView, collate
from dinov2.data.crops import WHOLE, coarsest_grid, draw_box
from dinov2.data.masking import draw_mask
from dinov2.data.render import render, render_sample
from dinov2.data.sample import Sample
from dinov2.data.simulate import is_hyperspectral
from dinov2.data.stats import Normalisation
from dinov2.sensors import suggest

__all__ = [
    "Augment", "RawBatch", "RawSample",
    "collate", "dates", "draw", "full_view", "render", "render_sample", "view_width",
]  # fmt: skip

WIDTHS = (2, 4, 8, 13, 32, 64, 224)  # channels of a view after padding
MAX_NODATA = 0.9  # of a crop's pixels; more is drawn again
REDRAWS = 10

Key = tuple[int, int, int]  # seed, epoch, global sample position


def view_width(spec: ViewSpec) -> int:
    """Channels to which every view of ``spec`` is padded: the same on all ranks in all steps.

    Views of a fixed number of bands are not padded, for encoders that take just so many.
    """
    if spec.bands[1] > WIDTHS[-1]:
        raise ValueError(f"the {spec.name} views show up to {spec.bands[1]} bands; at most {WIDTHS[-1]} are possible")
    return spec.bands[1] if spec.bands[0] == spec.bands[1] else next(w for w in WIDTHS if w >= spec.bands[1])


def generator(key: Key, view: str, crop: int) -> np.random.Generator:
    """An independent stream of random numbers for every (seed, epoch, position, view, crop)."""
    seed, epoch, position = key
    counter = [0, position, zlib.crc32(view.encode()), crop]  # a stream advances in the first word only
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=counter))


def draw(sample: Sample, specs: Sequence[ViewSpec], augment: Augment, norm: Normalisation, key: Key) -> RawSample:
    """Draw all views of one sample; ``key`` is (seed, epoch, global sample position).

    Raises ValueError, naming sample, image and band, for a pixel that is neither finite nor nodata, for images whose
    grids do not nest, and for bands without statistics.
    """
    sample.check_finite()
    grid = coarsest_grid(sample)
    views = {}
    for spec in specs:
        crops = []
        for i, names in enumerate(_choose_sensors(sample, spec, generator(key, spec.name, 0))):
            rng = generator(key, spec.name, 1 + i)
            channels = _draw_channels(sample, names, spec, augment.simulate, norm, rng)
            crops.append(_draw_crop(channels, _draw_pixels(channels, grid, spec.scale, rng), spec, augment, rng))
        views[spec.name] = RawView(tuple(crops), (spec.size, spec.size), view_width(spec))
    return RawSample(sample.key, key[2], views, _labels(sample))


def full_view(
    sample: Sample,
    *,
    images: Sequence[str] | None = None,
    bands: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    norm: Normalisation,
    position: int = 0,
    frames: int = 1,
) -> RawSample:
    """The whole footprint without augmentation as the one view "image", for evaluation.

    Channels are the bands of ``images`` (all by default) one after the other, or just ``bands`` in this order; pixels
    are those of the finest of these images, or ``size`` (side, or height and width). The view has ``frames`` crops: a
    time series one for each date, a shorter one its last date again (see :func:`dates`). Raises as :func:`draw` does,
    and for an unknown image or band and a longer series.
    """
    sample.check_finite()
    names = list(sample.images) if images is None else list(images)
    for name in names:
        if name not in sample.images:
            raise ValueError(f"sample {sample.key!r} has no image {name!r}; it has {', '.join(sample.images)}")
    count = dates(sample, names)
    if count > frames:
        raise ValueError(f"sample {sample.key!r} is a time series of {count} dates; at most {frames} are taken here")
    found = _named(sample, names, bands)
    every = [select(sample, found, norm, min(date, count - 1)) for date in range(frames)]
    finest = max((c.image.shape[-2:] for c in every[0]), key=lambda shape: shape[0])
    shape = finest if size is None else (size, size) if isinstance(size, int) else size
    untouched = Augment(flip=False, jitter_probability=0, speckle_looks=0)
    view = ViewSpec("image", frames, shape[0], (1, 1), (len(found), len(found)))
    rng = generator((0, 0, position), view.name, 0)
    crops = [_draw_crop(channels, [c.cut(WHOLE) for c in channels], view, untouched, rng) for channels in every]
    raw = RawView(tuple(crops), shape, len(found))
    return RawSample(sample.key, position, {view.name: raw}, _labels(sample))


def dates(sample: Sample, names: Sequence[str]) -> int:
    """How many dates these images have, 1 where none is a series; ValueError where series differ in number."""
    series = [n for n in names if sample.images[n].ndim == 4]
    lengths = {sample.images[n].shape[0] for n in series}
    if len(lengths) > 1:
        raise ValueError(f"sample {sample.key!r}: images {', '.join(series)} differ in number of dates")
    return max(lengths, default=1)


def _labels(sample: Sample) -> dict[str, int]:
    return {name: int(value) for name, value in sample.labels.items() if isinstance(value, int | np.integer)}


def _named(sample: Sample, names: Sequence[str], bands: Sequence[str] | None = None) -> list[tuple[str, int]]:
    """(image key, band index) of all bands of these images, or of the named ``bands`` in their order."""
    found = [(name, i) for name in names for i in range(len(sample.specs[name].bands))]
    if bands is None:
        return found
    known = [sample.specs[name].bands[i] for name, i in found]
    for band in bands:
        if band not in known:
            raise ValueError(
                f"sample {sample.key!r} has no band {band!r} among {', '.join(known)}{suggest(band, known)}"
            )
    return [channel for band in bands for channel, name in zip(found, known, strict=True) if name == band]


def _choose_sensors(sample: Sample, spec: ViewSpec, rng: np.random.Generator) -> list[list[str]]:
    """The image keys of one sensor for every crop; distinct sensors first where the spec asks for them."""
    sensors: dict[str, list[str]] = {}
    for name in sorted(sample.images):
        sensors.setdefault(sample.specs[name].sensor, []).append(name)
    groups = list(sensors.values())
    order = rng.integers(len(groups), size=spec.count)
    if spec.distinct:
        order = np.concatenate([rng.permutation(len(groups)), order])
    return [groups[i] for i in order[: spec.count]]


def _draw_date(sample: Sample, names: Sequence[str], rng: np.random.Generator) -> int:
    """One date of a sensor's time series at random, among those that are not nodata throughout."""
    series = [n for n in names if sample.images[n].ndim == 4]
    order = [int(t) for t in rng.permutation(dates(sample, names))]
    usable = (t for t in order if not all(sample.specs[n].invalid(sample.images[n][t]).all() for n in series))
    return next(usable, order[0])


def _draw_channels(
    sample: Sample, names: Sequence[str], spec: ViewSpec, simulate: float, norm: Normalisation, rng: np.random.Generator
) -> list[Channels]:
    """The channels of one crop: a subset of one sensor's bands, or broad bands simulated from a hyperspectral image."""
    date = _draw_date(sample, names, rng)
    broad = [n for n in names if is_hyperspectral(sample.specs[n])] if rng.random() < simulate else []
    if broad:
        count = int(rng.integers(*spec.bands, endpoint=True))
        return [select(sample, _named(sample, broad[:1]), norm, date)[0].mixed(count, rng)]
    found = _named(sample, names)
    lo, hi = (min(limit, len(found)) for limit in spec.bands)
    chosen = np.sort(rng.permutation(len(found))[: rng.integers(lo, hi, endpoint=True)])
    return select(sample, [found[i] for i in chosen], norm, date)


def _draw_pixels(
    channels: Sequence[Channels], grid: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> list[np.ndarray]:
    """The planes of a box that is not nodata almost throughout, or of the last of several."""
    for _ in range(1 + REDRAWS):
        box = draw_box(grid, scale, rng)
        planes = [c.cut(box) for c in channels]
        if np.mean([c.nodata(p) for c, p in zip(channels, planes, strict=True)]) <= MAX_NODATA:
            break
    return planes


def _draw_crop(
    channels: Sequence[Channels],
    planes: Sequence[np.ndarray],
    spec: ViewSpec,
    augment: Augment,
    rng: np.random.Generator,
) -> RawCrop:
    """Draw all else that is random in a crop; ``planes`` as cut from ``channels``."""
    ids, units = np.empty(sum(len(c.slots) for c in channels), np.int64), {}
    for c in channels:
        ids[c.slots] = c.chn_ids
        units.update(dict.fromkeys(c.slots.tolist(), c.spec.model_unit))
    jitter = draw_jitter(augment, [units[slot] for slot in range(len(ids))], rng)
    noise = rng.integers(1 << 32, size=len(ids))
    up, left = rng.random(2) < 0.5 * augment.flip
    mask = None if spec.mask is None else draw_mask(spec.mask, spec.size, rng)
    cut = zip(channels, planes, strict=True)
    pieces = tuple(c.piece(p, jitter, noise, augment.speckle_looks) for c, p in cut)
    return RawCrop(pieces, ids, (bool(up), bool(left)), mask)
