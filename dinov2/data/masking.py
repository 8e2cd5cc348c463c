"""Which patches of a view are hidden: drawn per sample, so that no mask depends on the batch or the rank."""

from __future__ import annotations

import math

import numpy as np

from dinov2.data.batch import MaskSpec

MIN_BLOCK = 4  # patches
MIN_ASPECT = 0.3
ATTEMPTS = 10


def draw_mask(spec: MaskSpec, size: int, rng: np.random.Generator) -> np.ndarray:
    """Bool ``[L]``, True = hidden, for a view of ``size`` pixels with ``L = (size / patch_size)^2`` patches."""
    if size % spec.patch_size:
        raise ValueError(f"view size {size} is not a multiple of the mask's patch size {spec.patch_size}")
    side = size // spec.patch_size
    if spec.kind == "random":
        return random_mask(side, spec.ratio, rng)
    if spec.kind == "block":
        return block_mask(side, spec.probability, spec.ratio_range, rng)
    raise ValueError(f"mask kind {spec.kind!r} is neither 'random' nor 'block'")


def random_mask(side: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Exactly ``round(ratio * L)`` hidden patches (MAE, He et al. 2022)."""
    mask = np.zeros(side * side, bool)
    mask[rng.permutation(mask.size)[: round(ratio * mask.size)]] = True
    return mask


def block_mask(side: int, probability: float, ratio_range: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Rectangles until a drawn share is hidden (BEiT, Bao et al. 2022, algorithm 1; iBOT masks only some samples).

    Hides at most ``ratio * L`` patches, ``ratio`` uniform in ``ratio_range``; nothing with ``1 - probability``. A
    rectangle has at least ``MIN_BLOCK`` patches (fewer when fewer are left) and an aspect of 0.3 to 1 / 0.3; the
    masking ends when ``ATTEMPTS`` rectangles in a row do not fit.
    """
    mask = np.zeros((side, side), bool)
    if rng.random() >= probability:
        return mask.ravel()
    left = int(rng.uniform(*ratio_range) * mask.size)
    failed = 0
    while left > 0 and failed < ATTEMPTS:
        area = rng.uniform(min(MIN_BLOCK, left), left)
        aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), -math.log(MIN_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        new = 0
        if 0 < height <= side and 0 < width <= side:
            top, start = rng.integers(side - height + 1), rng.integers(side - width + 1)
            block = mask[top : top + height, start : start + width]
            new = block.size - int(block.sum())
        if 0 < new <= left:
            block[:] = True
            left -= new
            failed = 0
        else:
            failed += 1
    return mask.ravel()
