"""What the world's surfaces look like: reflectance at 400-2500 nm and radar backscatter, seen through any band.

The curves are piecewise linear through hand-set points with the shapes and magnitudes of published spectral libraries
(ECOSTRESS/ASTER; Kokaly et al. 2017, USGS Data Series 1035): chlorophyll absorption, red edge, leaf water at 1450
and 1940 nm, clay at 2200 nm, snow dark in the short-wave infrared. Backscatter is typical C-band gamma0 at 38 degrees
(Ulaby and Dobson 1989, Handbook of Radar Scattering Statistics for Terrain).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from dinov2.sensors import FWHM_PER_SIGMA, Band

WAVELENGTHS = np.arange(350.0, 2601.0, 1.0)
VISIBLE_TO_SWIR = (400.0, 2500.0)  # centre wavelengths (nm) that the world can be rendered for
VAPOUR = ((1350.0, 1410.0), (1810.0, 1950.0))  # nm, opaque on the way from the sun to the ground and back

# surface -> {wavelength nm: reflectance}
REFLECTANCE: dict[str, dict[int, float]] = {
    "clear_water": {400: 0.045, 480: 0.05, 560: 0.04, 650: 0.018, 720: 0.01, 900: 0.006, 1600: 0.003, 2500: 0.002},
    "turbid_water": {400: 0.06, 480: 0.09, 570: 0.14, 650: 0.11, 700: 0.10, 750: 0.05, 820: 0.05, 950: 0.02,
                     1200: 0.01, 1600: 0.005, 2500: 0.003},
    "broadleaf": {400: 0.025, 500: 0.03, 550: 0.07, 600: 0.045, 675: 0.025, 690: 0.045, 710: 0.15, 740: 0.33, 780: 0.42,
                  900: 0.44, 970: 0.41, 1080: 0.43, 1200: 0.36, 1280: 0.37, 1450: 0.11, 1650: 0.23, 1800: 0.18,
                  1940: 0.05, 2200: 0.11, 2400: 0.05, 2500: 0.04},
    "conifer": {400: 0.018, 500: 0.02, 550: 0.04, 600: 0.028, 675: 0.018, 690: 0.028, 710: 0.09, 740: 0.19, 780: 0.24,
                900: 0.26, 970: 0.23, 1080: 0.25, 1200: 0.19, 1280: 0.20, 1450: 0.05, 1650: 0.11, 1800: 0.09,
                1940: 0.025, 2200: 0.05, 2400: 0.025, 2500: 0.02},
    "green_crop": {400: 0.03, 500: 0.04, 550: 0.10, 600: 0.06, 675: 0.03, 690: 0.06, 710: 0.21, 740: 0.42, 780: 0.52,
                   900: 0.54, 970: 0.48, 1080: 0.52, 1200: 0.41, 1280: 0.43, 1450: 0.11, 1650: 0.25, 1800: 0.19,
                   1940: 0.05, 2200: 0.12, 2400: 0.05, 2500: 0.04},
    "straw": {400: 0.07, 500: 0.13, 600: 0.21, 675: 0.26, 800: 0.34, 1100: 0.42, 1450: 0.33, 1650: 0.42, 1800: 0.38,
              1940: 0.24, 2100: 0.27, 2220: 0.31, 2330: 0.25, 2500: 0.20},
    "bright_soil": {400: 0.09, 500: 0.15, 600: 0.24, 700: 0.29, 850: 0.34, 1100: 0.40, 1400: 0.41, 1650: 0.47,
                    1940: 0.37, 2130: 0.44, 2200: 0.40, 2300: 0.42, 2500: 0.34},
    "dark_soil": {400: 0.035, 500: 0.05, 600: 0.075, 700: 0.10, 850: 0.13, 1100: 0.18, 1400: 0.18, 1650: 0.23,
                  1940: 0.15, 2130: 0.20, 2200: 0.18, 2300: 0.19, 2500: 0.15},
    "asphalt": {400: 0.07, 600: 0.10, 900: 0.13, 1650: 0.17, 2200: 0.16, 2500: 0.15},
    "concrete": {400: 0.18, 500: 0.25, 600: 0.30, 900: 0.34, 1450: 0.34, 1650: 0.38, 1940: 0.32, 2200: 0.34,
                 2500: 0.28},
    "tile": {400: 0.05, 500: 0.08, 560: 0.12, 620: 0.25, 700: 0.29, 900: 0.30, 1300: 0.36, 1650: 0.38, 2200: 0.36,
             2500: 0.32},
    "snow": {400: 0.88, 600: 0.90, 800: 0.85, 900: 0.78, 1030: 0.62, 1100: 0.68, 1270: 0.38, 1500: 0.04, 1700: 0.12,
             1830: 0.15, 2000: 0.02, 2250: 0.08, 2500: 0.03},
    "cloud": {400: 0.72, 900: 0.74, 1100: 0.70, 1380: 0.50, 1650: 0.55, 1900: 0.35, 2200: 0.42, 2500: 0.30},
}  # fmt: skip
SURFACES = tuple(name for name in REFLECTANCE if name != "cloud")  # what the ground is made of
K = {name: k for k, name in enumerate(SURFACES)}

# surface -> gamma0 in dB, co-polarised (VV, HH) and cross-polarised (VH, HV)
BACKSCATTER_DB: dict[str, tuple[float, float]] = {
    "clear_water": (-20.0, -27.5),
    "turbid_water": (-20.0, -27.5),
    "broadleaf": (-8.0, -13.5),
    "conifer": (-9.0, -14.5),
    "green_crop": (-11.0, -17.5),
    "straw": (-12.5, -20.5),
    "bright_soil": (-14.0, -23.0),
    "dark_soil": (-10.5, -20.5),
    "asphalt": (-15.0, -24.0),
    "concrete": (-1.5, -10.0),
    "tile": (-2.5, -9.5),
    "snow": (-13.0, -20.5),
}


def curve(surface: str) -> np.ndarray:
    """Reflectance of a surface (or ``cloud``) on ``WAVELENGTHS``, float64 ``[2251]``."""
    points = REFLECTANCE[surface]
    return np.interp(WAVELENGTHS, list(points), list(points.values()))


@cache
def responses(bands: tuple[Band, ...]) -> np.ndarray:
    """Normalised Gaussian spectral responses, float32 ``[C, 2251]`` on ``WAVELENGTHS``."""
    centre = np.array([b.centre_nm for b in bands])[:, None]
    sigma = np.array([b.fwhm_nm for b in bands])[:, None] / FWHM_PER_SIGMA
    response = np.exp(-0.5 * ((WAVELENGTHS - centre) / sigma) ** 2)
    return (response / response.sum(1, keepdims=True)).astype(np.float32)


@cache
def band_reflectance(bands: tuple[Band, ...], surfaces: Sequence[str] = SURFACES) -> np.ndarray:
    """Reflectance of every surface seen through every optical band, float32 ``[C, K]``."""
    curves = np.stack([curve(s) for s in surfaces], axis=1).astype(np.float32)  # [2251, K]
    return responses(bands) @ curves


def vapour_transmission(bands: Sequence[Band]) -> np.ndarray:
    """Share of light that water vapour lets through, ``[C]``: nearly nothing in ``VAPOUR`` (cirrus band included)."""
    return np.array([0.01 if any(low < (b.centre_nm or 0) < high for low, high in VAPOUR) else 1.0 for b in bands])


def backscatter(bands: Sequence[Band]) -> np.ndarray:
    """Linear-power gamma0 of every surface in every radar band, float32 ``[C, K]``."""
    cross = [int(b.polarisation in ("VH", "HV")) for b in bands]
    table = np.array([BACKSCATTER_DB[s] for s in SURFACES], np.float32)  # [K, 2]
    return 10.0 ** (table[:, cross].T / 10.0)
