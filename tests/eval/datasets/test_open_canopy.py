import json
import os

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from sklearn.linear_model import LinearRegression

from eval.datasets import build_dataset

SIDE, SQUARES = 7, {"train": [(0, 0), (0, 1)], "val": [(1, 0)], "test": [(1, 1)], "buffer": [(0, 2)]}
KM = 9.3  # metres, of the test's small squares: no whole number of pixels, as 1 km is none
SCENE = "20210406371164.tif"


def write(root, scrambled=False):
    """A scene and its heights in decimetres, squares side by side in the table."""
    rng = np.random.default_rng(0)
    height = rng.integers(0, 400, (24, 40)).astype(np.uint16)
    seen = rng.permutation(height.ravel()).reshape(height.shape) if scrambled else height
    image = np.stack([seen // 2, 255 - seen // 2, seen // 4, np.full_like(seen, 7)]).astype(np.uint8)
    for kind, array in (("spot/compressed_pansharpened_", image), ("lidar/compressed_lidar_", height[None])):
        path = root / f"2021/{kind}{SCENE}"
        path.parent.mkdir(parents=True)
        size = dict(zip(("count", "height", "width"), array.shape, strict=True), dtype=array.dtype)
        place = {"crs": "EPSG:2154", "transform": from_origin(836000, 6454000, 1.5, 1.5)}
        with rasterio.open(path, "w", driver="GTiff", **size, **place) as raster:
            raster.write(array)
    features = []
    for split, places in SQUARES.items():
        for row, column in places:
            west, north = 836000 + KM * column, 6454000 - KM * row
            ring = [[west, north - KM], [west + KM, north - KM], [west + KM, north], [west, north], [west, north - KM]]
            said = {"split": split, "lidar_year": 2021, "image_name": f"compressed_pansharpened_{SCENE}"}
            features.append({"properties": said, "geometry": {"type": "Polygon", "coordinates": [ring]}})
    (root / "geometries.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return image, height


def build(root):
    return build_dataset({"name": "open_canopy", "root": str(root), "pixels": SIDE})


def test_squares_are_cut_out_of_their_scene_at_the_nearest_pixel(tmp_path):
    image, height = write(tmp_path)
    dataset = build(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert (dataset.kind, dataset.unit) == ("regression", "m")
    for name, places in SQUARES.items():
        for i, (row, column) in enumerate(places if name != "buffer" else []):
            y, x = (round(KM * place / 1.5) for place in (row, column))
            there = (slice(y, y + SIDE), slice(x, x + SIDE))
            sample, truth = dataset.splits[name][i], dataset.splits[name].target(i)
            np.testing.assert_array_equal(sample.images["spot6-150cm"], image[:, *there])
            np.testing.assert_allclose(
                truth, height[there] / 10, rtol=1e-6
            )  # decimetres: a reader of metres errs tenfold
            assert truth.dtype == np.float32


@pytest.mark.parametrize("scrambled", [False, True])
def test_a_linear_probe_is_right_where_it_can_be_and_at_chance_where_nothing_can_be_learnt(tmp_path, scrambled):
    write(tmp_path, scrambled)
    (x, y), (x_test, y_test) = (
        (
            np.concatenate([split[i].images["spot6-150cm"].reshape(4, -1).T for i in range(len(split))]).astype(float),
            np.concatenate([split.target(i).ravel() for i in range(len(split))]),
        )
        for split in (build(tmp_path).splits[name] for name in ("train", "test"))
    )
    found = LinearRegression().fit(x, y).score(x_test, y_test)
    assert found < 0.1 if scrambled else found > 0.999


@pytest.mark.parametrize("kind", ["spot/compressed_pansharpened_", "lidar/compressed_lidar_"])
def test_a_scene_or_heights_changed_in_place_are_other_data(tmp_path, kind):
    write(tmp_path)
    before = build(tmp_path).data_hash
    assert build(tmp_path).data_hash == before
    path = tmp_path / f"2021/{kind}{SCENE}"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert build(tmp_path).data_hash != before


def test_what_is_wrong_is_said_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"geometries\.geojson is missing"):
        build(tmp_path)
    write(tmp_path)
    table = tmp_path / "geometries.geojson"
    text = table.read_text()
    table.write_text(text.replace('"test"', '"buffer"'))
    with pytest.raises(ValueError, match=r"geometries\.geojson has no square in one of train, val, test"):
        build(tmp_path)
    table.write_text(text.replace("836000", "826000"))
    with pytest.raises(ValueError, match=rf"{SCENE} does not hold the square at \(826000"):
        build(tmp_path).splits["train"][0]
    table.write_text(text)
    lidar = tmp_path / f"2021/lidar/compressed_lidar_{SCENE}"
    lidar.write_bytes(lidar.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"compressed_lidar_{SCENE} is damaged"):
        build(tmp_path).splits["train"].target(0)
