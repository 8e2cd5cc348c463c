import numpy as np
import pytest
import rasterio

from data_prep.main import main
from data_prep.spectral_earth import BANDS, date_in
from dinov2.sensors import SENSORS
from tests.data_prep.layouts import prepared, tif, write


def cube(seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 10_000, (202, 8, 8)).astype(np.int16)
    image[:, 0, 0] = -32768
    return image


def test_all_202_bands_by_wavelength(tmp_path):
    assert len(BANDS) == 202
    names = ["p1/enmap_20220724_a.tif", "p1/enmap_20230101_b.tif", "p2/c.tif"]
    for i, name in enumerate(names):
        write(tmp_path / "enmap" / name, tif(cube(i), 500_000 + 1000 * i, gsd=30))
    samples = prepared("spectral_earth", tmp_path / "enmap", tmp_path / "out")
    assert [s.key for s in samples] == ["p1_enmap_20220724_a", "p1_enmap_20230101_b", "p2_c"]
    for i, sample in enumerate(samples):
        spec, image = sample.specs["enmap-30m"], sample.images["enmap-30m"]
        assert np.array_equal(image, cube(i)) and spec.invalid(image).sum() == 202
        assert (spec.unit, spec.scale, spec.nodata) == ("reflectance", 1e-4, -32768)
        wavelengths = SENSORS["enmap"].channel_ids(spec.bands)
        assert wavelengths[0] == 418 and wavelengths[-1] == 2445
        assert not [w for w in wavelengths if 1350 < w < 1420 or 1800 < w < 1940]  # water vapour
    assert samples[0].times == {"enmap-30m": ["2022-07-24"]} and samples[2].times == {"enmap-30m": []}
    (tmp_path / "list.txt").write_text(f"{names[1]}\n")
    (one,) = prepared("spectral_earth", tmp_path / "enmap", tmp_path / "b", "--list", str(tmp_path / "list.txt"))
    assert one.meta == {"place": "p1", "file": names[1]}
    words = ("--dates", "2022-01-01", "2022-12-31", "--limit", "2")
    (other,) = prepared("spectral_earth", tmp_path / "enmap", tmp_path / "c", *words)
    assert other.key == "p1_enmap_20220724_a"
    (tmp_path / "list.txt").write_text("p9/x.tif")
    with pytest.raises(ValueError, match="enmap/p9/x.tif is missing, which .*list.txt lists"):
        main(["spectral_earth", "--src", str(tmp_path / "enmap"), "--out", "x", "--list", str(tmp_path / "list.txt")])
    write(tmp_path / "few/a.tif", tif(cube(0)[:200]))
    with pytest.raises(ValueError, match="few/a.tif has 200 bands, not 202"):
        main(["spectral_earth", "--src", str(tmp_path / "few"), "--out", str(tmp_path / "d")])


def test_dates_in_names():
    assert date_in("x/ENMAP01-____L2A-DT0000002_20220724T103000Z_b.tif") == "2022-07-24"
    assert date_in("x/00012345678.tif") is None


@pytest.mark.realdata
def test_real_enmap_pixels_in_this_layout(realdata, tmp_path):
    path = sorted((realdata / "enmap/images").glob("*.tif"))[0]
    with rasterio.open(path) as raster:
        image, place = raster.read(), raster.transform
    index = [int(band[1:]) - 1 for band in BANDS]
    stored = image[index].round().astype(np.int16)
    write(tmp_path / "enmap/potsdam/20220724.tif", tif(stored, place.c, place.f, 30, "EPSG:32633"))
    (sample,) = prepared("spectral_earth", tmp_path / "enmap", tmp_path / "out")
    assert np.array_equal(sample.images["enmap-30m"], stored) and sample.times == {"enmap-30m": ["2022-07-24"]}
