"""Grids of a chip and the random fields and shapes drawn on them. All lengths in metres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

PERIOD = 32  # patterns repeat after this many cells (over 1.5 km), so draws do not depend on the sampling step
PARCELS = PERIOD * PERIOD
BSPLINE_STD = 0.479  # standard deviation of cubic B-spline interpolated white noise in two dimensions


@lru_cache(maxsize=256)
def spline_weights(n: int, step: float, knot: float) -> np.ndarray:
    """Cubic B-spline weights of ``n`` pixels ``step`` apart over knots ``knot`` apart, float32 ``[n, knots]``."""
    position = (np.arange(n) + 0.5) * step / knot
    left, t = np.floor(position).astype(int), position % 1.0
    basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0  # [4, n]
    weights = np.zeros((n, int(np.ceil(n * step / knot)) + 3), np.float32)
    for k in range(4):
        weights[np.arange(n), left + k] = basis[k]
    return weights


@lru_cache(maxsize=64)
def averaging(n: int, factor: int) -> np.ndarray:
    """The matrix that averages ``factor`` neighbouring pixels, float32 ``[n / factor, n]``."""
    return np.kron(np.eye(n // factor, dtype=np.float32), np.full((1, factor), 1.0 / factor, np.float32))


def average(maps: np.ndarray, factor: int) -> np.ndarray:
    """Area average of ``[..., n, n]`` over blocks of ``factor`` x ``factor`` pixels."""
    if factor == 1:
        return maps
    p = averaging(maps.shape[-1], factor)
    return p @ maps @ p.T


@lru_cache(maxsize=16)
def _blur(n: int, radius: int) -> np.ndarray:
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    weights = np.maximum(radius + 1.0 - distance, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def blurred(field: np.ndarray, radius: int) -> np.ndarray:
    """``field [n, n]`` under a tent of ``radius`` pixels."""
    b = _blur(field.shape[0], radius)
    return b @ field @ b.T


@dataclass(frozen=True)
class Grid:
    """``n`` x ``n`` pixels of ``step`` metres and a random generator; what is drawn does not depend on ``step``."""

    n: int
    step: float
    rng: np.random.Generator

    @cached_property
    def xy(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres (x to the right, y downwards) from the centre of the chip, float32 ``[n, n]`` each."""
        axis = ((np.arange(self.n) + 0.5 - self.n / 2) * self.step).astype(np.float32)
        return np.meshgrid(axis, axis)

    @property
    def side(self) -> float:
        """Side of the chip in metres."""
        return self.n * self.step

    def noise(self, knot: float, octaves: int = 1) -> np.ndarray:
        """Smooth noise of unit variance, features ``knot`` metres wide; each octave halves size and amplitude."""
        total = np.zeros((self.n, self.n), np.float32)
        for octave in range(octaves):
            w = spline_weights(self.n, self.step, knot / 2**octave)
            z = self.rng.standard_normal((w.shape[1], w.shape[1]), dtype=np.float32)
            total += (0.5**octave / BSPLINE_STD) * (w @ z @ w.T)
        return total / np.float32(np.sqrt(sum(0.25**o for o in range(octaves))))

    def rotated(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in a frame turned by a random angle and moved by a random offset."""
        x, y = self.xy
        angle, (dx, dy) = self.rng.uniform(0, np.pi), self.rng.uniform(-self.side, self.side, 2)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return c * x + s * y + np.float32(dx), -s * x + c * y + np.float32(dy)

    def scattered(self, spacing: float, jitter: float, spread: float = 0.0) -> np.ndarray:
        """Distance to the nearest of the points of a turned square lattice, each moved by up to ``jitter`` spacings.

        Every point measures with a length of its own, ``1 +- spread``: thresholds then draw discs of several sizes.
        """
        u, v = self.rotated()
        i, j = np.floor(u / spacing).astype(int), np.floor(v / spacing).astype(int)
        points = self.rng.uniform(0.5 - jitter, 0.5 + jitter, (2, PERIOD, PERIOD)).astype(np.float32)
        weight = self.rng.uniform(1 - spread, 1 + spread, (PERIOD, PERIOD)).astype(np.float32) ** -2
        nearest = np.full(u.shape, np.inf, np.float32)
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                cell = (i + di) % PERIOD, (j + dj) % PERIOD
                pu, pv = points[:, *cell]
                du, dv = (i + di + pu) * spacing - u, (j + dj + pv) * spacing - v
                np.minimum(nearest, weight[cell] * (du * du + dv * dv).astype(np.float32), out=nearest)
        return np.sqrt(nearest)

    def parcels(self, width: float, bend: float = 6.0) -> np.ndarray:
        """Numbers below ``PARCELS`` of the parcels of a turned, slightly bent brick pattern, int ``[n, n]``."""
        u, v = self.rotated()
        row = np.floor((u + bend * self.noise(200.0)) / width).astype(int) % PERIOD
        length = width * self.rng.uniform(0.9, 2.2, PERIOD).astype(np.float32)
        start = self.rng.uniform(0, 1, PERIOD).astype(np.float32)
        return row * PERIOD + np.floor(v / length[row] + start[row]).astype(int) % PERIOD


def lowest(field: np.ndarray, fraction: float) -> np.ndarray:
    """True on the ``fraction`` of pixels where ``field`` is smallest."""
    k = min(int(fraction * field.size), field.size - 1)
    return field < np.partition(field, k, axis=None)[k]
