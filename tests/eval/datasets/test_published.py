"""Published datasets: files in their exact layout become the expected pixels, and are learnt where they can be."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler

from eval.datasets import build_dataset
from eval.datasets.base import IGNORE
from tests.eval.datasets.layouts import maps, pairs, series

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
}


@pytest.fixture(params=LAYOUTS)
def name(request):
    return request.param


def build(root, name, **changes):
    small = {"tile": pairs.SIDE} if name.startswith("spacenet7") else {}
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


@pytest.mark.parametrize("scrambled", [False, True])
def test_a_linear_probe_is_right_where_it_can_be_and_at_chance_where_nothing_can_be_learnt(tmp_path, name, scrambled):
    LAYOUTS[name](tmp_path, 30, scrambled)
    dataset = build(tmp_path, name, **({"images": ["sentinel1_grd"]} if name == "biomassters" else {}))
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
