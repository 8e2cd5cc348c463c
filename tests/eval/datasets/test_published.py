"""Published datasets: files in their exact layout become the expected pixels, and are learnt where they can be."""

import re

import numpy as np
import pytest
import rasterio
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler

from eval.datasets import CONFIGS, build_dataset, defaults
from eval.datasets.base import IGNORE
from tests.eval.datasets.layouts import maps, pairs, series, tortillas

LAYOUTS = {
    "mados": maps.mados,
    "pastis_r": series.pastis_r,
    "multitemporal_crop": series.multitemporal_crop,
    "biomassters": series.biomassters,
    "crop_type_mapping_ss": series.crop_type_mapping_ss,
    "xview2": pairs.xview2,
    "spacenet7": pairs.spacenet7,
    "spacenet7_change": pairs.spacenet7_change,
    "ai4smallfarms": maps.ai4smallfarms,
    "dynamic_earthnet": series.dynamic_earthnet,
    "five_billion_pixels": maps.five_billion_pixels,
    "mtbs": series.mtbs,
    **{f"geobench2_{name}": tortillas.of_maps(name) for name in tortillas.MAPS},
}
TILES = {"spacenet7": pairs.SIDE, "spacenet7_change": pairs.SIDE, "five_billion_pixels": maps.TILE, "mtbs": 8}
MAPS = {  # files of maps
    "mados": "Scene_*/10/*_cl_*.tif",
    "pastis_r": "ANNOTATIONS/*.npy",
    "multitemporal_crop": "*_chips/*.mask.tif",
    "biomassters": "*_agbm/*.tif",
    "crop_type_mapping_ss": "truth/*.npz",
    "xview2": "*/targets/*_post_*.png",
    "spacenet7": "train/*/labels_raster/*.tif",
    "spacenet7_change": "train/*/labels_raster/*.tif",
    "ai4smallfarms": "*/masks/*.tif",
    "dynamic_earthnet": "labels/*/*/*/*/*.tif",
    "five_billion_pixels": "Annotation__index/*.png",
    "mtbs": "mtbs_fires/data/*/labels/*.tif",
    **{f"geobench2_{name}": "*.tortilla" for name in tortillas.MAPS},
}


@pytest.fixture(params=LAYOUTS)
def name(request):
    return request.param


def build(root, name, **changes):
    small = {"tile": TILES[name]} if name in TILES else {}
    return build_dataset({"name": name, "root": str(root), **small, **changes})


def test_samples_are_the_files_pixel_for_pixel(tmp_path, junk, name):
    expected = LAYOUTS[name](tmp_path, 12, scrambled=False)
    junk(tmp_path)
    dataset = build(tmp_path, name)
    assert {key for split in dataset.splits.values() for key in split.keys} == expected.keys()
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            sample, wanted = split[i], expected[key]
            sample.check_finite()
            assert sample.images.keys() == wanted.images.keys()
            for image in wanted.images:
                np.testing.assert_array_equal(sample.images[image], wanted.images[image])
                assert sample.images[image].dtype == wanted.images[image].dtype
                assert len(sample.images[image]) == dataset.frames or dataset.frames == 1
            assert all(sample.times[image] == times for image, times in wanted.times.items())
            np.testing.assert_array_equal(split.target(i), wanted.target)


def pixels(dataset, split):
    """``x [N, C]`` of the finest image's pixels with labels and without gaps, ``y [N]``.

    Dates come one after the other; of a pair it is how much they differ.
    """
    xs, ys = [], []
    for i in range(len(split)):
        y = split.target(i)
        good = np.isfinite(y) if y.dtype == np.float32 else y != IGNORE
        sample = split[i]
        fine = [key for key, image in sample.images.items() if image.shape[-2:] == y.shape]
        shown = [sample.images[key].astype(np.float64) for key in fine]
        if dataset.pair:
            shown = [np.abs(after - before) for before, after in shown]
        x = np.concatenate([image.reshape(-1, *y.shape) for image in shown])
        gaps = [sample.specs[key].invalid(sample.images[key]).reshape(-1, *y.shape) for key in fine]
        good &= ~np.concatenate(gaps).any(0)
        xs.append(x[:, good].T)
        ys.append(y[good])
    return np.concatenate(xs), np.concatenate(ys)


QUICK = ("pastis_r", "biomassters", "xview2")  # the others' labels are as random
LIKE = [f"geobench2_{name}" for name in tortillas.MAPS if name != "pastis"]  # as it is, or as another set here


@pytest.mark.parametrize(
    ("name", "scrambled"),
    [pytest.param(name, False, marks=pytest.mark.slow) if name in LIKE else (name, False) for name in LAYOUTS]
    + [(name, True) if name in QUICK else pytest.param(name, True, marks=pytest.mark.slow) for name in LAYOUTS],
)
def test_a_linear_probe_is_right_where_it_can_be_and_at_chance_where_nothing_can_be_learnt(tmp_path, name, scrambled):
    LAYOUTS[name](tmp_path, 25, scrambled)
    dataset = build(tmp_path, name, **({"images": ["sentinel1_grd"]} if "biomassters" in name else {}))
    (x, y), (x_test, y_test) = (pixels(dataset, dataset.splits[part]) for part in ("train", "test"))
    scaler = StandardScaler().fit(x)
    x, x_test = scaler.transform(x), scaler.transform(x_test)
    if dataset.kind == "regression":
        found = LinearRegression().fit(x, y).score(x_test, y_test)
        assert found < 0.1 if scrambled else found > 0.98
        return
    found = (LogisticRegression(C=100, max_iter=1000, tol=1e-3).fit(x, y).predict(x_test) == y_test).mean()
    chance = 1 / len(dataset.classes)
    assert abs(found - chance) < 4 * (chance / len(y_test)) ** 0.5 + 0.02 if scrambled else found > 0.995


def test_a_map_that_is_cut_short_is_named(tmp_path, name):
    LAYOUTS[name](tmp_path, 12, scrambled=False)
    dataset = build(tmp_path, name)
    for path in tmp_path.glob(MAPS[name]):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ValueError, match=rf"{tmp_path}/\S+ is damaged or no .* get the file again"):
        dataset.splits["train"].target(0)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    "name",
    [n for n in MAPS if n not in ("biomassters", "dynamic_earthnet", "crop_type_mapping_ss") and "geobench2" not in n],
)
def test_a_label_that_is_no_class_is_named(tmp_path, name):
    LAYOUTS[name](tmp_path, 12, scrambled=False)
    dataset = build(tmp_path, name)
    for path in tmp_path.glob(MAPS[name]):
        if path.suffix == ".npy":
            np.save(path, np.full_like(np.load(path), 77))
            continue
        with rasterio.open(path) as raster:
            profile = raster.profile
        with rasterio.open(path, "w", **profile) as raster:
            raster.write(np.full((1, raster.height, raster.width), 77, profile["dtype"]))
    with pytest.raises(ValueError, match=rf"{tmp_path}/\S+ has the label 77, which is no class .* nor ignored"):
        dataset.splits["train"].target(0)


def test_a_missing_list_is_named(tmp_path):
    series.multitemporal_crop(tmp_path, 6, scrambled=False)
    (tmp_path / "training_data.txt").unlink()
    with pytest.raises(ValueError, match=r"the list of samples \S+training_data.txt is missing"):
        build(tmp_path, "multitemporal_crop")


def test_the_published_order_of_crop_channels_mixes_dates_and_bands(tmp_path):
    series.multitemporal_crop(tmp_path, 6, scrambled=False)
    head = (CONFIGS / "multitemporal_crop.yaml").read_text().splitlines()[0]
    order = [int(n) for n in re.findall(r"\d+", head)]
    layer = defaults("multitemporal_crop")["layers"]["hls"]
    ours, theirs = (
        build(tmp_path, "multitemporal_crop", layers={"hls": {**layer, **given}})
        .splits["train"][0]
        .images["hls_s30-30m"]
        for given in ({}, {"channels": order})
    )
    stored = ours.reshape(18, 9, 9)
    np.testing.assert_array_equal(theirs, stored.reshape(6, 3, 9, 9).transpose(1, 0, 2, 3))
    assert (theirs[1, 0] == ours[0, 1]).all() and not (theirs == ours).all()  # "blue in June" is green in March


def test_planet_is_shown_as_means_on_the_grid_of_the_maps(tmp_path):
    expected = series.crop_type_mapping_ss(tmp_path, 10, scrambled=False)
    planet = defaults("crop_type_mapping_ss")["layers"]["planet"] | {"pixels": 8}
    dataset = build(tmp_path, "crop_type_mapping_ss", images=["planetscope"], layers={"planet": planet})
    split = dataset.splits["train"]
    sample = split[0]
    stored = np.load(tmp_path / f"npy/southsudan_{int(split.keys[0]):06d}.npz")["planet"]  # [C, H, W, T]
    assert stored.shape == (4, 24, 24, 7) and dataset.frames == 6
    cells = stored.reshape(4, 8, 3, 8, 3, 7).transpose(5, 0, 1, 3, 2, 4).reshape(7, 4, 8, 8, 9).astype(np.float32)
    means = np.where(cells.any(-1), cells.sum(-1) / np.maximum((cells != 0).sum(-1), 1), 0)
    image = sample.images["planetscope-10m"]
    np.testing.assert_allclose(image, means[np.linspace(0, 6, 6).round().astype(int)], rtol=1e-6)
    assert image.dtype == np.float32 and (image[:, :, 0, 0] == 0).all() and (image[:, :, 1, 1] > 0).all()
    np.testing.assert_array_equal(split.target(0), expected[split.keys[0]].target)


def test_decimals_of_decibels_are_kept(tmp_path):
    series.biomassters(tmp_path, 6, scrambled=False)
    image = build(tmp_path, "biomassters").splits["train"][0].images["sentinel1_grd-10m"]
    assert np.abs(image - image.astype(np.int32)).max() > 0.5  # what readers that convert to whole numbers lose
