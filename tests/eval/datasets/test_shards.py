import dataclasses
import pickle

import numpy as np
import pytest
import torch

from data_prep.main import main as prepare
from dinov2.data.shards import ShardSet, write_shards
from dinov2.data.stats import Normalisation, image_stats, merge_stats
from eval.datasets import build_dataset


def options(shards, **changes):
    return {"name": "shards", "root": str(shards), "label": "scene", "split_by": "meta.place", **changes}


def places(dataset, split):
    return {dataset.splits[split][i].meta["place"] for i in range(len(dataset.splits[split]))}


def test_every_sample_once_and_neighbours_together(shards):
    dataset = build_dataset(options(shards))
    keys = [key for split in dataset.splits.values() for key in split.keys]
    assert sorted(keys) == [f"s{i:04d}" for i in range(96)]
    parts = [places(dataset, name) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24
    assert dataset.classes == ("dark", "bright", "striped")


def test_labels_belong_to_their_samples(shards):
    split = build_dataset(options(shards)).splits["train"]
    assert [split[i].labels["scene"] for i in range(len(split))] == split.labels.tolist()


def test_listed_values(shards):
    dataset = build_dataset(options(shards, val=["p3"], test=["p0", "p23"]))
    assert places(dataset, "val") == {"p3"}
    assert dataset.splits["test"].keys == tuple(f"s{i:04d}" for i in (0, 1, 2, 3, 92, 93, 94, 95))
    assert len(dataset.splits["train"]) == 84


def test_whole_places_for_test_single_samples_for_validation(shards):
    dataset = build_dataset(options(shards, test=["p3", "p4"], val=0.4, val_by="key"))
    assert places(dataset, "test") == {"p3", "p4"}
    assert not places(dataset, "test") & (places(dataset, "train") | places(dataset, "val"))
    assert places(dataset, "val") & places(dataset, "train")
    assert 20 < len(dataset.splits["val"]) < 50


def test_the_split_does_not_depend_on_how_shards_are_cut(tmp_path, shards, tools):
    again = tools.write(tmp_path / "world", reversed(list(tools.samples(96, radar=True))), per_shard=7)
    one, two = build_dataset(options(shards)), build_dataset(options(again))
    assert one.split_hash == two.split_hash
    assert one.data_hash != two.data_hash
    assert {n: set(s.keys) for n, s in one.splits.items()} == {n: set(s.keys) for n, s in two.splits.items()}
    assert build_dataset(options(shards, test=0.3)).split_hash != one.split_hash


def test_fractions_of_the_values_are_met_and_no_split_is_empty(tmp_path, tools):
    whole = build_dataset(options(tools.write(tmp_path / "many", tools.samples(96)), split_by="key", test=0.3, val=0.1))
    assert [len(whole.splits[name]) for name in ("train", "val", "test")] == [57, 10, 29]
    three = tools.write(tmp_path / "three", tools.samples(12))  # three places of four samples
    parts = build_dataset(options(three, test=0.1, val=0.1)).splits
    assert [len(parts[name]) for name in ("train", "val", "test")] == [4, 4, 4]
    two = tools.write(tmp_path / "two", tools.samples(8))
    with pytest.raises(ValueError, match=r"1 values of 'meta\.place' are too few to divide.*dataset\.split_by=key"):
        build_dataset(options(two, test=0.1, val=0.1))


def test_own_roots(tmp_path, shards, tools):
    test = tools.write(tmp_path / "test", tools.samples(9, seed=1, prefix="t", radar=True))
    dataset = build_dataset(options(shards, test_root=str(test), val=0.25))
    assert len(dataset.splits["test"]) == 9
    assert len(dataset.splits["train"]) + len(dataset.splits["val"]) == 96
    with pytest.raises(ValueError, match="is in both"):
        build_dataset(options(shards, test_root=str(shards)))


def test_unlabelled_samples_are_counted(tmp_path, tools):
    samples = [dataclasses.replace(s, labels={"scene": -1} if i < 5 else {} if i < 7 else s.labels)
               for i, s in enumerate(tools.samples(60))]  # fmt: skip
    dataset = build_dataset(options(tools.write(tmp_path / "w", samples)))
    assert dataset.ignored == 7
    assert sum(map(len, dataset.splits.values())) == 53


def test_images_and_bands_in_the_order_named(shards):
    both = build_dataset(options(shards, images=["sentinel2_l2a", "sentinel1_rtc-10m"]))
    assert both.images == ["sentinel2_l2a-10m", "sentinel1_rtc-10m"]
    some = build_dataset(options(shards, images=["sentinel2_l2a"], bands=["B04", "B02"]))
    assert some.band_names == ["sentinel2_l2a/B04", "sentinel2_l2a/B02"]
    assert set(some.splits["train"][0].images) == {"sentinel2_l2a-10m"}


def test_statistics_of_the_training_split_alone(shards):
    dataset = build_dataset(options(shards, images=["sentinel2_l2a"]))
    train = dataset.splits["train"]
    samples = [train[i] for i in range(len(train))]
    key = "sentinel2_l2a-10m"
    expected = Normalisation.from_stats(merge_stats([image_stats(s.images[key], s.specs[key]) for s in samples]))
    assert dataset.normalisation() == expected


def test_splits_travel_to_loader_processes(shards):
    split = build_dataset(options(shards)).splits["val"]
    copy = pickle.loads(pickle.dumps(split))
    assert copy[0].key == split[0].key
    assert torch.equal(copy.labels, split.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "shard"}, "dataset.name 'shard' is unknown"),
        ({"rooot": "x"}, "rooot"),
        ({"label": "share"}, "is 0.5, not an integer class"),
        ({"label": "cloud"}, "no sample of .* has the label 'cloud'; it has scene, share"),
        ({"split_by": "meta.plaice"}, "has key, meta.cloud, meta.place"),
        ({"val": ["nowhere"], "test": ["p1"]}, "the val split is empty"),
        ({"val": 0.5, "test": 0.5}, "fractions from 0 with a sum below 1"),
        ({"val": "p1"}, "give lists of values"),
        ({"images": ["sentinel3"]}, "known: sentinel1_rtc-10m, sentinel2_l2a-10m"),
        ({"bands": ["B99"]}, "dataset.bands B99 not in"),
        ({"classes": ["one", "two"]}, "labels run from 0 to 2, but there are 2 classes"),
        ({"root": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_input(shards, changes, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(options(shards, **changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve samples of the sandbox world at two dates."""
    out = tmp_path_factory.mktemp("world")
    given = ["--samples", "12", "--sensors", "sentinel2_l2a", "--chip-m", "240", "--dates", "2"]
    prepare(["sandbox", "--out", str(out), *given])
    return out


@pytest.mark.parametrize(
    ("label", "kind", "classes"),
    [
        ("landcover", "segmentation", ("water", "forest", "meadow", "crop", "bare", "built")),
        ("canopy_height", "regression", ("canopy_height",)),
        ("change", "segmentation", ("unchanged", "changed")),
    ],
)
def test_maps_of_the_sandbox(world, label, kind, classes):
    dataset = build_dataset({"name": "shards", "root": str(world), "label": label})
    assert (dataset.kind, dataset.classes, dataset.frames, dataset.pair) == (kind, classes, 2, label == "change")
    stored = {s.key: s for s in (ShardSet.open(world).read(0, i) for i in range(12))}
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            np.testing.assert_array_equal(split.target(i), stored[key].labels[label])
            assert split.target(i).dtype == (np.int64 if kind == "segmentation" else np.float32)
            assert split[i].images["sentinel2_l2a-10m"].shape == (2, 4, 24, 24)


def test_a_value_per_sample_of_the_sandbox(world):
    dataset = build_dataset({"name": "shards", "root": str(world), "label": "mean_canopy_height"})
    assert (dataset.kind, dataset.unit) == ("regression", "metre")
    train = dataset.splits["train"]
    expected = [train[i].labels["mean_canopy_height"] for i in range(len(train))]
    assert torch.equal(train.labels, torch.tensor(expected, dtype=torch.float32))


def test_the_ignored_number_of_a_mask_is_no_label(tmp_path, tools):
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 1, 255], (16, 16)).astype(np.uint8) for _ in range(12)]
    samples = [dataclasses.replace(s, labels={"m": mask}) for s, mask in zip(tools.samples(12), masks, strict=True)]
    info = {"m": {"kind": "mask", "classes": ["a", "b"], "ignore": 255}}
    write_shards(samples, tmp_path / "w", samples_per_shard=4, labels=info)
    train = build_dataset({"name": "shards", "root": str(tmp_path / "w"), "label": "m"}).splits["train"]
    for i, key in enumerate(train.keys):
        mask = masks[int(key[1:])]
        np.testing.assert_array_equal(train.target(i), np.where(mask == 255, -1, mask.astype(int)))
