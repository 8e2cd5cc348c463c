import numpy as np
import pytest
import rasterio

from eval.datasets import build_dataset
from eval.datasets.base import IGNORE

pytestmark = pytest.mark.realdata


def test_enmap_potsdam_with_its_own_lists(realdata):
    dataset = build_dataset({"name": "enmap_potsdam", "root": str(realdata / "enmap")})
    assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [14, 2, 2]
    assert set(dataset.splits["test"].keys) == {"enmap_potsdam_tile_160_96", "enmap_potsdam_tile_96_32"}
    assert len(dataset.specs[0].bands) == 218
    sample, truth = dataset.splits["test"][0], dataset.splits["test"].target(0)
    with rasterio.open(realdata / f"enmap/images/{sample.key}.tif") as raster:
        stored = raster.read()
        assert all(raster.tags(i)["bbl"] == "0" for i in range(130, 136))
    np.testing.assert_array_equal(sample.images["enmap-30m"], np.delete(stored, slice(129, 135), 0))
    with rasterio.open(realdata / f"enmap/labels/{sample.key}.tif") as raster:
        labels = raster.read(1)
    np.testing.assert_array_equal(truth, np.where(labels == 0, IGNORE, labels - 1))
    means = [mean for mean, _ in dataset.normalisation().table["enmap"].values()]
    assert 0 < min(means) and max(means) < 0.6  # reflectance: no nodata among the numbers


def test_sen1floods11_chip_in_tiles_with_a_spatial_split(realdata):
    layers = {"s2": {"path": "S2/{id}_S2Hand.tif"}, "s1": {"path": "S1/{id}_S1Hand.tif"}}
    given = {"layers": layers, "target": {"path": "Labels/{id}_LabelHand.tif"}, "train": None, "val": 0.2, "test": 0.2}
    given |= {"tile": 64, "split_by": "block", "block": 0.0115}  # degrees: two tiles
    dataset = build_dataset({"name": "sen1floods11", "root": str(realdata / "sen1floods11"), **given})
    assert sum(map(len, dataset.splits.values())) == 64
    with rasterio.open(realdata / "sen1floods11/S2/Spain_7370579_S2Hand.tif") as raster:
        stored = raster.read()
    with rasterio.open(realdata / "sen1floods11/Labels/Spain_7370579_LabelHand.tif") as raster:
        labels = raster.read(1)
    counted = 0
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            y, x = (int(part) for part in key.split("_r")[1].split("c"))
            window = np.s_[y : y + 64, x : x + 64]
            np.testing.assert_array_equal(split[i].images["sentinel2_l1c-10m"], stored[:, *window])
            np.testing.assert_array_equal(split.target(i), labels[window])
            counted += int((split.target(i) == 1).sum())
    assert counted == int((labels == 1).sum()) > 0
    radar = dataset.normalisation().table["sentinel1_grd"]
    assert -25 < radar["VH"][0] < radar["VV"][0] < 0


def test_terramesh_land_cover(realdata):
    given = {"images": ["sentinel2_l2a", "sentinel1_rtc"], "tile": 32, "test": ["433D_629L_3_1"], "val": 0.2}
    dataset = build_dataset(
        {"name": "terramesh_landcover", "root": str(realdata / "terramesh"), **given, "val_by": "key"}
    )
    assert sum(map(len, dataset.splits.values())) == 245
    assert len(dataset.splits["test"]) == 49
    assert [spec.unit for spec in dataset.specs] == ["reflectance", "db"]
    found = {
        int(v) for split in dataset.splits.values() for i in range(0, len(split), 7) for v in np.unique(split.target(i))
    }
    assert found <= {IGNORE, *range(9)} and len(found) > 4
    sample = dataset.splits["test"][0]
    assert sample.images["sentinel1_rtc-10m"].shape == (2, 32, 32)
