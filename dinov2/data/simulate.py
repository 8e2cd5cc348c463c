"""Broad bands simulated from a hyperspectral image (Panopticon's CHN_SIM, Waldmann et al. 2025).

A target band with Gaussian response (mu, sigma) is a weighted sum of the image's narrow bands, whose responses are
Gaussians of unit area. The weight of band c is the overlap ``integral(g_c g_t)``, in closed form (a Gaussian of the
distance with the summed variance), times the piece of the spectrum for which the band stands, and the weights are
divided by their sum: a flat spectrum is kept and a linear one has its value at mu. docs/decisions/0005-views.md
compares this with the published weights.
"""

from __future__ import annotations

import numpy as np

from dinov2.data.sample import ImageSpec
from dinov2.sensors import FWHM_PER_SIGMA

MIN_BANDS = 31  # fewer optical bands are not hyperspectral
SIGMA = (5.0, 40.0)  # nm
WINDOWS = ((418.0, 1282.0), (1530.0, 1728.0), (1977.0, 2445.0))  # nm, between the water absorption bands
REACH = 3.0  # a target lies within its window up to this many sigma
THRESHOLD = 1e-5  # smaller weights are dropped
MAX_EXTENT = 2 * FWHM_PER_SIGMA  # of a band in units of its sigma


def is_hyperspectral(spec: ImageSpec) -> bool:
    """Whether the image has enough optical bands to simulate others from."""
    return len(spec.bands) >= MIN_BANDS and all(b.centre_nm is not None for b in spec.band_objects)


def draw_targets(centres: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``[count, 2]`` target (mu, sigma) in nm, uniform over the windows that the bands' ``centres`` cover."""
    low = np.maximum([w[0] for w in WINDOWS], centres.min())
    high = np.minimum([w[1] for w in WINDOWS], centres.max())
    widest = max(float((high - low).max()) / (2 * REACH), 0)  # a short spectrum takes narrower targets only
    sigma = rng.uniform(min(SIGMA[0], widest), min(SIGMA[1], widest), count)
    room = np.maximum(high - low - 2 * REACH * sigma[:, None], 0)  # [count, windows]: where mu may lie
    offset = rng.uniform(size=count) * room.sum(1)
    window = (offset[:, None] >= np.cumsum(room, 1)[:, :-1]).sum(1)
    before = np.cumsum(room, 1)[np.arange(count), window] - room[np.arange(count), window]
    return np.stack([low[window] + REACH * sigma + offset - before, sigma], 1)


def responses(targets: np.ndarray, centres: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """``[K, C]`` float32 weights, rows sum to one, of source bands (centre, sigma in nm) in targets (mu, sigma)."""
    order = np.argsort(centres)  # cameras may overlap: a band reaches half way to its neighbours, whichever camera's
    extent = np.empty_like(centres)
    extent[order] = np.gradient(centres[order])
    extent = np.minimum(extent, MAX_EXTENT * sigmas)  # what lies in a gap was not seen
    variance = targets[:, 1:] ** 2 + sigmas**2  # [K, C]
    weights = extent * np.exp(-((targets[:, :1] - centres) ** 2) / (2 * variance)) / np.sqrt(variance)
    weights /= weights.sum(1, keepdims=True)
    weights[weights < THRESHOLD] = 0
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def draw_responses(spec: ImageSpec, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Channel ids ``[K]`` and weights ``[K, C]`` of ``count`` bands simulated from the image's C bands."""
    bands = spec.band_objects
    centres = np.array([b.centre_nm for b in bands], np.float64)
    sigmas = np.array([b.fwhm_nm for b in bands], np.float64) / FWHM_PER_SIGMA
    targets = draw_targets(centres, count, rng)
    return targets[:, 0].astype(np.int64), responses(targets, centres, sigmas)
