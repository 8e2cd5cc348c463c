import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from eval.datasets import build_dataset, defaults
from eval.datasets.base import IGNORE

COLOURS = np.array([[255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0], [255, 0, 0], [0, 0, 0]])
TILES = ["2_10", "2_11", "2_12", "2_13", "7_13"]  # 2_12 is held out, 2_13 and 7_13 are test
SIDE = 4


def write(root, tif, name, scrambled=False):
    """An orthophoto of 10 x 9 pixels (two tiles of four either way, and a rest), a brightness per class; its labels."""
    rng = np.random.default_rng(TILES.index(name))
    truth = rng.integers(0, 6, (10, 9))
    seen = rng.integers(0, 6, truth.shape) if scrambled else truth
    image = (
        np.stack([40 * seen, 250 - 40 * seen, seen % 2 * 90, seen // 3 * 90]) + rng.integers(0, 5, (4, 10, 9))
    ) % 256
    truth[0, 0] = 6
    tif(root / f"4_Ortho_RGBIR/top_potsdam_{name}_RGBIR.tif", image.astype(np.uint8), pixel=0.05)
    tif(
        root / f"5_Labels_all/top_potsdam_{name}_label.tif",
        COLOURS[truth].transpose(2, 0, 1).astype(np.uint8),
        pixel=0.05,
    )
    return image, truth


def build(root, **changes):
    return build_dataset({"name": "potsdam", "root": str(root), "tile": SIDE, **changes})


def test_colours_are_classes_and_photos_are_cut_into_tiles(tmp_path, tif, junk):
    written = {name: write(tmp_path, tif, name) for name in TILES}
    junk(tmp_path)
    dataset = build(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 8, "val": 4, "test": 8}
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            sample = split[i]
            (image, truth), (row, column) = written[sample.meta["id"]], (int(key[-11:-6]), int(key[-5:]))
            there = (..., slice(row, row + SIDE), slice(column, column + SIDE))
            np.testing.assert_array_equal(sample.images["naip-5cm"], image[there])
            np.testing.assert_array_equal(split.target(i), np.where(truth == 6, IGNORE, truth)[there])
    assert {k for k in dataset.splits["val"].keys if "2_12" in k} == set(dataset.splits["val"].keys)


@pytest.mark.parametrize("scrambled", [False, True])
def test_a_linear_probe_is_right_where_it_can_be_and_at_chance_where_nothing_can_be_learnt(tmp_path, tif, scrambled):
    for name in TILES:
        write(tmp_path, tif, name, scrambled)
    dataset = build(tmp_path)
    x, y = {}, {}
    for name, split in dataset.splits.items():
        y[name] = np.concatenate([split.target(i).ravel() for i in range(len(split))])
        pixels = np.concatenate([split[i].images["naip-5cm"].reshape(4, -1).T for i in range(len(split))]) / 255
        x[name], y[name] = pixels[y[name] != IGNORE], y[name][y[name] != IGNORE]
    found = (
        LogisticRegression(C=1e5, max_iter=5000).fit(x["train"], y["train"]).predict(x["test"]) == y["test"]
    ).mean()
    assert found < 1 / 6 + 0.15 if scrambled else found == 1.0


def test_what_is_wrong_is_said_in_one_sentence(tmp_path, tif):
    for name in TILES:
        write(tmp_path, tif, name)
    path = tmp_path / "5_Labels_all/top_potsdam_2_12_label.tif"
    other = np.full((3, 10, 9), 255, np.uint8)
    other[2] = 1
    tif(path, other, pixel=0.05)
    with pytest.raises(
        ValueError, match=r"top_potsdam_2_12_label\.tif has the label 0xFFFF01, which is no class \(0x0000FF"
    ):
        build(tmp_path).splits["val"].target(0)
    ignoring = defaults("potsdam")["target"] | {"ignore_other": True}
    assert (build(tmp_path, target=ignoring).splits["val"].target(0) == IGNORE).all()
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ValueError, match=r"top_potsdam_2_12_label\.tif is damaged"):
        build(tmp_path).splits["val"].target(0)
    path.unlink()
    with pytest.raises(ValueError, match=r"top_potsdam_2_12_label\.tif is missing"):
        build(tmp_path).splits["val"].target(0)
