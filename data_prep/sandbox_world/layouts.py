"""Where things are: eleven scene classes in four families, and the land cover they draw.

Classes of one family share the composition (which covers, and how much of each, is drawn before the class is looked
at) and differ in arrangement only, so the colours of a chip give away its family at best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.sandbox_world.geometry import PARCELS, Grid, lowest

COVERS = ("water", "forest", "meadow", "crop", "bare", "built")
WATER, FOREST, MEADOW, CROP, BARE, BUILT = range(len(COVERS))


# --- woodland: forest in open land ------------------------------------------------------------------------------------
def stands(grid: Grid, fraction: float) -> np.ndarray:
    """Forest in a few large stands with smooth edges."""
    return lowest(grid.noise(grid.rng.uniform(85, 190)) + 0.2 * grid.noise(30.0), fraction)


def clearings(grid: Grid, fraction: float) -> np.ndarray:
    """Forest with many round clearings."""
    spacing = grid.rng.uniform(90, 200)
    return lowest(-grid.scattered(spacing, 0.22, 0.25) + 5.0 * grid.noise(30.0), fraction)


def shelterbelts(grid: Grid, fraction: float) -> np.ndarray:
    """Forest in parallel belts."""
    u, _ = grid.rotated()
    period = grid.rng.uniform(60, 190)
    return lowest(np.cos(2 * np.pi / period * (u + 8.0 * grid.noise(160.0))) + 0.15 * grid.noise(40.0), fraction)


def plots(grid: Grid, fraction: float) -> np.ndarray:
    """Forest in rectangular plots among plots without."""
    return lowest(grid.rng.random(PARCELS).astype(np.float32)[grid.parcels(grid.rng.uniform(55, 140))], fraction)


# --- waters: water in a mixed landscape -------------------------------------------------------------------------------
def river(grid: Grid, fraction: float) -> np.ndarray:
    """One meandering river."""
    x, y = grid.xy
    angle = grid.rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    period, phase = grid.rng.uniform(260, 520), grid.rng.uniform(0, 2 * np.pi)
    centre = grid.rng.uniform(60, 130) * np.sin(2 * np.pi * along / period + phase) + grid.rng.uniform(-80, 80)
    return lowest(np.abs(across - centre + 12.0 * grid.noise(120.0)) + 2.0 * grid.noise(20.0), fraction)


def coast(grid: Grid, fraction: float) -> np.ndarray:
    """One shore line with bays."""
    x, y = grid.xy
    angle = grid.rng.uniform(0, 2 * np.pi)
    return lowest(
        x * np.cos(angle)
        + y * np.sin(angle)
        + grid.rng.uniform(30, 80) * grid.noise(grid.rng.uniform(60, 150), octaves=3),
        fraction,
    )


def ponds(grid: Grid, fraction: float) -> np.ndarray:
    """Many small round lakes."""
    return lowest(grid.scattered(grid.rng.uniform(110, 270), 0.28, 0.4) + 8.0 * grid.noise(45.0), fraction)


# --- settlements: buildings among gardens and fields ------------------------------------------------------------------
def town(grid: Grid, fraction: float) -> np.ndarray:
    """Rows of houses along the streets of a regular grid."""
    u, v = grid.rotated()
    block_u, block_v = grid.rng.uniform(75, 115, 2)
    to_street = np.minimum(np.abs((u / block_u) % 1 - 0.5) * block_u, np.abs((v / block_v) % 1 - 0.5) * block_v)
    return lowest(to_street + 1.5 * grid.noise(20.0), fraction)


def hamlets(grid: Grid, fraction: float) -> np.ndarray:
    """Farmsteads and small groups of houses, scattered."""
    return lowest(grid.scattered(grid.rng.uniform(60, 100), 0.45, 0.3) + 4.0 * grid.noise(25.0), fraction)


# --- drylands: irrigated green on bare ground -------------------------------------------------------------------------
def pivots(grid: Grid, fraction: float) -> np.ndarray:
    """Circular fields of centre-pivot irrigation."""
    return lowest(grid.scattered(grid.rng.uniform(110, 190), 0.03), fraction)


def wadis(grid: Grid, fraction: float) -> np.ndarray:
    """Green along the branches of dry channels."""
    return lowest(np.abs(grid.noise(grid.rng.uniform(70, 130), octaves=2)) + 0.05 * grid.noise(25.0), fraction)


@dataclass(frozen=True)
class Family:
    """Scene classes with one composition: ``figure`` covers a ``fraction`` (range) of the chip in a class's pattern."""

    figure: int
    ground: str  # open | mixed | dry
    fraction: tuple[float, float]
    classes: tuple[Callable[[Grid, float], np.ndarray], ...]


FAMILIES = (
    Family(FOREST, "open", (0.35, 0.65), (stands, clearings, shelterbelts, plots)),
    Family(WATER, "mixed", (0.12, 0.32), (river, coast, ponds)),
    Family(BUILT, "mixed", (0.18, 0.36), (town, hamlets)),
    Family(MEADOW, "dry", (0.25, 0.55), (pivots, wadis)),
)
PATTERNS = [(family, pattern) for family in FAMILIES for pattern in family.classes]
SCENES = tuple(pattern.__name__ for _, pattern in PATTERNS)


@dataclass(frozen=True)
class Layout:
    """``cover [n, n]`` land-cover code, ``parcel [n, n]`` number of the piece of land (below ``PARCELS``)."""

    cover: np.ndarray
    parcel: np.ndarray


def ground_cover(grid: Grid, kind: str, parcel: np.ndarray) -> np.ndarray:
    """Land cover before the figure is drawn, uint8 ``[n, n]``."""
    meadows = grid.rng.random(PARCELS) < grid.rng.uniform(0.1, 0.9)  # which parcels are meadow and not crop
    cover = np.where(meadows, MEADOW, CROP).astype(np.uint8)[parcel]
    woods, bare = grid.noise(130.0, octaves=2), grid.noise(110.0, octaves=2)
    if kind == "mixed":
        cover[woods > grid.rng.uniform(-0.3, 1.5)] = FOREST
    if kind == "dry":
        cover[:] = BARE
        cover[woods > grid.rng.uniform(1.2, 2.5)] = MEADOW
    cover[bare > 2.0] = BARE
    cover[grid.noise(18.0) > grid.rng.uniform(1.8, 3.5)] = FOREST  # hedges and lone trees
    return cover


def draw(scene: int, grid: Grid) -> Layout:
    """The layout of one scene class; everything but the pattern is drawn before the class matters."""
    family, pattern = PATTERNS[scene]
    parcel = grid.parcels(grid.rng.uniform(55, 150))
    cover = ground_cover(grid, family.ground, parcel)
    figure = pattern(grid, grid.rng.uniform(*family.fraction))
    cover[figure] = family.figure
    parcel[figure] = 0  # one piece of land
    return Layout(cover, parcel)
