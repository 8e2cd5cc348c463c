"""What the land is made of: each piece of land as a mixture of surfaces that follows season and wetness."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_prep.sandbox_world.conditions import Conditions
from data_prep.sandbox_world.geometry import PARCELS, Grid, blurred, lowest
from data_prep.sandbox_world.layouts import BARE, BUILT, COVERS, CROP, FOREST, MEADOW, WATER, Layout
from data_prep.sandbox_world.spectra import SURFACES, K

# crop -> (day of greatest green, days from there to half of it, day of harvest)
CROPS = {"winter cereal": (140, 45, 195), "rapeseed": (125, 45, 190), "maize": (215, 35, 270), "beet": (225, 50, 290)}
# how each surface's share answers to the coarse (soil, water) and the fine (crowns, roofs) texture fields
COARSE = {
    "green_crop": 0.20,
    "straw": -0.1,
    "bright_soil": -0.20,
    "dark_soil": 0.15,
    "broadleaf": 0.08,
    "conifer": -0.08,
}
FINE = {"broadleaf": 0.22, "conifer": 0.22, "green_crop": 0.05, "straw": 0.05, "bright_soil": 0.06, "dark_soil": 0.06,
        "asphalt": -0.2, "concrete": 0.3, "tile": 0.3}  # fmt: skip
# share of falling snow that stays in sight on water, forest, meadow, crop, bare, built: crowns and stalks stick out
SNOW_HOLD = np.array([0.0, 0.3, 0.75, 0.95, 1.0, 0.7], np.float32)


@dataclass(frozen=True)
class Land:
    """What does not change with the date (maps ``[n, n]``; tables ``[PARCELS]``; scalars of the whole chip)."""

    layout: Layout
    elevation: np.ndarray  # m, ground
    height: np.ndarray  # m, canopy and buildings above ground
    coarse: np.ndarray  # unit-variance texture
    fine: np.ndarray
    crop: np.ndarray  # index into CROPS per parcel
    vigour: np.ndarray  # per parcel
    soil: float  # 0 dark .. 1 bright
    conifer: float  # share of conifers in the forest
    turbidity: float
    garden: float  # share of green between buildings


def draw_land(layout: Layout, grid: Grid) -> Land:
    """Terrain, heights, textures and the parcels' crops."""
    rng = grid.rng
    relief, base = np.exp(rng.uniform(np.log(2.0), np.log(40.0))), rng.uniform(5, 900)
    water = (layout.cover == WATER).astype(np.float32)
    banks = np.where(
        water, 0.0, 1.0 - blurred(water, round(30.0 / grid.step))
    )  # water is level, its banks are not steep
    elevation = banks * (0.5 + relief * np.log1p(np.exp(grid.noise(260.0, octaves=3))))
    coarse, fine = grid.noise(90.0, octaves=3), grid.noise(16.0)
    height = np.zeros_like(fine)
    height[layout.cover == FOREST] = rng.uniform(8, 30)
    height *= np.clip(1.0 + 0.08 * coarse + 0.15 * fine, 0.3, 1.7)
    height[layout.cover == BUILT] = np.clip(4.0 + 5.0 * fine, 0.0, 15.0)[layout.cover == BUILT]
    favourite = rng.dirichlet(np.full(len(CROPS), 0.6))  # farms of one place grow the same few crops
    return Land(
        layout=layout,
        elevation=(base + elevation).astype(np.float32),
        height=height.astype(np.float32),
        coarse=coarse,
        fine=fine,
        crop=rng.choice(len(CROPS), PARCELS, p=favourite),
        vigour=rng.uniform(0.55, 1.0, PARCELS),
        soil=float(rng.beta(0.9, 0.9)),
        conifer=float(rng.beta(0.5, 0.5)),
        turbidity=float(rng.beta(0.6, 0.8)),
        garden=float(rng.uniform(0.1, 0.5)),
    )


# what becomes of what: clear-cut, construction, flood
CHANGES = ((FOREST, BARE), (CROP, BUILT), (MEADOW, BUILT), (CROP, WATER), (MEADOW, WATER), (BARE, BUILT))


def changed(land: Land, grid: Grid) -> tuple[Land, np.ndarray]:
    """The land after one event of ``CHANGES``, and where it happened, bool ``[n, n]`` (all False: no such cover)."""
    patch = lowest(grid.noise(100.0) + 0.3 * grid.noise(30.0), grid.rng.uniform(0.15, 0.35))
    before, after = CHANGES[grid.rng.integers(len(CHANGES))]
    where = patch & (land.layout.cover == before)
    cover = np.where(where, after, land.layout.cover).astype(np.uint8)
    height = np.where(where, 4.0 if after == BUILT else 0.0, land.height).astype(np.float32)
    return replace(land, layout=replace(land.layout, cover=cover), height=height), where


def season(day: int, start: float, end: float, width: float = 12.0) -> float:
    """1 between the days ``start`` and ``end``, 0 outside, with logistic flanks of ``width`` days."""
    return float(1 / (1 + np.exp(-(day - start) / width)) / (1 + np.exp((day - end) / width)))


def mixtures(land: Land, now: Conditions) -> np.ndarray:
    """Shares of the surfaces for every (cover, parcel), float32 ``[COVERS, PARCELS, K]``, summing to 1 without snow."""
    day, table = now.day_of_year, np.zeros((len(COVERS), PARCELS, len(SURFACES)), np.float32)
    wet = np.clip(1 - land.soil + 0.5 * (now.moisture - 0.5), 0, 1)

    def fill(cover: int, share: np.ndarray | float, **surfaces: float) -> None:
        for name, part in surfaces.items():
            table[cover, :, K[name]] += share * part

    def soil(cover: int, share: np.ndarray | float) -> None:
        fill(cover, share, dark_soil=wet, bright_soil=1 - wet)

    fill(WATER, 1.0, turbid_water=land.turbidity, clear_water=1 - land.turbidity)
    leaves = (1 - land.conifer) * (0.15 + 0.75 * season(day, 110, 300))  # bare crowns still show twigs and evergreens
    fill(FOREST, 1.0, broadleaf=leaves, conifer=0.92 * land.conifer)
    fill(FOREST, 1 - leaves - 0.92 * land.conifer, dark_soil=0.75, straw=0.25)
    grass = land.vigour * (0.35 + 0.6 * season(day, 95, 310))
    fill(MEADOW, grass, green_crop=1.0)
    fill(MEADOW, 1 - grass, straw=0.6, dark_soil=0.4)
    peak, spread, harvest = np.array(list(CROPS.values()), float)[land.crop].T
    ripe = 1 / (1 + np.exp(-(day - harvest + 25) / 8.0))  # yellow before the harvest
    green = land.vigour * np.exp(-np.log(2) * ((day - peak) / spread) ** 2) * (1 - ripe)
    stubble = (1 - green) * ripe * np.exp(-np.maximum(day - harvest - 20, 0) / 30.0)
    fill(CROP, green, green_crop=1.0)
    fill(CROP, stubble, straw=1.0)
    soil(CROP, 1 - green - stubble)
    soil(BARE, 1.0)
    fill(BUILT, 1 - land.garden, concrete=0.3, tile=0.3, asphalt=0.4)
    fill(BUILT, land.garden, green_crop=0.7, dark_soil=0.3)
    return table


def surface_maps(land: Land, now: Conditions) -> np.ndarray:
    """Share of every surface in every pixel, float32 ``[K, n, n]``: mixtures, textured, under snow where it lies."""
    maps = mixtures(land, now)[land.layout.cover, land.layout.parcel].transpose(2, 0, 1).copy()  # [K, n, n]
    for name, k in K.items():
        texture = COARSE.get(name, 0.0) * land.coarse + FINE.get(name, 0.0) * land.fine
        maps[k] *= np.maximum(1.0 + texture, 0.1)
    if now.snow_cover:
        lies = SNOW_HOLD[land.layout.cover] * np.clip(now.snow_cover + 0.15 * land.coarse, 0, 1)
        maps *= 1 - lies
        maps[K["snow"]] += lies
    return maps
