"""Labels that are the classes in a map, and broad bands simulated from narrow ones."""

import numpy as np
import pytest
import rasterio
from sklearn.linear_model import LogisticRegression

from dinov2.sensors import SENSORS
from eval.datasets import build_dataset, defaults

CODES = (112, 121, 211, 311, 512)  # of classes 0, 1, 2, 8, 17
CLASSES = (0, 1, 2, 8, 17)
BANDS = defaults("spectral_earth_corine")["layers"]["enmap"]["bands"]


def centres(spec_bands):
    return np.array([SENSORS["enmap"].band(name).centre_nm for name in spec_bands])


@pytest.fixture
def root(tmp_path, tif):
    """Places with two dates each: flat spectra whose level says the one class of the map; codes without a class."""
    lists = {"train": [], "val": [], "test": []}
    for i in range(40):
        level = 1000 + 500 * (i % 5)
        code = np.full((6, 6), CODES[i % 5], np.uint16)
        code[0, :3] = 999, 122, 334  # nothing, roads, burnt: no label
        for date in ("20220601", "20220720"):
            image = np.full((202, 6, 6), level, np.int16)
            image[5, 5, 5] = -32768
            tif(tmp_path / f"enmap/p{i:03d}/img_{date}.tif", image, nodata=-32768, pixel=30)
            if date != "20220720" or i:  # an image that is in no list may lack its map
                tif(tmp_path / f"corine/p{i:03d}/img_{date}.tif", code, pixel=30)
                lists["test" if i >= 30 else "val" if i >= 25 else "train"].append(f"p{i:03d}/img_{date}.tif")
    for name, entries in lists.items():
        (tmp_path / "splits/corine").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"splits/corine/{name}.txt").write_text("\n".join(entries))
    return tmp_path


def build(root, **changes):
    return build_dataset({"name": "spectral_earth_corine", "root": str(root), **changes})


def test_labels_are_the_classes_in_the_map(root):
    dataset = build(root)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 49, "val": 10, "test": 20}
    for split in dataset.splits.values():
        assert not split.dense
        for key, row in zip(split.keys, split.labels, strict=True):
            assert row.nonzero()[:, 0].tolist() == [CLASSES[int(key[1:4]) % 5]]
    sample = dataset.splits["train"][0]
    with rasterio.open(root / "enmap/p000/img_20220601.tif") as raster:
        np.testing.assert_array_equal(sample.images["enmap-30m"], raster.read())
    assert sample.key == "p000_img_20220601" and len(sample.specs["enmap-30m"].bands) == 202


def test_a_probe_learns_them(root):
    splits = build(root).splits
    (x, y), (x_test, y_test) = (
        (
            np.stack([s[i].images["enmap-30m"][:, :5].mean((1, 2)) for i in range(len(s))]) / 1000,
            s.labels.int().argmax(1),
        )
        for s in (splits["train"], splits["test"])
    )
    assert (LogisticRegression(C=1e4, max_iter=2000).fit(x, y).predict(x_test) == y_test.numpy()).all()


def test_a_map_that_changes_in_place_changes_the_labels(root, tif, monkeypatch):
    monkeypatch.setattr("eval.datasets.listing.SETTLED_NS", 0)  # the listing is kept at once
    before = build(root)
    tif(root / "corine/p000/img_20220601.tif", np.full((6, 6), 523, np.uint16), pixel=30)
    again = build(root)
    assert again.splits["train"].labels[0].nonzero()[:, 0].tolist() == [18]
    assert again.split_hash != before.split_hash


def test_sentinel_2_is_simulated_from_flat_and_sloping_spectra(root, tif):
    slope = np.round(centres(BANDS)).astype(np.int16)[:, None, None] * np.ones((1, 6, 6), np.int16)
    slope[40, 2, 2] = -32768  # seen by the red bands alone
    tif(root / "enmap/p001/img_20220601.tif", slope, nodata=-32768, pixel=30)
    dataset = build(root, layers={"enmap": {"simulate": "sentinel2_l2a"}})
    split = dataset.splits["train"]
    assert dataset.images == ["sentinel2_l2a-30m"] and len(dataset.band_names) == 12
    flat, sloping = (split[split.keys.index(f"p{i:03d}_img_20220601")] for i in (0, 1))
    image, spec = flat.images["sentinel2_l2a-30m"], flat.specs["sentinel2_l2a-30m"]
    assert image.dtype == np.float32 and spec.unit == "reflectance"
    np.testing.assert_allclose(image[:, 0], 0.1, rtol=1e-5)
    image = sloping.images["sentinel2_l2a-30m"]
    broad = np.array([band.centre_nm for band in spec.band_objects])
    inside = [b not in ("B01", "B09") for b in spec.bands]  # at the spectrum's edge, and where water vapour was cut out
    np.testing.assert_allclose(image[inside, 0, 0], broad[inside] * 1e-4, rtol=0.01)
    unseen = np.isnan(image[:, 2, 2])
    assert unseen[spec.bands.index("B04")] and not unseen[spec.bands.index("B11")]


@pytest.mark.parametrize("sensor", ["sentinel1_grd", "dem"])
def test_radar_is_not_simulated(root, sensor):
    split = build(root, layers={"enmap": {"simulate": sensor}}).splits["train"]
    with pytest.raises(ValueError, match=rf"layer\.simulate: {sensor}/\w+ has no wavelength"):
        split[0]


def test_a_list_that_names_what_is_not_there(root):
    with open(root / "splits/corine/val.txt", "a") as file:
        file.write("\np999/img_20220601.tif")
    with pytest.raises(ValueError, match=r"val\.txt lists 'p999/img_20220601\.tif', which is missing"):
        build(root)
