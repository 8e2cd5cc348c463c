"""Small samples whose every pixel is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet, write_shards

S2 = ImageSpec("sentinel2_l2a", 10, ("B02", "B03", "B04", "B08"), "uint16", "reflectance", 1e-4, nodata=0)
S1 = ImageSpec("sentinel1_rtc", 10, ("VV", "VH"), "float32", "linear_power", nodata=float("nan"))


def make_sample(number: int, size: int = 8, **changes: Any) -> Sample:
    """Sample ``number``: Sentinel-2 always, Sentinel-1 in two of three, a scalar, a list and a mask as labels."""
    rng = np.random.default_rng(number)
    images = {S2.key: rng.integers(0, 9000, (4, size, size), dtype=np.uint16)}
    if number % 3:
        images[S1.key] = rng.random((2, size, size), dtype=np.float32)
        images[S1.key][0, 0, 0] = np.nan
    specs = {spec.key: spec for spec in (S2, S1) if spec.key in images}
    labels = {"scene": number % 5, "shares": [0.25, 0.75], "cover": rng.integers(0, 3, (size, size), dtype=np.uint8)}
    times = {S2.key: ["2021-06-01"]}
    box = (float(number), 0.0, number + 1.0, 1.0)
    fields = {"times": times, "footprint": box, "crs": "EPSG:32632", "labels": labels, "meta": {"cell": f"c{number}"}}
    return Sample(f"s{number:04d}", images, specs, **(fields | changes))


def make_set(out: Path, samples: int = 20, per_shard: int = 6, first: int = 0, **recipe: Any) -> ShardSet:
    """A set of the samples ``first .. first + samples - 1``."""
    return write_shards((make_sample(first + i) for i in range(samples)), out, samples_per_shard=per_shard, **recipe)


def assert_equal(a: Sample, b: Sample) -> None:
    """Equal in every pixel, label and field."""
    assert a.key == b.key and set(a.images) == set(b.images) and set(a.labels) == set(b.labels)
    for name in a.images:
        assert a.images[name].dtype == b.images[name].dtype
        np.testing.assert_array_equal(a.images[name], b.images[name])
        assert repr(a.specs[name]) == repr(b.specs[name])  # repr, because nan differs from itself
    for name in a.labels:
        np.testing.assert_array_equal(a.labels[name], b.labels[name])
    assert (a.times, a.footprint, a.crs, a.meta) == (b.times, b.footprint, b.crs, b.meta)
