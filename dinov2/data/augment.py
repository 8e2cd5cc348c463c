"""Radiometric augmentation in physical units: gains for light, decibels for radar, nothing for metres and kelvin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LIGHT = ("reflectance", "radiance", "dn")  # units in which zero means dark: a gain is a change of illumination


@dataclass(frozen=True)
class Augment:
    """What is changed in a view besides where it lies and which bands it shows."""

    flip: bool = True  # upside down and left-right, each with probability 1/2
    jitter_probability: float = 0.8  # of changing brightness, contrast and dB level of a crop
    brightness: float = 0.2  # light: gain of a crop, uniform in 1 -+ brightness
    band_gain: float = 0.05  # light: a further gain per band, uniform in 1 -+ band_gain
    contrast: float = 0.2  # light: spread about the band's mean in the crop, uniform in 1 -+ contrast
    db_shift: float = 1.0  # radar: level of a crop, uniform in -+ db_shift dB
    speckle_looks: float = 8.0  # radar: number of looks of the multiplicative speckle; 0 = none
    simulate: float = 0.0  # probability that a hyperspectral crop shows simulated broad bands


def draw_jitter(augment: Augment, units: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """``[C, 3]`` float32 (gain, contrast, shift) for channels in ``units``; 1, 1, 0 where nothing changes."""
    rows = np.tile(np.array([1, 1, 0], np.float32), (len(units), 1))
    if rng.random() >= augment.jitter_probability:
        return rows
    gain, contrast = 1 + rng.uniform(-1, 1, 2) * (augment.brightness, augment.contrast)
    shift = rng.uniform(-1, 1) * augment.db_shift
    bands = 1 + rng.uniform(-1, 1, len(units)) * augment.band_gain
    for c, unit in enumerate(units):
        if unit in LIGHT:
            rows[c] = gain * bands[c], contrast, 0
        elif unit == "db":
            rows[c, 2] = shift
    return rows


def _scramble(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) without visible structure: Wellons' "lowbias32" (2018)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def normal_field(keys: Tensor, height: int, width: int) -> Tensor:
    """Standard normal numbers ``[N, height, width]``, each a function of a key (int ``[N]``, 0..2^32-1) and its place.

    They depend neither on the batch nor on its padding.
    """
    pixel = torch.arange(height, device=keys.device)[:, None] << 16 | torch.arange(width, device=keys.device)  # [H, W]
    bits = _scramble(_scramble(pixel) ^ keys[:, None, None])  # [N, H, W]
    uniform = ((bits >> 9).float() + 0.5) / 2**23  # exact in float32, never 0 or 1
    return torch.special.ndtri(uniform)


def speckle_db(keys: Tensor, height: int, width: int, looks: float) -> Tensor:
    """Speckle in dB, ``[N, height, width]``: power noise of mean 1 and variance 1/looks, as multi-look SAR has it.

    ``keys`` as of :func:`normal_field`. Gamma(L)/L from a normal number by Wilson & Hilferty (1931):
    ``(1 - 1/(9L) + z / (3 sqrt(L)))^3``.
    """
    normal = normal_field(keys, height, width)
    root = (1 - 1 / (9 * looks) + normal / (3 * looks**0.5)).clamp(min=0.05)  # below 0.05 only for very few looks
    return 30 * root.log10()  # 10 log10(root^3)
