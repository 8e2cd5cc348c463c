from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

UTM = "EPSG:32633"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Kept listings go to a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def tif():
    """``tif(path, array [C, H, W] or [H, W], nodata=, crs=, corner=, pixel=)`` writes a GeoTIFF."""

    def write(path: Path, array: np.ndarray, nodata=None, crs=UTM, corner=(500000, 5000000), pixel=10.0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = array if array.ndim == 3 else array[None]
        shape = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2]}
        place = {"crs": crs, "transform": from_origin(*corner, pixel, pixel)} if crs else {}
        with rasterio.open(path, "w", driver="GTiff", dtype=array.dtype, nodata=nodata, **shape, **place) as raster:
            raster.write(array)
        return path

    return write


@pytest.fixture
def junk():
    """``junk(folder)`` puts a ``._`` file, as macOS archives carry it, beside every file."""

    def write(folder: Path) -> None:
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")

    return write
