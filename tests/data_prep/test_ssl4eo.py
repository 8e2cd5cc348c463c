import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep import zarrs
from data_prep.common import Refused
from data_prep.main import main
from tests.data_prep.layouts import S2, prepared, zarr_zip

PLACES, TIMES, SIDE = 3, 4, 24
BANDS = {"S2L1C": 13, "S2L2A": 12, "S1GRD": 2, "S2RGB": 3}
KEYS = {"S2L1C": "sentinel2_l1c-10m", "S2L2A": "sentinel2_l2a-10m", "S1GRD": "sentinel1_grd-10m", "S2RGB": "rgb-10m"}
DAYS = np.array([["2020-02-01", "2020-05-01", "2020-08-01", "2020-11-01"]] * PLACES, "M8[ns]")


def bands(modality: str, file: int) -> np.ndarray:
    rng = np.random.default_rng([*modality.encode(), file])
    shape = (PLACES, TIMES, BANDS[modality], SIDE, SIDE)
    if modality == "S1GRD":
        return rng.normal(-12, 5, shape).astype(np.float16)
    out = rng.integers(1, 250 if modality == "S2RGB" else 10_000, shape)
    if modality == "S2L2A":
        out[:, 3] += 1000  # the last season carries the offset
    return out.astype(np.uint8 if modality == "S2RGB" else np.int16)


def dataset(src: Path, modalities=tuple(BANDS), files=(1, 2), **change) -> Path:
    for modality in modalities:
        for file in files:
            arrays = {
                "bands": bands(modality, file),
                "sample": np.array([f"{100 * file + i:07d}" for i in range(PLACES)]),
                "time_": DAYS + np.timedelta64(modality == "S1GRD", "D"),
                "crs": np.full(PLACES, 32632),
                "center_lon": 9.0 + 0.1 * np.arange(PLACES),
                "center_lat": np.full(PLACES, 46.0 + file),
            }
            if modality.startswith("S2L"):
                arrays["cloud_mask"] = np.full((PLACES, TIMES, SIDE, SIDE), file, np.uint8)
            arrays |= change
            chunks = {"bands": (1, 1, BANDS[modality], SIDE, SIDE)}
            zarr_zip(src / modality / f"ssl4eos12_train_seasonal_data_{file:06d}.zarr.zip", arrays, chunks)
    return src


def test_seasons_of_all_modalities(tmp_path):
    samples = prepared("ssl4eo", dataset(tmp_path / "src"), tmp_path / "out", "--workers", "2")
    assert [s.meta["place"] for s in samples] == [f"{100 * f + i:07d}" for f in (1, 2) for i in range(PLACES)]
    for n, sample in enumerate(samples):
        file, i = 1 + n // PLACES, n % PLACES
        assert set(sample.images) == {KEYS[m] for m in ("S2L1C", "S2L2A", "S1GRD")}
        for modality in ("S2L1C", "S2L2A", "S1GRD"):
            image, spec = sample.images[KEYS[modality]], sample.specs[KEYS[modality]]
            assert image.dtype == bands(modality, file).dtype and np.array_equal(image, bands(modality, file)[i])
            assert len(sample.times[KEYS[modality]]) == TIMES
        assert sample.specs[KEYS["S2L1C"]].bands == S2 and spec.bands == ("VV", "VH") and spec.unit == "db"
        assert sample.times[KEYS["S2L2A"]][1] == "2020-05-01" and sample.times[KEYS["S1GRD"]][1] == "2020-05-02"
        assert (sample.labels["cloud_mask"] == file).all() and sample.crs == "EPSG:32632"
        assert sample.footprint[2] - sample.footprint[0] == pytest.approx(10 * SIDE)


def test_area_seasons_modalities_and_offset(tmp_path):
    src = dataset(tmp_path / "src")
    words = ("--bbox", "9.05", "46.9", "9.15", "47.1", "--dates", "2020-05-01", "2020-12-31")
    (sample,) = prepared(
        "ssl4eo", src, tmp_path / "a", *words, "--modalities", "S2L2A,S2RGB", "--baseline-offset", "detect"
    )
    assert sample.meta["place"] == "0000101" and sample.meta["removed_offset"] == {"S2L2A": [0, 0, 1000]}
    assert np.array_equal(sample.images["rgb-10m"], bands("S2RGB", 1)[1, 1:])
    want = bands("S2L2A", 1)[1, 1:].copy()
    want[2] -= 1000
    assert np.array_equal(sample.images[KEYS["S2L2A"]], want) and sample.specs[KEYS["S2L2A"]].nodata == -32768
    chips = prepared("ssl4eo", src, tmp_path / "b", "--limit", "1", "--modalities", "S1GRD", "--chip", "12")
    assert [c.images[KEYS["S1GRD"]].shape for c in chips] == [(4, 2, 12, 12)] * 4
    assert np.array_equal(chips[1].images[KEYS["S1GRD"]], bands("S1GRD", 1)[0, :, :, :12, 12:])


def test_only_the_chunks_of_a_place_are_read(tmp_path):
    path = dataset(tmp_path, ("S2L1C",), (1,)) / "S2L1C/ssl4eos12_train_seasonal_data_000001.zarr.zip"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("bands/9.0.0.0.0", b"not a chunk")
    zipped, read = zarrs.ZarrZip(path.open("rb"), "x"), []
    original = zipped.zip.read
    zipped.zip.read = lambda name: read.append(name) or original(name)
    assert np.array_equal(zipped.array("bands", 1), bands("S2L1C", 1)[1])
    assert {name for name in read if name[-1].isdigit()} == {f"bands/1.{t}.0.0.0" for t in range(TIMES)}


def test_times_as_xarray_writes_them(tmp_path):
    data = zarr_zip(tmp_path / "t.zip", {"days": np.array([3, 40]), "ns": np.array([1_580_515_200_000_000_000])})
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive, zipfile.ZipFile(io.BytesIO(data)) as old:
        for name in old.namelist():
            if name != "days/.zattrs":
                archive.writestr(name, old.read(name))
        archive.writestr("days/.zattrs", json.dumps({"units": "days since 2020-01-01 00:00:00"}))
    zipped = zarrs.ZarrZip((tmp_path / "t.zip").open("rb"), "x")
    assert zipped.dates("days") == ["2020-01-04", "2020-02-10"] and zipped.dates("ns") == ["2020-02-01"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compressor": None, "filters": [{"id": "pickle"}], "dtype": "|O"}, "the codec 'pickle', which is not read"),
        ({"shape": [3, 4, 13, 40_000, 40_000]}, "bands declares .* .limit 1073741824 bytes"),
        ({"chunks": [3, 4, 13, 40_000, 40_000]}, "bands declares chunks of"),
        ({"chunks": [3, 4, 13, 2**33, 2**33]}, "bands declares chunks of"),  # more than 64 bits can count
    ],
)
def test_unsafe_arrays_are_refused(tmp_path, change, message):
    src = dataset(tmp_path, ("S2L1C",), (1,)) / "S2L1C/ssl4eos12_train_seasonal_data_000001.zarr.zip"
    with zipfile.ZipFile(src) as old:
        members = {name: old.read(name) for name in old.namelist()}
    meta = json.loads(members["bands/.zarray"]) | change
    with zipfile.ZipFile(src, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, json.dumps(meta) if name == "bands/.zarray" else data)
    with pytest.raises(Refused, match=message):
        zarrs.ZarrZip(src.open("rb"), "x").array("bands", 0)


def test_files_that_contradict_are_one_sentence(tmp_path):
    src = dataset(tmp_path / "src", ("S2L1C", "S1GRD"), (1,))
    dataset(src, ("S1GRD",), (1,), sample=np.array(["0000009"] * PLACES))
    with pytest.raises(ValueError, match="number 0 is the place 0000009, in other modalities 0000100"):
        main(["ssl4eo", "--src", str(src), "--out", str(tmp_path / "a")])
    dataset(src, ("S1GRD",), (2,))
    with pytest.raises(ValueError, match="data_000002.zarr.zip is not in both .*S2L1C and .*S1GRD"):
        main(["ssl4eo", "--src", str(src), "--out", str(tmp_path / "a")])
    with pytest.raises(ValueError, match="has no folder S2L2A; it has S2L1C, S1GRD"):
        main(["ssl4eo", "--src", str(src), "--out", "x", "--modalities", "S2L2A"])
    dataset(tmp_path / "wide", ("S2L2A",), (1,), bands=bands("S2L1C", 1))
    with pytest.raises(ValueError, match=r"images of shape \(4, 13, 24, 24\), not \[time, 12 bands, y, x\]"):
        main(["ssl4eo", "--src", str(tmp_path / "wide"), "--out", str(tmp_path / "b")])
