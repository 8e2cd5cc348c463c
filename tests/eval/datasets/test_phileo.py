"""Stacks in the layout of PhilEO Bench: names, axes, bands and codes as its code reads them."""

import json

import numpy as np
import pytest

from eval.datasets import build_dataset
from eval.datasets.phileo import GROUPS
from eval.labels import Labels, limited, validated

BANDS = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"]
CODES = np.array([10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100], np.uint8)
REGIONS = ["denmark-1", "europe", "tanzania-1", "ghana-1", "north-america", "south-america", "japan"]


def write(root, count=4, bands=10, side=8):
    """``count`` patches of every region and split, more in the second file of a region; labels of every kind."""
    rng, stacks = np.random.default_rng(0), {}
    for region in REGIONS:
        for part in ("train", "val", "test"):
            for number in (0, 226):
                name, n = f"{region}_{number}_{part}", count + (number > 0)
                share = rng.integers(0, 101, (n, side, side, 1)).astype(np.uint8)
                share[n // 2 :] = 0  # half of the patches show no road and no building
                stack = {
                    "s2": rng.integers(1, 9999, (n, side, side, bands)).astype(np.uint16),
                    "label_roads": share,
                    "label_building": share // 2,
                    "label_lc": rng.choice(CODES, (n, side, side, 1)),
                    "label_kg": np.zeros((n, 31), np.uint8),
                    "label_coords": np.zeros((n, 4), np.float32),
                }
                for kind, array in stack.items():
                    np.save(root / f"{name}_{kind}.npy", array)
                stacks[name] = stack
    return stacks


@pytest.fixture
def stacks(tmp_path):
    return write(tmp_path)


def opened(root, task, **options):
    return build_dataset({"name": f"phileo_{task}", "root": str(root), **options})


@pytest.mark.parametrize("bands", [10, 11])
def test_every_patch_of_every_stack(tmp_path, bands):
    stacks = write(tmp_path, bands=bands)  # eleven: the scene classification comes first
    dataset = opened(tmp_path, "roads")
    assert [name.split("/")[1] for name in dataset.band_names] == BANDS
    assert {name: len(split) for name, split in dataset.splits.items()} == dict.fromkeys(("train", "val", "test"), 63)
    for name, split in dataset.splits.items():
        for i, key in enumerate(split.keys):
            file, _, n = key.rpartition("_")
            stack = stacks[file]
            assert file.endswith(name)
            image = split[i].images["sentinel2_l2a-10m"]
            np.testing.assert_array_equal(image, stack["s2"][int(n), :, :, -10:].transpose(2, 0, 1))
            np.testing.assert_allclose(split.target(i), stack["label_roads"][int(n), :, :, 0] / 100, rtol=1e-6)


def test_land_cover_has_eleven_classes_and_no_code_0(tmp_path, stacks):
    stack = stacks["japan_226_train"]["label_lc"]
    stack[1, 2, 3] = 0
    np.save(tmp_path / "japan_226_train_label_lc.npy", stack)
    dataset = opened(tmp_path, "landcover")
    row = dataset.splits["train"].keys.index("japan_226_train_00001")
    target = dataset.splits["train"].target(row)
    assert target[2, 3] == -1 and (target == -1).sum() == 1 and len(dataset.classes) == 11
    known = target >= 0
    np.testing.assert_array_equal(CODES[target[known]], stack[1, :, :, 0][known])


def test_stacks_without_labels_are_left_out_and_counted(tmp_path, stacks):
    (tmp_path / "europe_0_train_label_building.npy").unlink()
    dataset = opened(tmp_path, "buildings")
    assert dataset.ignored == 4 and len(dataset.splits["train"]) == 59
    assert opened(tmp_path, "roads").ignored == 0


def test_other_numbers_of_bands_are_refused(tmp_path, stacks):
    np.save(tmp_path / "europe_0_train_s2.npy", stacks["europe_0_train"]["s2"][..., :9])
    split = opened(tmp_path, "roads").splits["train"]
    with pytest.raises(ValueError, match="europe_0_train_s2.npy has 9 bands, but 10 are described"):
        split[split.keys.index("europe_0_train_00000")]


def test_shots_are_of_the_six_groups(tmp_path, stacks):
    dataset = opened(tmp_path, "roads")
    labels = Labels(strategy="group", shots=2, val=0.5, empty=0.005, index=str(tmp_path / "indices"))
    rows = limited(dataset, labels)
    found = [dataset.splits["train"].keys[row].split("_")[0] for row in rows]
    assert {group: sum(region in found_in for region in found) for group, found_in in GROUPS.items()} == dict.fromkeys(
        GROUPS, 2
    )
    assert len(validated(dataset, labels).splits["val"]) == 6
    path = tmp_path / "indices/phileo_roads_2-shot_seed-0.json"
    first = path.read_bytes()
    path.unlink()
    assert limited(dataset, labels) == rows and path.read_bytes() == first
    assert len(json.loads(first)["sha256"]) == 64


def test_shares_are_of_whole_files(tmp_path, stacks):
    dataset = opened(tmp_path, "landcover")
    rows = limited(dataset, Labels(strategy="group", fraction=0.5, whole=True))
    files = [dataset.splits["train"].keys[row].rpartition("_")[0] for row in rows]
    assert all(files.count(file) == len(stacks[file]["s2"]) for file in files)
    assert len({f for f in files if f.startswith("japan")}) == 1  # of two files one
    assert len({f for f in files if f.startswith(("europe", "denmark"))}) == 2  # of four files two
