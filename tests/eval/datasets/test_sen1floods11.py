import pickle

import numpy as np
import pytest

from eval.datasets import build_dataset
from eval.datasets.base import IGNORE

HAND = "data/flood_events/HandLabeled"
EVENTS = ["Ghana_103272", "Spain_7370579", "India_900498", "USA_1082482", "Mekong_977338", "Bolivia_60373"]


@pytest.fixture
def root(tmp_path, tif, junk):
    """Six chips as in version 1.1: S2 int16 with nodata tag 0, S1 float32 dB with NaN, labels int16 -1, 0, 1."""
    rng = np.random.default_rng(0)
    for name in EVENTS:
        label = rng.integers(-1, 2, (16, 16)).astype(np.int16)
        s2 = rng.integers(0, 6000, (13, 16, 16)).astype(np.int16)
        s1 = rng.normal(-12, 4, (2, 16, 16)).astype(np.float32)
        s1[:, :3, 2] = np.nan
        tif(tmp_path / HAND / f"S2Hand/{name}_S2Hand.tif", s2, nodata=0, crs="EPSG:4326", corner=(5, 10), pixel=9e-5)
        tif(
            tmp_path / HAND / f"S1Hand/{name}_S1Hand.tif",
            s1,
            nodata=np.nan,
            crs="EPSG:4326",
            corner=(5, 10),
            pixel=9e-5,
        )
        tif(tmp_path / HAND / f"LabelHand/{name}_LabelHand.tif", label, crs="EPSG:4326", corner=(5, 10), pixel=9e-5)
    lists = tmp_path / "splits/flood_handlabeled"
    lists.mkdir(parents=True)
    for split, names in {"train": EVENTS[:3], "valid": EVENTS[3:4], "test": EVENTS[4:5], "bolivia": EVENTS[5:]}.items():
        lines = "".join(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n" for name in names)
        (lists / f"flood_{split}_data.csv").write_text(lines)
    junk(tmp_path)
    return tmp_path


def read(root, layer, name):
    import rasterio

    with rasterio.open(root / HAND / layer / f"{name}_{layer}.tif") as raster:
        return raster.read()


def test_samples_are_the_files_pixel_for_pixel(root):
    dataset = build_dataset({"name": "sen1floods11", "root": str(root)})
    assert (dataset.kind, dataset.classes, dataset.frames) == ("segmentation", ("land", "water"), 1)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert dataset.band_names[:2] == ["sentinel2_l1c/B01", "sentinel2_l1c/B02"]
    assert dataset.band_names[13:] == ["sentinel1_grd/VV", "sentinel1_grd/VH"]
    for split in dataset.splits.values():
        for i in range(len(split)):
            sample = split[i]
            sample.check_finite()
            name = sample.meta["id"]
            np.testing.assert_array_equal(sample.images["sentinel2_l1c-10m"], read(root, "S2Hand", name))
            np.testing.assert_array_equal(sample.images["sentinel1_grd-10m"], read(root, "S1Hand", name))
            assert sample.images["sentinel2_l1c-10m"].dtype == np.int16
            label = read(root, "LabelHand", name)[0]
            np.testing.assert_array_equal(split.target(i), np.where(label == -1, IGNORE, label))
    again = pickle.loads(pickle.dumps(dataset.splits["train"]))
    np.testing.assert_array_equal(again.target(1), dataset.splits["train"].target(1))


def test_no_number_of_sentinel_2_is_nodata_and_nan_is_in_radar(root):
    dataset = build_dataset({"name": "sen1floods11", "root": str(root)})
    assert [spec.nodata for spec in dataset.specs] == [None, pytest.approx(np.nan, nan_ok=True)]


def test_bolivia_is_another_test_region(root):
    listed = "splits/flood_handlabeled/flood_bolivia_data.csv"
    dataset = build_dataset({"name": "sen1floods11", "root": str(root), "test": listed})
    assert dataset.splits["test"].keys == ("bolivia_60373",)


def test_radar_alone(root):
    dataset = build_dataset({"name": "sen1floods11", "root": str(root), "images": ["sentinel1_grd"], "bands": ["VH"]})
    assert dataset.band_names == ["sentinel1_grd/VH"]
    assert list(dataset.splits["val"][0].images) == ["sentinel1_grd-10m"]
