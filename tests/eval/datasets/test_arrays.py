import h5py
import numpy as np
import pytest
import zarr

from eval.datasets import build_dataset

TEN = ["B02", "B03", "B04", "B08"]


def split_of(dataset, key):
    return next((split, i) for split in dataset.splits.values() for i, k in enumerate(split.keys) if k == key)


@pytest.fixture
def stacks(tmp_path):
    """Two npy stacks of 4 and 3 samples, channels last, one band more than wanted in front, and maps beside them."""
    rng = np.random.default_rng(0)
    for name, count in (("north_0", 4), ("south_1", 3)):
        np.save(tmp_path / f"{name}_s2.npy", rng.integers(0, 9999, (count, 6, 6, 5)).astype(np.uint16))
        np.save(tmp_path / f"{name}_label.npy", rng.integers(0, 3, (count, 6, 6, 1)).astype(np.uint8))
    return tmp_path


def options(root, **changes):
    layer = {"path": "{id}_s2.npy", "axes": "NHWC", "sensor": "sentinel2_l2a", "gsd_m": 10, "bands": TEN}
    target = {"path": "{id}_label.npy", "axes": "NHWC"}
    return {
        **{"name": "files", "root": str(root), "layers": {"s2": {**layer, "channels": [2, 3, 4, 5]}}, "target": target},
        **{"classes": ["a", "b", "c"], **changes},
    }


def test_every_sample_of_every_stack(stacks):
    dataset = build_dataset(options(stacks))
    assert sum(map(len, dataset.splits.values())) == 7
    for name, count in (("north_0", 4), ("south_1", 3)):
        images, maps = np.load(stacks / f"{name}_s2.npy"), np.load(stacks / f"{name}_label.npy")
        for n in range(count):
            split, i = split_of(dataset, f"{name}_{n:05d}")
            np.testing.assert_array_equal(split[i].images["sentinel2_l2a-10m"], images[n, :, :, 1:].transpose(2, 0, 1))
            np.testing.assert_array_equal(split.target(i), maps[n, :, :, 0])


def test_tiles_of_stacks_and_whole_files_for_test(stacks):
    dataset = build_dataset(options(stacks, tile=3, split_by="id", test=["south_1"], val=0.5, val_by="key"))
    assert len(dataset.splits["test"]) == 12
    split, i = split_of(dataset, "south_1_00002_r00003c00000")
    expected = np.load(stacks / "south_1_s2.npy")[2, 3:, :3, 1:].transpose(2, 0, 1)
    np.testing.assert_array_equal(split[i].images["sentinel2_l2a-10m"], expected)


def test_series_with_dates_in_a_table_evenly_thinned(tmp_path):
    rng = np.random.default_rng(1)
    rows = ["id,when"]
    for i in range(5):
        np.save(tmp_path / f"S2_{i}.npy", rng.integers(0, 99, (5 + i, 4, 3, 3)).astype(np.int16))
        rows.append(f"{i}," + ";".join(f"2019-0{1 + t // 28}-{1 + t % 28:02d}" for t in range(5 + i)))
    (tmp_path / "meta.csv").write_text("\n".join(rows))
    layer = {"path": "S2_{id}.npy", "axes": "TCHW", "sensor": "sentinel2_l2a", "gsd_m": 10, "bands": TEN}
    given = {"name": "files", "root": str(tmp_path), "kind": "regression", "label": "id", "classes": ["n"]}
    given |= {"table": "meta.csv"}
    whole = build_dataset({**given, "layers": {"s2": {**layer, "dates": ["when"]}}})
    thin = build_dataset({**given, "layers": {"s2": {**layer, "dates": ["when"], "evenly": 3}}})
    assert (whole.frames, thin.frames) == (9, 3)
    stored = np.load(tmp_path / "S2_4.npy")
    split, i = split_of(whole, "4")
    np.testing.assert_array_equal(split[i].images["sentinel2_l2a-10m"], stored)
    assert split[i].times["sentinel2_l2a-10m"][-1] == "2019-01-09"
    split, i = split_of(thin, "4")
    np.testing.assert_array_equal(split[i].images["sentinel2_l2a-10m"], stored[[0, 4, 8]])
    assert split[i].times["sentinel2_l2a-10m"] == ["2019-01-01", "2019-01-05", "2019-01-09"]


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_arrays_within_a_file(tmp_path, suffix):
    rng = np.random.default_rng(2)
    images, maps = rng.normal(size=(6, 2, 4, 4)).astype(np.float32), rng.integers(0, 2, (6, 4, 4)).astype(np.uint8)
    path = tmp_path / f"set.{suffix}"
    if suffix == "h5":
        with h5py.File(path, "w") as file:
            file["radar/pixels"], file["maps"] = images, maps
    else:
        group = zarr.open_group(path, mode="w")
        group["radar/pixels"], group["maps"] = images, maps
    layer = {"path": f"set.{suffix}::radar/pixels", "axes": "NCHW", "sensor": "sentinel1_grd", "gsd_m": 10}
    target = {"path": f"set.{suffix}::maps", "axes": "NHW"}
    dataset = build_dataset(options(tmp_path, layers={"s1": {**layer, "bands": ["VV", "VH"]}}, target=target))
    for n in range(6):
        split, i = split_of(dataset, f"{n}_{n:05d}")
        np.testing.assert_array_equal(split[i].images["sentinel1_grd-10m"], images[n])
        np.testing.assert_array_equal(split.target(i), maps[n])


def test_what_is_wrong_with_an_array_names_the_file(stacks):
    with pytest.raises(ValueError, match=r"_s2\.npy has the shape \(4, 6, 6, 5\), but its axes are given as NCH$"):
        layer = options(stacks)["layers"]["s2"]
        build_dataset(options(stacks, layers={"s2": {**layer, "axes": "NCH"}}))
    path = stacks / "north_0_s2.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"north_0_s2\.npy is damaged or no such array"):
        build_dataset(options(stacks))
    np.save(path, np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="Python objects"):
        build_dataset(options(stacks))
