import datetime
import json
import os
import pickle
import shutil

import h5py
import numpy as np
import pytest

from eval.datasets import DATASETS, build_dataset, defaults
from eval.datasets.base import IGNORE

NAMES = [name for name in DATASETS if name.startswith("m-")]
DATED = {"m-forestnet": "2015-06-01", "m-cashew-plant": "2019-11-05", "m-nz-cattle": "2019-01-01"}
DTYPES = {"m-eurosat": np.int16, "m-SA-crop-type": np.int16, "m-brick-kiln": np.float64, "rgb": np.uint8}
IDS = [f"id_{i}" for i in range(12)]
PARTS = {"train": IDS[:6], "valid": IDS[6:9], "test": IDS[9:]}


def dump(label, order=()):
    """The metadata as the package writes it: the text of the bytes of a pickle."""
    return str(pickle.dumps({"label": label, "bands_order": list(order)}))


def write_set(folder, name, labels=None):
    """A set in the published layout with random pixels; returns {id: {array: pixels}}. Some arrays nobody reads."""
    options, rng, out = defaults(name), np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    (folder / "default_partition.json").write_text(json.dumps(PARTS))
    (folder / "0.01x_train_partition.json").write_text(json.dumps({**PARTS, "train": IDS[:1]}))
    suffix = f"_{DATED[name]}" if name in DATED else ""
    kind, count = options.get("kind", "classification"), len(options["classes"])
    for number, key in enumerate(IDS):
        arrays = {"Neon": rng.random((4, 4, 9)).astype(np.float32)}
        for layer in options["layers"].values():
            dtype = DTYPES.get(name, DTYPES.get(layer["sensor"], np.float32))
            arrays |= {f"{n}{suffix}": rng.integers(1, 99, (8, 8)).astype(dtype) for n in layer["names"]}
        if kind == "segmentation":
            codes = options.get("target", {}).get("codes") or range(count)
            numbers = [*codes, *options.get("target", {}).get("ignore", [])]
            arrays["label" + suffix] = rng.choice(numbers, (8, 8)).astype(np.int64)
        with h5py.File(folder / f"{key}.hdf5", "w") as file:
            for array, pixels in arrays.items():
                file[array] = pixels
            label = [i % 2 for i in range(count)] if kind == "multilabel" else number % count
            file.attrs["pickle"] = dump(label if labels is None else labels[number], arrays)
        (folder / f"._{key}.hdf5").write_bytes(b"\x00\x05")
        out[key] = arrays
    return out


@pytest.mark.parametrize("name", NAMES)
def test_every_set_pixel_for_pixel(tmp_path, name):
    arrays, options = write_set(tmp_path / name, name), defaults(name)
    dataset = build_dataset({"name": name, "root": str(tmp_path / name), "images": None})
    assert {n: s.keys for n, s in dataset.splits.items()} == {
        "train": tuple(IDS[:6]), "val": tuple(IDS[6:9]), "test": tuple(IDS[9:])
    }  # fmt: skip
    suffix = f"_{DATED[name]}" if name in DATED else ""
    split = dataset.splits["val"]
    sample, stored = split[1], arrays["id_7"]
    for layer, image in zip(options["layers"].values(), sample.images.values(), strict=True):
        expected = np.stack([stored[f"{n}{suffix}"] for n in layer["names"]])
        np.testing.assert_array_equal(image, expected)
        assert image.dtype == expected.dtype
    assert all(dates == ([DATED[name]] if suffix else []) for dates in sample.times.values())
    if dataset.kind == "segmentation":
        target = options.get("target", {})
        codes = target.get("codes") or list(range(len(dataset.classes)))
        expected = np.full((8, 8), IGNORE)
        for number, code in enumerate(codes):
            expected[stored["label" + suffix] == code] = number
        np.testing.assert_array_equal(split.target(1), expected)
    elif dataset.kind == "multilabel":
        assert split.labels[1].tolist() == [i % 2 == 1 for i in range(43)]
    else:
        assert split.labels.tolist() == [i % len(dataset.classes) for i in (6, 7, 8)]


def test_there_are_twelve():
    assert len(NAMES) == 12
    kinds = [defaults(name).get("kind", "classification") for name in NAMES]
    assert [kinds.count(kind) for kind in ("classification", "multilabel", "segmentation")] == [5, 1, 6]


def test_labels_come_from_the_tables_where_there_are_some(tmp_path):
    root = tmp_path / "m-eurosat"
    write_set(root, "m-eurosat", labels=[9] * 12)
    table = {"7": IDS[:3], "0": IDS[3:11], "3": IDS[11:]}  # the number counts, not the position
    (root / "label_map.json").write_text(json.dumps(table))
    dataset = build_dataset({"name": "m-eurosat", "root": str(root)})
    assert dataset.splits["train"].labels.tolist() == [7, 7, 7, 0, 0, 0]
    assert dataset.splits["test"].labels.tolist() == [0, 0, 3]
    root = tmp_path / "m-bigearthnet"
    write_set(root, "m-bigearthnet")
    stats = {key: [int(i == n) for i in range(43)] for n, key in enumerate(IDS)}
    (root / "label_stats.json").write_text(json.dumps(stats))
    dataset = build_dataset({"name": "m-bigearthnet", "root": str(root)})
    assert dataset.splits["test"].labels.nonzero().tolist() == [[0, 9], [1, 10], [2, 11]]


def test_smaller_training_splits(tmp_path):
    write_set(tmp_path / "m-pv4ger", "m-pv4ger")
    dataset = build_dataset({"name": "m-pv4ger", "root": str(tmp_path / "m-pv4ger"), "partition": "0.01x_train"})
    assert [len(split) for split in dataset.splits.values()] == [1, 3, 3]


def test_a_file_changed_in_place_is_other_data(tmp_path):
    write_set(tmp_path / "m-eurosat", "m-eurosat")
    given = {"name": "m-eurosat", "root": str(tmp_path / "m-eurosat"), "images": None}
    before = build_dataset(given).data_hash
    assert build_dataset(given).data_hash == before
    with h5py.File(tmp_path / "m-eurosat" / "id_3.hdf5", "r+") as file:
        band = next(iter(file.values()))
        band[...] = band[...][::-1]
    assert build_dataset(given).data_hash != before


def test_units_are_stated_as_they_are(tmp_path):
    for name, key, unit, low, high in (
        ("m-so2sat", "sentinel2_l1c-10m", "reflectance", 1, 99),
        ("m-SA-crop-type", "sentinel2_l2a-10m", "dn", 1, 99),
        ("m-eurosat", "sentinel2_l1c-10m", "reflectance", 1e-4, 99e-4),
        ("m-chesapeake", "naip-1m", "dn", 255, 99 * 255),
    ):
        write_set(tmp_path / name, name)
        dataset = build_dataset({"name": name, "root": str(tmp_path / name)})
        spec = dataset.specs[0]
        physical = spec.to_model(dataset.splits["train"][0].images[key])
        assert (spec.key, spec.model_unit) == (key, unit)
        assert physical.min() >= low * 0.999 and physical.max() <= high * 1.001


def test_the_package_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("GEO_BENCH_DIR", str(tmp_path / "made"))  # it makes this folder when it is imported
    package = pytest.importorskip("geobench.dataset")
    rng, root = np.random.default_rng(5), tmp_path / "m-eurosat"
    root.mkdir()
    info = list(package.sentinel2_13_bands)
    for number, key in enumerate(IDS):
        bands = [
            package.Band(rng.integers(0, 9999, (8, 8)).astype(np.int16), band, 10, date=datetime.date(2018, 1, 2))
            for band in info
        ]
        package.write_sample_hdf5(package.Sample(bands, number % 10, key), str(root))
    (root / "default_partition.json").write_text(json.dumps(PARTS))
    dataset = build_dataset({"name": "m-eurosat", "root": str(root)})
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            theirs = package.load_sample_hdf5(root / f"{key}.hdf5")
            pixels, _ = theirs.pack_to_3d(band_names=[band.name for band in info])
            np.testing.assert_array_equal(split[i].images["sentinel2_l1c-10m"], pixels.transpose(2, 0, 1))
            assert split[i].times == {"sentinel2_l1c-10m": ["2018-01-02"]}
            assert split.labels[i] == theirs.label


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "m-pv4ger", "m-pv4ger", labels=[0] * 5 + [Evil()] + [0] * 6)
    with pytest.raises(ValueError, match=r"id_5\.hdf5: its metadata names (posix|nt|os)\.system, which is refused"):
        build_dataset({"name": "m-pv4ger", "root": str(tmp_path / "m-pv4ger")})
    assert not (tmp_path / "ran").exists()


def partition(root, text):
    (root / "default_partition.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root), r"default_partition\.json is missing"),
        (lambda root: (root / "id_8.hdf5").unlink(), r"id_8\.hdf5 is missing, which default_partition\.json lists"),
        (lambda root: partition(root, json.dumps({**PARTS, "train": IDS})), r"'id_6' is in both"),
        (lambda root: (root / "id_0.hdf5").write_bytes(b"\x89HDF\r\n\x1a\nx"), r"id_0\.hdf5 is damaged or of another"),
    ],
)
def test_bad_input(tmp_path, spoil, message):
    root = tmp_path / "m-chesapeake"
    write_set(root, "m-chesapeake")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        build_dataset({"name": "m-chesapeake", "root": str(root)})


def test_a_band_that_a_file_lacks_and_a_label_out_of_range(tmp_path):
    root = tmp_path / "m-chesapeake"
    write_set(root, "m-chesapeake")
    with h5py.File(root / "id_1.hdf5", "a") as file:
        del file["Red"]
    with h5py.File(root / "id_2.hdf5", "a") as file:
        file["label"][0, 0] = 7
    train = build_dataset({"name": "m-chesapeake", "root": str(root)}).splits["train"]
    with pytest.raises(ValueError, match=r"id_1\.hdf5 is damaged or of another data set .*no band 'Red'"):
        train[1]
    with pytest.raises(ValueError, match=r"id_2\.hdf5 has the label 7, which is no class"):
        train.target(2)


@pytest.mark.realdata
def test_real_files(tmp_path, realdata):
    base = realdata / "geobench"
    found = {
        "m-brick-kiln": sorted((base / "ccb-test-classification/brick_kiln_v1.0").glob("*.hdf5")),
        "m-chesapeake": sorted((base / "ccb-test-segmentation/cvpr_chesapeake_landcover").glob("*.hdf5")),
        "m-eurosat": [base / "m-eurosat/id_1905.hdf5"] * 3,
    }
    for name, files in found.items():
        root = tmp_path / name
        root.mkdir()
        keys = [f"s{i}" for i in range(len(files))]
        for key, file in zip(keys, files, strict=True):
            shutil.copy(file, root / f"{key}.hdf5")
        partition(root, json.dumps({"train": keys[:-2], "valid": keys[-2:-1], "test": keys[-1:]}))
        dataset = build_dataset({"name": name, "root": str(root)})
        for split in dataset.splits.values():
            for i in range(len(split)):
                split[i].check_finite()
                assert split.labels is not None or set(np.unique(split.target(i))) <= {IGNORE, *range(6)}
        means = dataset.normalisation().table[dataset.specs[0].sensor]
        if name == "m-eurosat":  # under the right names cirrus is nearly black and B8A is as bright as B08
            assert dataset.splits["train"].labels.tolist() == [1]
            assert means["B10"][0] < 0.002 and abs(means["B8A"][0] - means["B07"][0]) < 0.05
        if name == "m-brick-kiln":
            assert means["B12"][0] < means["B11"][0] and len(means) == 10
