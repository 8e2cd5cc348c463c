import numpy as np
import pytest
import rasterio

from data_prep.main import main
from dinov2.data.series_tiles import open_tile
from dinov2.data.shards import ShardSet

pytestmark = pytest.mark.realdata
TABLE = "worldcereal/test_long_parquet_2017_CAN_AAFC-ACIGTD.parquet"
CUBES = {  # the first is classic netCDF, the second HDF5
    "belgium_good_2020-12-01_2021-11-30.nc": (12, 101, 101),
    "WORLDCEREAL-INPUTS-10m_belgium_good_32631_2020-08-30_2022-03-03.nc": (20, 50, 48),
}


def test_the_long_table_becomes_one_sample_per_series(realdata, tmp_path):
    assert main(["worldcereal", "--src", str(realdata / TABLE), "--out", str(tmp_path / "set"), "--months", "12"]) == 0
    shards = ShardSet.open([tmp_path / "set"])
    assert len(shards) == 3621 and len(shards.labels["crop"]["classes"]) == 8
    sample = shards.read(0, 0)
    assert sample.key.startswith("2017_can_aafc-")
    optical, radar = sample.images["sentinel2_l2a-10m"], sample.images["sentinel1_rtc-10m"]
    assert optical.shape == (12, 9, 1, 1) and radar.shape == (12, 2, 1, 1)
    dates = sample.times["sentinel2_l2a-10m"]
    assert dates[0] == "2017-01-01" and dates[-1] == "2017-12-01"  # months begin in the evening before in the table
    power = radar[..., 0, 0] / 100
    assert -35 < power[:, 1].mean() < power[:, 0].mean() < 0


def test_more_months_than_the_shortest_series_has_are_refused(realdata, tmp_path):
    with pytest.raises(ValueError, match="the shortest series has 17 months; lower --months 18"):
        main(["worldcereal", "--src", str(realdata / TABLE), "--out", str(tmp_path / "set"), "--months", "18"])


@pytest.mark.parametrize("name", CUBES)
def test_cubes_become_tiles_with_the_files_numbers(realdata, tmp_path, name):
    count, height, width = CUBES[name]
    path = realdata / "worldcereal" / name
    assert main(["timeseries", "--src", str(path), "--out", str(tmp_path / "tiles")]) == 0
    tile = open_tile(tmp_path / "tiles" / f"0_0_{width}_{height}")
    assert tile.crs == "EPSG:32631" and tile.array("bands").shape == (count, height, width, 9)
    with rasterio.open(f"netcdf:{path}:VV") as raster:
        numbers = raster.read().astype(float)
    db = tile.array("sar_ascending")[..., 0] / 100
    np.testing.assert_allclose(db, 20 * np.log10(numbers) - 83, atol=0.0051)
    assert (tile.array("masks") == tile.array("bands").any(-1)).all()
