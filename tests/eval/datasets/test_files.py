import json
import os

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from eval.datasets import build_dataset
from eval.datasets.base import IGNORE

RGB = {"path": "{label}/{id}.png", "sensor": "rgb", "gsd_m": 1}
S2 = {"path": "images/{id}.tif", "sensor": "sentinel2_l2a", "gsd_m": 10, "bands": ["B04", "B08"]}
MASK = {"path": "masks/{id}.tif", "codes": [10, [20, 30]], "ignore": [0]}


@pytest.fixture
def folder(tmp_path, tif):
    """Ten chips of two bands and their masks of codes 0, 10, 20 and 30; chips n0..n4 lie side by side, s0..s4 south."""
    rng = np.random.default_rng(1)
    for i in range(10):
        corner = (500000 + 80 * (i % 5), 5000000 - 4000 * (i // 5))
        image = rng.integers(1, 5000, (2, 8, 8)).astype(np.uint16)
        mask = rng.choice([0, 10, 20, 30], (8, 8)).astype(np.uint8)
        tif(tmp_path / f"images/{'ns'[i // 5]}{i % 5}.tif", image, corner=corner)
        tif(tmp_path / f"masks/{'ns'[i // 5]}{i % 5}.tif", mask, corner=corner)
    return tmp_path


def options(root, **changes):
    classes = {"classes": ["low", "high"], "target": MASK, "layers": {"s2": S2}}
    return {"name": "files", "root": str(root), **classes, **changes}


def ids(dataset, split):
    return sorted(dataset.splits[split].keys)


def test_codes_become_classes_and_ignored_ones_no_label(folder):
    split = build_dataset(options(folder)).splits["train"]
    import rasterio

    for i in range(len(split)):
        with rasterio.open(folder / f"masks/{split.keys[i]}.tif") as raster:
            stored = raster.read(1)
        expected = np.select([stored == 10, stored >= 20], [0, 1], IGNORE)
        np.testing.assert_array_equal(split.target(i), expected)
        assert split.target(i).dtype == np.int64


def test_layers_of_one_image_are_refused(folder):
    with pytest.raises(ValueError, match="2 layers make only the images sentinel2_l2a-10m"):
        build_dataset(options(folder, layers={"s2": S2, "again": S2}))


def test_values_with_nan_where_there_is_none(folder):
    target = {"path": "masks/{id}.tif", "ignore": [0], "scale": 0.1}
    split = build_dataset(options(folder, kind="regression", classes=["height"], target=target)).splits["train"]
    found = np.concatenate([split.target(i).ravel() for i in range(len(split))])
    assert found.dtype == np.float32
    assert {round(float(x), 3) for x in found[np.isfinite(found)]} == {1.0, 2.0, 3.0}
    assert np.isnan(found).any()


def test_tiles_and_blocks(folder):
    whole = build_dataset(options(folder))
    dataset = build_dataset(options(folder, tile=4, split_by="block", block=1000, test=0.5, val=0.25, val_by="key"))
    keys = [key for split in dataset.splits.values() for key in split.keys]
    assert len(keys) == len(set(keys)) == 40
    assert {key[0] for key in dataset.splits["test"].keys} != {"n", "s"}  # north or south, never both
    train = dataset.splits["train"]
    i = next(i for i, key in enumerate(train.keys) if key.endswith("_r00004c00000"))
    name = train.keys[i].split("_")[0]
    where = {key: (split, j) for split in whole.splits.values() for j, key in enumerate(split.keys)}
    split, j = where[name]
    np.testing.assert_array_equal(train[i].images["sentinel2_l2a-10m"], split[j].images["sentinel2_l2a-10m"][:, 4:, :4])
    np.testing.assert_array_equal(train.target(i), split.target(j)[4:, :4])


def test_lists_of_every_kind(folder):
    (folder / "train.txt").write_text("images/n0.tif\nimages/n1.tif\n")
    (folder / "val.csv").write_text("image,mask\nimages/n2.tif,masks/n2.tif\n")
    (folder / "test.json").write_text('["images/s0.tif", "images/s1.tif"]')
    lists = {"train": "train.txt", "val": "val.csv", "test": "test.json", "entry": "images/{id}.tif", "column": "image"}
    dataset = build_dataset(options(folder, **lists))
    assert [ids(dataset, name) for name in ("train", "val", "test")] == [["n0", "n1"], ["n2"], ["s0", "s1"]]
    assert build_dataset(options(folder, **lists, split_hash=dataset.split_hash)).split_hash == dataset.split_hash
    with pytest.raises(ValueError, match=r"not the published split \(hash .{12}, not 000000000000; 2 train, 1 v"):
        build_dataset(options(folder, **lists, split_hash="000000000000"))


def test_columns_of_a_table_and_of_names(folder):
    rows = "".join(f"{a}{i},{'spring' if i % 2 else 'autumn'}\n" for a in "ns" for i in range(5))
    (folder / "meta.csv").write_text("chip,season\n" + rows)
    dataset = build_dataset(
        options(folder, table="meta.csv", table_key="chip", parse={"id": "{side:[ns]}{number}"},
                split_by="side", test=["s"], val_by="season", val=["autumn"])
    )  # fmt: skip
    assert ids(dataset, "test") == ["s0", "s1", "s2", "s3", "s4"]


def test_classes_from_folders(tmp_path, junk):
    rng = np.random.default_rng(2)
    for label in ("river", "beach"):
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.fromarray(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)).save(
                tmp_path / label / f"{label}_{i}.png"
            )
    junk(tmp_path)
    dataset = build_dataset(
        {"name": "files", "root": str(tmp_path), "kind": "classification", "layers": {"rgb": RGB}, "label": "label"}
    )
    assert dataset.classes == ("beach", "river")
    for split in dataset.splits.values():
        for i in range(len(split)):
            assert dataset.classes[split.labels[i]] == split.keys[i].split("_")[0]
            with Image.open(tmp_path / f"{split.keys[i].split('_')[0]}/{split.keys[i]}.png") as image:
                np.testing.assert_array_equal(split[i].images["rgb-1m"], np.asarray(image).transpose(2, 0, 1))


def test_several_labels_and_values_from_a_table(folder):
    names = [f"{a}{i}" for a in "ns" for i in range(5)]
    lines = [f"{name},{'wet;dark' if i % 3 else 'wet'},{'' if i == 4 else i / 2}" for i, name in enumerate(names)]
    (folder / "meta.csv").write_text("id,labels,height\n" + "\n".join(lines))
    given = {"target": None, "table": "meta.csv"}
    several = build_dataset(options(folder, **given, kind="multilabel", label="labels", classes=["dark", "wet"]))
    for split in several.splits.values():
        for key, row in zip(split.keys, split.labels.tolist(), strict=True):
            assert row == [names.index(key) % 3 > 0, True]
    values = build_dataset(options(folder, **given, kind="regression", label="height", classes=["height"], ignore=[""]))
    assert values.ignored == 1
    found = {
        key: v for split in values.splits.values() for key, v in zip(split.keys, split.labels.tolist(), strict=True)
    }
    assert found == {name: i / 2 for i, name in enumerate(names) if i != 4}


def test_dates_found_in_names_and_listed(tmp_path, tif):
    rng = np.random.default_rng(3)
    for i in range(6):
        for date in ("20200131", "20200301")[: 1 + i % 2]:
            tif(tmp_path / f"s2/{i}_{date}.tif", rng.integers(1, 99, (2, 4, 4)).astype(np.uint16))
        for word in ("pre", "post"):
            tif(tmp_path / f"rgb/{i}_{word}.tif", rng.integers(1, 99, (3, 4, 4)).astype(np.uint8))
        tif(tmp_path / f"masks/{i}.tif", np.full((4, 4), i % 2, np.uint8))
    common = {"name": "files", "root": str(tmp_path), "classes": ["a", "b"], "target": {"path": "masks/{id}.tif"}}
    series = build_dataset({**common, "layers": {"s2": {**S2, "path": "s2/{id}_{date}.tif"}}})
    assert series.frames == 2
    for split in series.splits.values():
        sample = split[0]
        dates = ["2020-01-31", "2020-03-01"][: 1 + int(sample.key) % 2]
        assert sample.times == {"sentinel2_l2a-10m": dates}
        assert sample.images["sentinel2_l2a-10m"].shape == (len(dates), 2, 4, 4)
    pair = {"rgb": {**RGB, "path": "rgb/{id}_{date}.tif", "dates": ["pre", "post"]}}
    change = build_dataset({**common, "layers": pair, "pair": True})
    assert change.pair and change.frames == 2
    image = change.splits["train"][0].images["rgb-1m"]
    import rasterio

    for step, word in enumerate(("pre", "post")):
        with rasterio.open(tmp_path / f"rgb/{change.splits['train'].keys[0]}_{word}.tif") as raster:
            np.testing.assert_array_equal(image[step], raster.read())


def test_dates_one_after_the_other_in_a_file(tmp_path, tif):
    stack = np.arange(6 * 4 * 4).reshape(6, 4, 4).astype(np.int16)
    for i in range(5):
        tif(tmp_path / f"{i}.tif", stack)
    (tmp_path / "dates.csv").write_text(
        "chip,a,b,c\n" + "".join(f"{i},2020-01-01,2020-04-10,20200701\n" for i in range(5))
    )
    layer = {**S2, "path": "{id}.tif", "frames": 3, "dates": ["a", "b", "c"]}
    dataset = build_dataset(
        {"name": "files", "root": str(tmp_path), "kind": "regression", "label": "id", "layers": {"s2": layer},
         "table": "dates.csv", "table_key": "chip", "classes": ["number"]}
    )  # fmt: skip
    sample = dataset.splits["train"][0]
    assert dataset.frames == 3
    np.testing.assert_array_equal(sample.images["sentinel2_l2a-10m"][1], stack[2:4])  # all bands of a date together
    assert sample.times["sentinel2_l2a-10m"] == ["2020-01-01", "2020-04-10", "2020-07-01"]


def test_one_file_per_band_channels_and_several_nodata(tmp_path, tif):
    rng = np.random.default_rng(4)
    bands = {name: rng.normal(size=(2, 4, 4)).astype(np.float32) for name in ("492", "665")}
    bands["492"][:, 0] = -9999, 9999, np.nan, 1
    for i in range(5):
        for name, pixels in bands.items():
            tif(tmp_path / f"{i}_{name}.tif", pixels)
    layer = {"path": "{id}_{band}.tif", "sensor": "sentinel2_l2a", "gsd_m": 10, "bands": ["B02", "B04"]}
    layer |= {"names": ["492", "665"], "channels": [2], "nodata": [-9999, 9999, float("nan")]}
    given = {"name": "files", "root": str(tmp_path), "kind": "regression", "label": "id", "classes": ["number"]}
    sample = build_dataset({**given, "layers": {"s2": layer}}).splits["train"][0]
    sample.check_finite()
    expected = np.stack([bands["492"][1], bands["665"][1]])
    expected[0, 0, :3] = -9999
    np.testing.assert_array_equal(sample.images["sentinel2_l2a-10m"], expected)


def test_masks_without_a_place_or_with_rounded_coordinates_fit(folder, tif):
    tif(folder / "masks/n0.tif", np.zeros((8, 8), np.uint8), crs=None)
    tif(folder / "masks/n1.tif", np.zeros((8, 8), np.uint8), corner=(500080.5, 5000000))
    dataset = build_dataset(options(folder, val=["n0"], test=["n1"]))
    assert [dataset.splits[name].target(0).shape for name in ("val", "test")] == [(8, 8), (8, 8)]


def test_a_kept_listing_is_renewed_when_a_file_is_added(folder, cache, tif):
    old = os.stat(folder / "images").st_mtime - 60
    os.utime(folder / "images", (old, old))
    dataset = build_dataset(options(folder))
    assert len(list(cache.rglob("*.arrow"))) == 1
    assert build_dataset(options(folder)).split_hash == dataset.split_hash
    for layer, pixels in (("images", np.ones((2, 8, 8), np.uint16)), ("masks", np.full((8, 8), 10, np.uint8))):
        tif(folder / f"{layer}/n9.tif", pixels)
    again = build_dataset(options(folder))
    assert sum(map(len, again.splits.values())) == 11
    assert again.data_hash != dataset.data_hash


@pytest.mark.parametrize("layer", ["images", "masks", "second"])
def test_a_file_changed_in_place_is_other_data(folder, cache, tif, layer):
    for path in list((folder / "images").iterdir()):
        tif(folder / "second" / path.name, np.ones((1, 8, 8), np.uint8))
    old = os.stat(folder).st_mtime - 60
    for name in ("images", "masks", "second"):
        os.utime(folder / name, (old, old))
    second = {"path": "second/{id}.tif", "sensor": "sentinel2_l2a", "gsd_m": 20, "bands": ["B05"]}
    given = options(folder, layers={"s2": S2, "red_edge": second})
    before = build_dataset(given).data_hash
    assert build_dataset(given).data_hash == before and len(list(cache.rglob("*.arrow"))) == 1
    with open(folder / layer / "s4.tif", "r+b") as file:  # same size; its folder does not change
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([255 - last]))
    assert os.stat(folder / layer).st_mtime == old
    assert build_dataset(given).data_hash != before


def damaged(folder):
    path = folder / "images/n0.tif"
    path.write_bytes(path.read_bytes()[:200])
    return build_dataset(options(folder, val=["n0"], test=["n1"])).splits["val"][0]


def other_size(folder, tif):
    tif(folder / "masks/n0.tif", np.zeros((8, 9), np.uint8))
    return build_dataset(options(folder, val=["n0"], test=["n1"])).splits["val"].target(0)


def elsewhere(folder, tif):
    tif(folder / "masks/n0.tif", np.zeros((8, 8), np.uint8), corner=(500002, 5000000))
    return build_dataset(options(folder, val=["n0"], test=["n1"])).splits["val"].target(0)


def other_zone(folder, tif):
    tif(folder / "masks/n0.tif", np.zeros((8, 8), np.uint8), crs="EPSG:32632")
    return build_dataset(options(folder, val=["n0"], test=["n1"])).splits["val"].target(0)


def missing(folder):
    (folder / "masks/n0.tif").unlink()
    return build_dataset(options(folder, val=["n0"], test=["n1"])).splits["val"].target(0)


def bands(folder, tif):
    tif(folder / "images/n0.tif", np.zeros((3, 8, 8), np.uint16))
    return build_dataset(options(folder, val=["n0"], test=["n1"])).splits["val"][0]


def out_of_range(folder, tif):
    tif(folder / "masks/n0.tif", np.full((8, 8), 77, np.uint8))
    return build_dataset(options(folder, val=["n0"], test=["n1"])).splits["val"].target(0)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (damaged, r"images/n0\.tif is damaged or no raster"),
        (other_size, r"masks/n0\.tif has 8 x 9 pixels, its image .*images/n0\.tif has 8 x 8;"),
        (elsewhere, r"masks/n0\.tif .*does not lie where its image .*images/n0\.tif does"),
        (other_zone, r"masks/n0\.tif \(in EPSG:32632.* does not lie where its image .*EPSG:32633"),
        (missing, r"the file .*masks/n0\.tif is missing"),
        (bands, r"images/n0\.tif has 3 bands, but 2 are described \(B04, B08\)"),
        (out_of_range, r"masks/n0\.tif has the label 77, which is no class \(10, 20, 30\)"),
    ],
)
def test_files_that_do_not_fit_are_named(folder, tif, act, message):
    with pytest.raises(ValueError, match=message):
        act(folder, tif) if act.__code__.co_argcount == 2 else act(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/nowhere"}, r"the folder /nowhere/images is missing"),
        ({"layers": {"s2": {**S2, "path": "images/{id}.jp2"}}}, r"holds no file images/\{id\}\.jp2"),
        ({"layers": {"s2": {**S2, "path": "images/{name}.tif"}}}, r"has no \{id\}"),
        ({"layers": {"s2": {**S2, "bands": ["B04", "B99"]}}}, "has no band 'B99'"),
        ({"layers": {"s2": {**S2, "sensor": "sentinel3"}}}, "unknown sensor 'sentinel3'"),
        ({"target": {**MASK, "codes": [10]}}, "target.codes has 1 entries for 2 classes"),
        ({"split_by": "place"}, "there is no field 'place'; known: id"),
        ({"test": "splits/test.txt"}, r"the list of samples .*splits/test\.txt is missing"),
        ({"tile": 9}, "has 8 x 8 pixels, too few for dataset.tile=9"),
        ({"table": "t.csv"}, r"the table .*t\.csv is missing"),
        ({"test": 0.6, "val": 0.4}, "fractions from 0 with a sum below 1"),
        ({"test": ["nowhere"]}, "the test split is empty"),
        ({"key": "chip"}, "two samples are called 'chip'"),
        ({"images": ["sentinel1_grd"]}, "dataset.images 'sentinel1_grd' is not in the set"),
    ],
)
def test_bad_options(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        build_dataset({**options(folder), **changes})


def test_a_list_that_names_what_is_not_there(folder):
    (folder / "test.txt").write_text("n0\nn7\n")
    with pytest.raises(ValueError, match=r"test\.txt lists 'n7', which is missing from the dataset"):
        build_dataset(options(folder, test="test.txt"))


def test_the_file_of_a_date_may_be_absent(tmp_path, tif):
    rng = np.random.default_rng(5)
    for i in range(5):
        for month in ("00", "01", "02"):
            if (i, month) != (0, "01"):
                tif(tmp_path / f"{i}_{month}.tif", rng.integers(1, 99, (2, 4, 4)).astype(np.uint16))
    layer = {**S2, "path": "{id}_{date}.tif", "dates": ["00", "01", "02"], "nodata": 0}
    given = {"name": "files", "root": str(tmp_path), "kind": "regression", "label": "id", "classes": ["n"]}
    with pytest.raises(ValueError, match=r"the file .*0_01\.tif is missing"):
        split = build_dataset({**given, "layers": {"s2": layer}, "test": ["0"]}).splits["test"]
        split[0]
    split = build_dataset({**given, "layers": {"s2": {**layer, "absent": True}}, "test": ["0"]}).splits["test"]
    image = split[0].images["sentinel2_l2a-10m"]
    assert image.shape == (3, 2, 4, 4)
    assert (image[1] == 0).all() and (image[[0, 2]] > 0).all()


def test_other_numbers_are_no_label_where_one_says_so(folder):
    target = {"path": "masks/{id}.tif", "codes": [20], "ignore_other": True}
    split = build_dataset(options(folder, classes=["wanted"], target=target)).splits["train"]
    assert {int(v) for i in range(len(split)) for v in np.unique(split.target(i))} == {IGNORE, 0}


def test_a_geojson_or_parquet_file_is_a_table_too(folder):
    ids = [f"{a}{i}" for a in "ns" for i in range(5)]
    features = [{"type": "Feature", "geometry": None, "properties": {"ID": i, "dates": {"0": 20180924}}} for i in ids]
    (folder / "meta.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    parquet.write_table(pa.table({"ID": ids, "side": [i[0] for i in ids]}), folder / "meta.parquet")
    given = {"table_key": "ID", "layers": {"s2": {**S2, "dates": ["dates"]}}}
    sample = build_dataset(options(folder, table="meta.geojson", **given)).splits["train"][0]
    assert sample.times == {"sentinel2_l2a-10m": ["2018-09-24"]}
    dataset = build_dataset(options(folder, table="meta.parquet", table_key="ID", split_by="side", test=["s"],
                                    val_by="key"))  # fmt: skip
    assert {key[0] for key in dataset.splits["test"].keys} == {"s"}
