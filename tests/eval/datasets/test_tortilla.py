"""Files in a tortilla: found by id or place, read where they lie, named where something is wrong with them."""

import io

import h5py
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from eval.datasets import build_dataset, stores, tortilla
from tests.eval.datasets.layouts import tortillas
from tests.eval.datasets.layouts.tortillas import cook, hdf5, raster


@pytest.fixture
def nested(tmp_path):
    """(a tortilla of two tortillas of a raster and an array, what they hold)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 99, (2, 3, 5, 4)).astype(np.int16)
    arrays = rng.integers(0, 99, (2, 6, 3, 2, 2)).astype(np.int16)
    files = [{"image": raster(i), "7": hdf5(a), "last": raster(i[:1])} for i, a in zip(images, arrays, strict=True)]
    inner = {f"s{i}": ("TORTILLA", cook([{}] * 3, held)) for i, held in enumerate(files)}
    (path := tmp_path / "set.tortilla").write_bytes(cook([{}] * 2, inner))
    return path, images, arrays


def test_files_are_found_by_id_or_place_and_read_where_they_lie(nested):
    path, images, arrays = nested
    for i in range(2):
        for name in ("image", "0", "-3"):
            np.testing.assert_array_equal(stores.read(path.parent / f"set.tortilla::s{i}/{name}"), images[i])
        np.testing.assert_array_equal(stores.read(path.parent / f"set.tortilla::{i}/-1"), images[i, :1])
        series = path.parent / f"set.tortilla::s{i}/7::data"  # an id is no place
        np.testing.assert_array_equal(stores.read(series, axes="TCHW"), arrays[i])
        assert stores.header(series, "TCHW").dates == 6
    assert stores.exists(path.parent / "set.tortilla::s1/last")
    assert not stores.exists(path.parent / "set.tortilla::s1/3") and not stores.exists(
        path.parent / "set.tortilla::s2/image"
    )


def test_a_window_is_the_file_from_any_place(nested):
    path, _, _ = nested
    where = path.parent / "set.tortilla::s1/7"
    file, place = tortilla.find(where)
    content = file.read_bytes()[place.offset : place.offset + place.length]
    with tortilla.stream(where) as stream:
        assert stream.read() == content and stream.read() == b""
        assert stream.seek(-5, 2) == len(content) - 5 and stream.read(99) == content[-5:]
        assert stream.seek(8) == 8 and stream.seek(2, 1) == 10 and stream.read(7) == content[10:17]
    with tortilla.stream(where) as stream, h5py.File(stream) as opened:
        assert list(opened) == ["data"]


def test_a_table_without_ids_is_named(tmp_path):
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"x": [1]}), buffer)
    head = b"#y" + (200).to_bytes(8, "little") + len(buffer.getvalue()).to_bytes(8, "little")
    (tmp_path / "set.tortilla").write_bytes(head.ljust(200, b"0") + buffer.getvalue())
    with pytest.raises(ValueError, match=r"set\.tortilla is damaged or no tortilla \(its table has no tortilla:id\)"):
        list(tortilla.described(tmp_path / "set.tortilla"))


def test_what_is_wrong_is_said_in_one_sentence(nested, tmp_path):
    path, images, _ = nested
    for name in ("s1/mask", "s5/image"):
        with pytest.raises(ValueError, match=rf"set\.tortilla::{name} is missing"):
            stores.read(path.parent / f"set.tortilla::{name}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40])
    with pytest.raises(ValueError, match=r"set\.tortilla is damaged or no tortilla .* get the file again"):
        stores.read(path.parent / "set.tortilla::s1/image")
    path.write_bytes(b"PK" + content[2:])
    with pytest.raises(ValueError, match=r"set\.tortilla is damaged or no tortilla \(byte 0: b'PK'\)"):
        stores.read(path.parent / "set.tortilla::s1/image")
    form, good = raster(images[0])
    (tmp_path / "cut.tortilla").write_bytes(cook([{}], {"image": (form, good[:200])}))
    with pytest.raises(ValueError, match=r"cut\.tortilla::image is damaged or no raster"):
        stores.read(tmp_path / "cut.tortilla::image")


def build(root, name, **changes):
    return build_dataset({"name": f"geobench2_{name}", "root": str(root), **changes})


def test_dates_and_splits_are_those_of_the_tables(tmp_path):
    tortillas.of_maps("pastis")(tmp_path, 10, False)
    dataset = build(tmp_path, "pastis")
    assert {name: sorted(split.keys) for name, split in dataset.splits.items()} == {
        "train": [f"sample_{i}" for i in (0, 1, 2, 5, 6, 7)],
        "val": ["sample_3", "sample_8"],
        "test": ["sample_4", "sample_9"],
    }
    sample = dataset.splits["test"][dataset.splits["test"].keys.index("sample_4")]  # of 8 dates
    assert sample.times["sentinel2_l2a-10m"] == [f"2018-09-{17 + t}" for t in (0, 1, 3, 4, 6, 7)]


def test_days_of_a_month_are_counted(tmp_path):
    tortillas.of_maps("dynamic_earthnet")(tmp_path, 5, False)
    sample = build(tmp_path, "dynamic_earthnet").splits["test"][0]
    assert sample.times["planetscope-3m"] == [f"2018-05-{day:02d}" for day in (1, 5, 10, 15, 20, 25)]


def test_a_label_that_is_no_class_names_its_place(tmp_path):
    files = {"image": raster(np.ones((6, 8, 8), np.float32)), "label": raster(np.full((8, 8), 7, np.int16))}
    tortillas.serve(tmp_path, "burn_scars", [({}, files) for _ in range(5)])
    with pytest.raises(ValueError, match=r"part\.tortilla::sample_0/label has the label 7, which is no class"):
        build(tmp_path, "burn_scars").splits["train"].target(0)


def test_months_of_other_names_are_missed(tmp_path):
    tortillas.of_maps("biomassters")(tmp_path, 5, False)
    months = [f"{month:02d}" for month in range(12)]
    with pytest.raises(ValueError, match=r"hold no file \{id\}/\{chip\}_S1_00; correct the pattern"):
        build(tmp_path, "biomassters", layers={"s1": {"dates": months}, "s2": {"dates": months}})


def test_a_tortilla_changed_in_place_is_listed_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.datasets.listing.SETTLED_NS", 0)  # the listing is kept at once
    before = tortillas.of_labels("benv2")(tmp_path, 2, False, 5)
    first = build(tmp_path, "benv2")
    assert first.splits["train"].keys == build(tmp_path, "benv2").splits["train"].keys
    after = tortillas.of_labels("benv2")(tmp_path, 3, False, 5)
    again = build(tmp_path, "benv2")
    assert sum(map(len, again.splits.values())) == len(after) > len(before) and again.data_hash != first.data_hash
    key = again.splits["test"].keys[0]
    np.testing.assert_array_equal(again.splits["test"][0].images["sentinel2_l2a-10m"], after[key]["sentinel2_l2a-10m"])


def test_radar_is_vh_and_then_vv_as_its_numbers_say(tmp_path):
    expected = tortillas.of_labels("benv2")(tmp_path, 1, False, 6)
    dataset = build(tmp_path, "benv2", images=["sentinel1_grd"])
    assert dataset.band_names == ["sentinel1_grd/VH", "sentinel1_grd/VV"]
    split = dataset.splits["val"]
    np.testing.assert_array_equal(split[0].images["sentinel1_grd-10m"], expected[split.keys[0]]["sentinel1_grd-10m"])
