from collections.abc import Callable

import numpy as np
import pytest

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.stats import Normalisation, image_stats, merge_stats
from dinov2.sensors import SENSORS

S2 = {10: ("B02", "B03", "B04", "B08"), 20: ("B05", "B06", "B07", "B8A", "B11", "B12"), 60: ("B01", "B09")}


def mixed_sample(key: str, pixels: int = 66, seed: int = 0) -> Sample:
    """Sentinel-2 in three resolutions, Sentinel-1 in linear power and a DEM over one footprint; some nodata."""
    rng = np.random.default_rng(seed)
    images, specs = {}, {}
    for gsd, bands in S2.items():
        side = pixels * 10 // gsd
        spec = ImageSpec("sentinel2_l2a", gsd, bands, "uint16", "reflectance", scale=1e-4, offset=-0.1, nodata=0)
        images[spec.key] = rng.integers(1000, 5000, (len(bands), side, side)).astype(np.uint16)
        specs[spec.key] = spec
    images["sentinel2_l2a-20m"][0, :3, :3] = 0
    radar = ImageSpec("sentinel1_rtc", 10, ("VV", "VH"), "float32", "linear_power", nodata=float("nan"))
    images[radar.key] = rng.gamma(4, 0.05, (2, pixels, pixels)).astype(np.float32)
    images[radar.key][0, 5, 7] = np.nan
    terrain = ImageSpec("dem", 30, ("elevation",), "int16", "metre", nodata=-32768)
    images[terrain.key] = rng.integers(0, 3000, (1, pixels // 3, pixels // 3)).astype(np.int16)
    specs |= {radar.key: radar, terrain.key: terrain}
    return Sample(key, images, specs, labels={"class": seed, "height": 3.5})


def hyperspectral_sample(key: str, pixels: int = 32, seed: int = 0) -> Sample:
    """All 224 EnMAP bands."""
    bands = SENSORS["enmap"].band_names
    spec = ImageSpec("enmap", 30, bands, "int16", "reflectance", scale=1e-4, nodata=-32768)
    values = np.random.default_rng(seed).integers(0, 6000, (len(bands), pixels, pixels)).astype(np.int16)
    values[3, 0, 0] = -32768
    return Sample(key, {spec.key: values}, {spec.key: spec})


def series_sample(key: str) -> Sample:
    """Four dates of which the first and the third are nodata throughout; date t holds values from 1000 t."""
    spec = ImageSpec("sentinel2_l2a", 10, ("B02", "B03"), "uint16", "reflectance", scale=1e-4, nodata=0)
    values = np.random.default_rng(0).integers(1, 999, (4, 2, 12, 12)).astype(np.uint16)
    values += np.arange(4, dtype=np.uint16)[:, None, None, None] * 1000
    values[[0, 2]] = 0
    return Sample(key, {spec.key: values}, {spec.key: spec})


def statistics(*samples: Sample) -> Normalisation:
    return Normalisation.from_stats(
        merge_stats([image_stats(s.images[k], s.specs[k]) for s in samples for k in s.images])
    )


@pytest.fixture
def samples() -> list[Sample]:
    """Samples of different sensors, resolutions, dtypes, sizes and dates."""
    return [
        mixed_sample("mixed0", 66, 0),
        hyperspectral_sample("enmap0"),
        mixed_sample("mixed1", 48, 1),
        series_sample("series0"),
        mixed_sample("mixed2", 96, 2),
    ]


@pytest.fixture
def norm(samples: list[Sample]) -> Normalisation:
    return statistics(*samples)


@pytest.fixture
def make_mixed() -> Callable[..., Sample]:
    return mixed_sample


@pytest.fixture
def make_hyperspectral() -> Callable[..., Sample]:
    return hyperspectral_sample


@pytest.fixture
def make_series() -> Callable[..., Sample]:
    return series_sample


@pytest.fixture
def make_norm() -> Callable[..., Normalisation]:
    return statistics
