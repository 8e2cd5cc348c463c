import numpy as np
import pytest
import rasterio

from data_prep.band_files import band_of
from data_prep.main import main
from tests.data_prep.layouts import GSD, prepared, tif, write

L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


def band(name: str, image: int) -> np.ndarray:
    side = 240 // GSD.get(name, 20)
    return np.random.default_rng([*name.encode(), image]).integers(1001, 9000, (side, side)).astype(np.uint16)


def test_bands_by_name_at_their_resolution(tmp_path):
    for i, day in enumerate(("20170613", "20230613")):
        for name in L2A:
            path = tmp_path / f"src/S2A_MSIL2A_{day}T1_{i}/S2A_MSIL2A_{day}T1_{i}_{name}.tif"
            write(path, tif(band(name, i), gsd=GSD.get(name, 20)))
    old, new = prepared("band_files", tmp_path / "src", tmp_path / "out", "--sensor", "sentinel2_l2a")
    assert {k: s.bands for k, s in old.specs.items()} == {
        "sentinel2_l2a-60m": ("B01", "B09"),
        "sentinel2_l2a-10m": ("B02", "B03", "B04", "B08"),
        "sentinel2_l2a-20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    }
    for i, sample in enumerate((old, new)):  # the second carries the offset of baseline 04.00
        for key, spec in sample.specs.items():
            for image, name in zip(sample.images[key], spec.bands, strict=True):
                assert np.array_equal(image, band(name, i).astype(int) - 1000 * i)
        assert sample.times[key] == [("2017-06-13", "2023-06-13")[i]] and sample.meta["removed_offset"] == 1000 * i
    next((tmp_path / "src/S2A_MSIL2A_20230613T1_1").glob("*_B11.tif")).unlink()
    with pytest.raises(ValueError, match="S2A_MSIL2A_20230613T1_1 has no file of band B11"):
        main(["band_files", "--src", str(tmp_path / "src"), "--sensor", "sentinel2_l2a", "--out", str(tmp_path / "x")])
    with pytest.raises(ValueError, match="has no folder with files like x_B1.tif"):
        main(["band_files", "--src", str(tmp_path / "out"), "--sensor", "modis", "--out", "x"])


def test_names_of_bands():
    assert [band_of(f"a/{n}.tif", "sentinel2_l2a") for n in ("x_B8A", "B1", "b02", "x_B12", "x_SCL")] == [
        "B8A",
        "B01",
        "B02",
        "B12",
        None,
    ]
    assert band_of("S1A_x/S1A_x_VV.tif", "sentinel1_grd") == "VV"


@pytest.mark.realdata
def test_bigearthnet(realdata, tmp_path):
    root = realdata / "bigearthnet_v1"
    optical = prepared("band_files", root / "s2-tiny", tmp_path / "s2", "--sensor", "sentinel2_l2a")
    radar = prepared("band_files", root / "s1-tiny", tmp_path / "s1", "--sensor", "sentinel1_grd")
    assert (len(optical), len(radar)) == (3, 6) and radar[0].specs["sentinel1_grd-10m"].bands == ("VV", "VH")
    for sample in optical:
        assert {k: i.shape for k, i in sample.images.items()} == {
            "sentinel2_l2a-60m": (2, 20, 20),
            "sentinel2_l2a-10m": (4, 120, 120),
            "sentinel2_l2a-20m": (6, 60, 60),
        }
        folder = sample.meta["folder"]
        with rasterio.open(root / f"s2-tiny/{folder}/{folder}_B8A.tif") as raster:
            index = sample.specs["sentinel2_l2a-20m"].bands.index("B8A")
            assert np.array_equal(sample.images["sentinel2_l2a-20m"][index], raster.read(1))
        assert sample.times["sentinel2_l2a-10m"][0].startswith("2017-") and sample.footprint
