import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.main import main
from tests.data_prep.layouts import prepared, zarr_zip

SIDE = 24
SHAPES = {"S2L1C": 13, "S2L2A": 12, "S1GRD": 2, "S1RTC": 2, "DEM": 1, "NDVI": 1, "LULC": 1}
KEYS = {"S2L1C": "sentinel2_l1c-10m", "S2L2A": "sentinel2_l2a-10m", "S1RTC": "sentinel1_rtc-10m", "DEM": "dem-10m"}


def pixels(modality: str, key: str) -> np.ndarray:
    rng = np.random.default_rng([*modality.encode(), *key.encode()])
    shape = (1, SHAPES[modality], SIDE, SIDE)
    if modality.startswith("S1"):
        return rng.normal(-12, 5, shape).astype(np.float16)
    if modality == "NDVI":
        return rng.uniform(-1, 1, shape).astype(np.float32)
    if modality == "LULC":
        return rng.integers(0, 10, shape).astype(np.uint8)
    return rng.integers(1, 10_000, shape).astype(np.int16)


def shard(src: Path, modality: str, name: str, keys: list[str], **change) -> None:
    (src / modality).mkdir(parents=True, exist_ok=True)
    with tarfile.open(src / modality / name, "w") as tar:
        for n, key in enumerate(keys):
            arrays = {
                "bands": pixels(modality, key),
                "center_lon": np.array([9.0 + n]),
                "center_lat": np.array([47.0]),
                "time": np.array([0 if modality == "DEM" else 1_588_723_200_000_000_000]),  # 6 May 2020
            } | change
            data = zarr_zip(src / "member.zip", arrays)
            info = tarfile.TarInfo(f"{key}.zarr.zip")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (src / "member.zip").unlink()


@pytest.fixture
def src(tmp_path) -> Path:
    keys = {n: [f"{n}_val_{i:04d}" for i in range(2)] for n in ("majortom", "ssl4eos12")}
    for modality in SHAPES:
        for n, number in (("majortom", "000001"), ("ssl4eos12", "000009")):
            if modality != {"majortom": "S1GRD", "ssl4eos12": "S1RTC"}[n]:
                shard(tmp_path / "src", modality, f"{n}_shard_{number}.tar", keys[n])
    return tmp_path / "src"


def test_all_modalities_of_both_kinds_of_shards(src, tmp_path):
    samples = prepared("terramesh", src, tmp_path / "out", "--baseline-offset", "none")
    assert [s.key for s in samples] == [f"{n}_val_{i:04d}" for n in ("majortom", "ssl4eos12") for i in (0, 1)]
    for sample in samples:
        radar = "S1RTC" if sample.key.startswith("majortom") else "S1GRD"
        keys = {**KEYS, "S1GRD": "sentinel1_grd-10m"}
        assert set(sample.images) == {keys[m] for m in ("S2L1C", "S2L2A", "DEM", radar)}
        for modality in ("S2L1C", "S2L2A", "DEM", radar):
            assert np.array_equal(sample.images[keys[modality]], pixels(modality, sample.key)[0])
        assert sample.specs[keys[radar]].unit == "db" and sample.images[keys[radar]].dtype == np.float16
        assert sample.times[keys["S2L2A"]] == ["2020-05-06"] and sample.times["dem-10m"] == []
        codes = pixels("LULC", sample.key)[0, 0]
        assert np.array_equal(sample.labels["landcover"], np.where(codes == 0, 255, codes - 1))
        assert np.array_equal(sample.labels["ndvi"], pixels("NDVI", sample.key)[0, 0])
        assert sample.crs == "EPSG:4326" and sample.footprint[1] < 47 < sample.footprint[3]


def test_area_and_limit(src, tmp_path):
    words = ("--baseline-offset", "none")
    some = prepared("terramesh", src, tmp_path / "a", *words, "--bbox", "9.9", "46", "10.1", "48")
    assert [s.key for s in some] == ["majortom_val_0001", "ssl4eos12_val_0001"]
    assert len(prepared("terramesh", src, tmp_path / "b", *words, "--limit", "3", "--chip", "12")) == 12


def test_tars_that_contradict_or_threaten(src, tmp_path):
    words = ["terramesh", "--src", str(src), "--out", str(tmp_path / "out"), "--baseline-offset", "none"]
    shard(src, "DEM", "majortom_shard_000001.tar", ["majortom_val_0000", "majortom_val_0007"])
    with pytest.raises(ValueError, match="DEM/majortom_shard_000001.tar and .*S2L1C/.* hold other keys"):
        main(words)
    for name in ("/etc/x.zarr.zip", "../x.zarr.zip"):
        with tarfile.open(src / "DEM/majortom_shard_000001.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
        with pytest.raises(ValueError, match=f"the member '{name}' is refused: do not unpack this"):
            main(words)
    with tarfile.open(src / "DEM/majortom_shard_000001.tar", "w") as tar:
        info = tarfile.TarInfo("x.zarr.zip")
        info.size = 1 << 30
        tar.addfile(info)
    with pytest.raises(ValueError, match="x.zarr.zip declares 1073741824 bytes .limit 67108864"):
        main(words)
    shard(src, "DEM", "majortom_shard_000001.tar", ["majortom_val_0000"], bands=np.zeros((1, 2, 4, 4)))
    for modality in ("S2L1C", "S2L2A", "S1RTC", "NDVI", "LULC"):
        shard(src, modality, "majortom_shard_000001.tar", ["majortom_val_0000"])
    with pytest.raises(ValueError, match=r"majortom_val_0000 has images of shape \(1, 2, 4, 4\), not \[time, 1 bands"):
        main(words)
