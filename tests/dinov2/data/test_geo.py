import math
from dataclasses import replace

import numpy as np
import pytest

from dinov2.data.geo import GeoTargets, check_labels, position
from dinov2.data.sample import ImageSpec, Sample

SPEC = ImageSpec("sentinel2_l2a", 10, ("B02",), "uint16", "reflectance", 1e-4, 0.0, 0)
TARGETS = GeoTargets("cloud", "built", "cover", (10, 20, 95), True)


def sample(**labels) -> Sample:
    image = {SPEC.key: np.ones((1, 2, 4), np.uint16)}
    return Sample("a", image, {SPEC.key: SPEC}, {}, (10.0, 40.0, 20.0, 50.0), "EPSG:4326", labels)


def test_targets_by_hand() -> None:
    cover = np.array([[10, 10, 20, 95], [10, 0, 0, 30]])  # three of 10, one of 20, one of 95, three of no class
    built = np.array([[0, 50, 100, 255], [255, 255, 50, 0]])
    cloud = np.array([[0, 0, 0, 0], [1, 1, 3, 2]])
    found = TARGETS(sample(cover=cover, built=built, cloud=cloud))
    assert {k: v.dtype.name for k, v in found.items()} == dict.fromkeys(found, "float32")
    np.testing.assert_allclose(found["landcover"], [0.6, 0.2, 0.2])
    np.testing.assert_allclose(found["buildings"], [0.4])  # of 0, 50, 100, 50, 0 percent
    np.testing.assert_allclose(found["clouds"], [0.5, 0.25, 0.125, 0.125])
    weights = {name: float(found[f"{name}_weight"][0]) for name in ("landcover", "buildings", "clouds", "coords")}
    assert weights == {"landcover": 0.625, "buildings": 0.625, "clouds": 1.0, "coords": 1.0}
    assert TARGETS.widths == {name: len(found[name]) for name in TARGETS.widths}


def test_position_by_hand() -> None:
    """Latitude 45, longitude 15: three quarters of a turn from pole to pole, 195 degrees from the date line."""
    turn = 2 * math.pi * 195 / 360
    wanted = [0.0, 0.5, (math.sin(turn) + 1) / 2, (math.cos(turn) + 1) / 2]
    np.testing.assert_allclose(position(sample()), wanted, atol=1e-12)
    metres = replace(sample(), footprint=(499_000.0, 4_982_950.0, 501_000.0, 4_982_951.0), crs="EPSG:32633")
    np.testing.assert_allclose(position(metres), wanted, atol=1e-5)  # on the zone's central meridian
    with pytest.raises(ValueError, match="sample 'a' has no position to predict: set objective.coords=false"):
        position(replace(sample(), footprint=None))


def test_what_a_sample_lacks_weighs_nothing() -> None:
    found = TARGETS(sample(cover=np.zeros((2, 4)), built=np.full((2, 4), 255)))
    assert [found[f"{name}_weight"][0] for name in ("landcover", "buildings", "clouds")] == [0, 0, 0]
    assert all(np.isfinite(value).all() for value in found.values())
    with pytest.raises(ValueError, match="label 'cover': geo_aware takes a map .*, not an array of 0 axes"):
        TARGETS(sample(cover=3))


def test_labels_that_the_shards_lack_are_named() -> None:
    check_labels(TARGETS, {"cloud": {}, "built": {}, "cover": {}, "more": {}})
    with pytest.raises(ValueError, match="objective.buildings: the shards hold no label 'built', only cloud; prepare"):
        check_labels(TARGETS, {"cloud": {}})
    assert GeoTargets(None, None, None, (), False).labels == {}
