"""Published sets with labels per image: their exact layouts, what is learnt of them, and what is wrong with some."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from pyarrow import parquet
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eval.datasets import build_dataset, defaults
from tests.eval.datasets.layouts import labelled, tortillas

LAYOUTS = {
    "bigearthnet_v2": labelled.bigearthnet_v2,
    "bigearthnet_v1": labelled.bigearthnet_v1,
    "bigearthnet_v1_mm": labelled.bigearthnet_v1,
    "eurosat": labelled.eurosat,
    "eurosat_sar": labelled.eurosat_sar,
    "resisc45": labelled.resisc45,
    **{f"geobench2_{name}": tortillas.of_labels(name) for name in tortillas.LABELLED},
}
CORINE = (111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142, 211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244,
          311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334, 411, 412, 421, 422, 423, 511, 512, 521, 522,
          523)  # fmt: skip  # codes of the 43 labels
SHOWN = 9  # classes that occur: radar's two bands tell so many apart


@pytest.fixture(params=LAYOUTS)
def name(request):
    return request.param


def build(root, name, **changes):
    return build_dataset({"name": name, "root": str(root), **changes})


def test_samples_are_the_files_pixel_for_pixel(tmp_path, junk, name):
    expected = LAYOUTS[name](tmp_path, 1, scrambled=False, count=6)
    junk(tmp_path)
    dataset = build(tmp_path, name)
    keys = [key for split in dataset.splits.values() for key in split.keys]
    assert set(keys) <= expected.keys() and len(keys) == 6
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            sample = split[i]
            sample.check_finite()
            assert set(sample.images) == {spec.key for spec in dataset.specs}
            for image, pixels in sample.images.items():
                np.testing.assert_array_equal(pixels, expected[key][image])
                assert pixels.dtype == expected[key][image].dtype
            if dataset.kind == "classification" and "geobench2" not in name:
                assert key.startswith(dataset.classes[split.labels[i]].lower())
            elif dataset.kind == "multilabel":
                assert split.labels[i].sum() == 2


def features(dataset, split):
    """``[N, C]``: means of all bands, without nodata."""
    samples = [split[i] for i in range(len(split))]
    return np.stack([np.concatenate([np.nanmean(s.images[k], (1, 2)) for k in dataset.images]) for s in samples])


SLOW = ("bigearthnet_v1", "geobench2_treesatai", "geobench2_so2sat", "geobench2_forestnet")  # each as another one
LEARNT = [n if n not in SLOW else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS]


@pytest.mark.parametrize("scrambled", [False, True])
@pytest.mark.parametrize("name", LEARNT)
def test_a_linear_probe_is_right_where_it_can_be_and_at_chance_where_nothing_can_be_learnt(tmp_path, name, scrambled):
    LAYOUTS[name](tmp_path, 3 if "bigearthnet" in name else 12, scrambled, SHOWN)
    dataset = build(tmp_path, name)
    (x, y), (x_test, y_test) = (
        (features(dataset, split), split.labels.numpy()) for split in (dataset.splits[s] for s in ("train", "test"))
    )
    if dataset.kind == "multilabel":  # two labels that follow each other: the first says both
        y, y_test = (np.where(t[:, 0] & t[:, SHOWN - 1], SHOWN - 1, t.argmax(1)) for t in (y, y_test))
    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=1e4, max_iter=3000).fit(scaler.transform(x), y)
    found = (probe.predict(scaler.transform(x_test)) == y_test).mean()
    chance = 1 / SHOWN
    assert found < chance + 4 * (chance / len(y_test)) ** 0.5 if scrambled else found == 1.0


def test_sensors_and_dates_of_bigearthnet(tmp_path):
    labelled.bigearthnet_v2(tmp_path, 1, scrambled=False, count=6)
    sample = build(tmp_path, "bigearthnet_v2").splits["test"][0]
    assert sample.times["sentinel2_l2a-10m"] == ["2017-06-13"] and sample.times["sentinel1_grd-10m"] == ["2017-06-14"]
    alone = build(tmp_path, "bigearthnet_v2", images=["sentinel1_grd"])
    assert alone.band_names == ["sentinel1_grd/VV", "sentinel1_grd/VH"]
    shutil.rmtree(tmp_path / "BigEarthNet-S1")
    s2 = build(tmp_path, "bigearthnet_v2", images=["sentinel2_l2a"])
    assert len(s2.band_names) == 12 and s2.splits["test"][0].times.keys() == {
        f"sentinel2_l2a-{g}m" for g in (10, 20, 60)
    }
    with pytest.raises(ValueError, match=r"the file .*_VV\.tif is missing"):
        build(tmp_path, "bigearthnet_v2")


def test_forty_three_labels_make_nineteen_classes(tmp_path):
    labelled.bigearthnet_v1(tmp_path, 1, scrambled=False, count=43)
    old, new = build(tmp_path, "bigearthnet_v1"), build(tmp_path, "bigearthnet_v1_19")
    codes = defaults("bigearthnet_v2_maps")["target"]["codes"]  # of CORINE, in the order of the 19 classes
    number = {code: c for c, found in enumerate(codes) for code in (found if isinstance(found, list) else [found])}
    assert new.classes == tuple(defaults("bigearthnet_v2")["classes"])
    for name, split in new.splits.items():
        assert split.keys == old.splits[name].keys
        for before, after in zip(old.splits[name].labels, split.labels, strict=True):
            wanted = {number[CORINE[c]] for c in before.nonzero()[:, 0].tolist() if CORINE[c] in number}
            assert set(after.nonzero()[:, 0].tolist()) == wanted
    assert sum(not row.any() for split in new.splits.values() for row in split.labels) > 0  # mines beside dump sites


def test_labels_in_files_that_change_in_place_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.datasets.listing.SETTLED_NS", 0)  # the listing is kept at once
    labelled.bigearthnet_v1(tmp_path, 1, scrambled=False, count=6)
    before = build(tmp_path, "bigearthnet_v1")
    key = before.splits["train"].keys[0]
    path = next(p for p in tmp_path.glob("BigEarthNet-v1.0/*/*.json") if p.parent.name.lower() == key)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["Salines"]}))
    again = build(tmp_path, "bigearthnet_v1")
    row = again.splits["train"].labels[again.splits["train"].keys.index(key)]
    assert [again.classes[c] for c in row.nonzero()[:, 0]] == ["Salines"]
    assert again.split_hash != before.split_hash


@pytest.mark.parametrize("name", ["bigearthnet_v2", "bigearthnet_v2_maps"])
def test_a_patch_that_the_table_of_bigearthnet_names_must_be_there(tmp_path, name):
    labelled.bigearthnet_v2(tmp_path, 1, scrambled=False, count=6)
    gone = next((tmp_path / "BigEarthNet-S2").glob("*/*"))
    shutil.rmtree(gone)
    with pytest.raises(ValueError, match=rf"metadata\.parquet names '{gone.name}', which is missing, as are 0 others"):
        build(tmp_path, name)
    assert sum(map(len, build(tmp_path, name, complete=False).splits.values())) == 5


def test_sentinel_1_of_bigearthnet_mm_needs_no_sentinel_2(tmp_path):
    labelled.bigearthnet_v1(tmp_path, 1, scrambled=False, count=6)
    shutil.rmtree(tmp_path / "BigEarthNet-v1.0")
    dataset = build(tmp_path, "bigearthnet_v1_mm", images=["sentinel1_grd"])
    assert dataset.splits["val"][0].times == {"sentinel1_grd-10m": ["2017-06-18"]}


def test_readers_that_cast_radar_to_integers_lose_its_decimals(tmp_path):
    expected = labelled.bigearthnet_v2(tmp_path, 1, scrambled=False, count=6)
    split = build(tmp_path, "bigearthnet_v2").splits["train"]
    ours, stored = split[0].images["sentinel1_grd-10m"], expected[split.keys[0]]["sentinel1_grd-10m"]
    np.testing.assert_array_equal(ours, stored)
    assert np.abs(stored.astype(np.int32) - stored).max() > 0.4  # of a dB
    assert stored[0].mean() != stored[1].mean()  # VV comes first: the alphabet would exchange them


def test_labels_of_reference_maps_are_codes_of_corine(tmp_path):
    labelled.bigearthnet_v2(tmp_path, 1, scrambled=False, count=6)
    dataset = build(tmp_path, "bigearthnet_v2_maps")
    images = build(tmp_path, "bigearthnet_v2")
    for name, split in dataset.splits.items():
        for i, key in enumerate(split.keys):
            truth = split.target(i)
            assert truth[0, :2].tolist() == [-1, -1] and np.unique(truth[1:]).size == 1
            labels = images.splits[name].labels[images.splits[name].keys.index(key)]
            assert labels[int(truth[1, 1])]


def test_eurosat_holds_b8a_last(tmp_path):
    expected = labelled.eurosat(tmp_path, 1, scrambled=False, count=6)
    split = build(tmp_path, "eurosat", bands=["B8A"]).splits["train"]
    spec = split[0].specs["sentinel2_l1c-10m"]
    stored = expected[split.keys[0]]["sentinel2_l1c-10m"]
    canonical = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
    assert spec.bands.index("B8A") == 12 and canonical.index("B8A") == 8
    assert spec.band_objects[12].centre_nm == pytest.approx(865, abs=5)
    np.testing.assert_array_equal(split[0].images["sentinel2_l1c-10m"][spec.bands.index("B8A")], stored[12])


def edited(root, **columns):
    table = parquet.read_table(root / "metadata.parquet")
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, [pa.array(values(table[name].to_pylist()))])
    parquet.write_table(table, root / "metadata.parquet")


def test_what_is_wrong_is_said_in_one_sentence(tmp_path):
    labelled.bigearthnet_v2(tmp_path / "v2", 1, scrambled=False, count=6)
    labelled.bigearthnet_v1(tmp_path / "v1", 1, scrambled=False, count=6)
    labelled.eurosat(tmp_path / "eurosat", 1, scrambled=False, count=6)
    v2, v1 = tmp_path / "v2", tmp_path / "v1"
    with pytest.raises(ValueError, match="BigEarthNet-S2 is missing"):
        build(tmp_path / "elsewhere", "bigearthnet_v2")
    band = next(v2.rglob("*_B05.tif"))
    band.write_bytes(band.read_bytes()[:200])
    name = band.name.removesuffix("_B05.tif")
    splits = build(v2, "bigearthnet_v2").splits.values()
    with pytest.raises(ValueError, match=f"{name}_B05.tif is damaged"):
        [split[split.keys.index(name.lower())] for split in splits if name.lower() in split.keys]
    edited(v2, split=lambda splits: ["train"] * len(splits))
    with pytest.raises(ValueError, match="the (val|test) split is empty"):
        build(v2, "bigearthnet_v2")
    edited(v2, labels=lambda labels: [["Lawn"], *labels[1:]])
    with pytest.raises(ValueError, match="has the label 'Lawn', which is none of the classes"):
        build(v2, "bigearthnet_v2")
    (v2 / "metadata.parquet").unlink()
    with pytest.raises(ValueError, match=r"metadata\.parquet is missing"):
        build(v2, "bigearthnet_v2")
    told = next((v1 / "BigEarthNet-v1.0").rglob("*.json"))
    told.write_text(told.read_text()[:10])
    with pytest.raises(ValueError, match=f"{told.name} is damaged"):
        build(v1, "bigearthnet_v1")
    (tmp_path / "eurosat/eurosat-val.txt").unlink()
    with pytest.raises(ValueError, match=r"eurosat-val\.txt is missing"):
        build(tmp_path / "eurosat", "eurosat")
    (tmp_path / "eurosat/eurosat-val.txt").write_text("Forest_99.jpg\n")
    with pytest.raises(ValueError, match=r"eurosat-val\.txt lists 'Forest_99\.jpg', which is missing"):
        build(tmp_path / "eurosat", "eurosat")


@pytest.mark.realdata
def test_real_patches_of_bigearthnet_v1(realdata, tmp_path):
    root = realdata / "bigearthnet_v1"
    (tmp_path / "BigEarthNet-v1.0").symlink_to(root / "s2-tiny")
    (tmp_path / "BigEarthNet-S1-v1.0").symlink_to(root / "s1-tiny")
    pairs = [
        ("S2A_MSIL2A_20170617T113321_36_85", "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_36_85"),
        ("S2A_MSIL2A_20170617T113321_4_55", "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55"),
        ("S2A_MSIL2A_20171221T112501_56_35", "S1A_IW_GRDH_1SDV_20171221T064238_29SND_56_35"),
    ]
    for split, pair in zip(("train", "val", "test"), pairs, strict=True):
        (tmp_path / f"bigearthnet-{split}.csv").write_text(",".join(pair) + "\n")
    for name in ("bigearthnet_v1", "bigearthnet_v1_mm"):
        dataset = build(tmp_path, name)
        labels = {key: [dataset.classes[c] for c in split.labels[0].nonzero()] for key, split in dataset.splits.items()}
        assert labels["train"] == ["Non-irrigated arable land", "Pastures"] and labels["val"] == ["Pastures"]
        assert len(labels["test"]) == 4 and "Transitional woodland/shrub" in labels["test"]
    broader = build(tmp_path, "bigearthnet_v1_19")
    found = [broader.classes[c] for c in broader.splits["train"].labels[0].nonzero()]
    assert found == ["Arable land", "Pastures"]
    sample = dataset.splits["test"][0]
    assert sample.images["sentinel2_l2a-60m"].shape == (2, 20, 20)
    for name, folder in zip(pairs[2], ("s2-tiny", "s1-tiny"), strict=True):
        for spec in sample.specs.values():
            if (spec.sensor == "sentinel1_grd") == (folder == "s1-tiny"):
                for band, pixels in zip(spec.bands, sample.images[spec.key], strict=True):
                    with rasterio.open(root / folder / name / f"{name}_{band}.tif") as raster:
                        np.testing.assert_array_equal(raster.read(1), pixels)
    assert sample.times["sentinel1_grd-10m"] == ["2017-12-21"]
