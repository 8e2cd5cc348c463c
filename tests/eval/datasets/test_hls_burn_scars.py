import numpy as np
import pytest
import rasterio

from eval.datasets import build_dataset
from eval.datasets.base import IGNORE

SCENES = {f"HLS.S30.T10TGS.20182{i:02d}.v1.4": "training" for i in range(20)}
SCENES |= {f"HLS.S30.T11SKD.20182{i:02d}.v1.4": "validation" for i in range(5)}


@pytest.fixture
def root(tmp_path, tif, junk):
    """Scenes in their two folders: six bands float32 reflectance, -9999, 9999 and NaN without data; masks int16."""
    rng = np.random.default_rng(0)
    for name, folder in SCENES.items():
        image = rng.uniform(0, 0.5, (6, 16, 16)).astype(np.float32)
        image[:, 0, :3] = [-9999, 9999, np.nan]
        path = tmp_path / folder / f"subsetted_512x512_{name}"
        tif(path.with_name(path.name + "_merged.tif"), image, pixel=30)
        mask = rng.integers(-1, 2, (16, 16)).astype(np.int16)
        tif(path.with_name(path.name + ".mask.tif"), mask, nodata=-1, pixel=30)
    junk(tmp_path)
    return tmp_path


def test_samples_pixel_for_pixel_with_one_nodata_value(root):
    dataset = build_dataset({"name": "hls_burn_scars", "root": str(root)})
    assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [18, 2, 5]
    assert dataset.band_names == [f"hls_s30/{band}" for band in ("B02", "B03", "B04", "B8A", "B11", "B12")]
    for split in dataset.splits.values():
        sample = split[0]
        sample.check_finite()
        path = root / SCENES[sample.meta["id"]] / f"subsetted_512x512_{sample.meta['id']}"
        with rasterio.open(f"{path}_merged.tif") as raster:
            expected = raster.read()
        expected[:, 0, :3] = -9999
        np.testing.assert_array_equal(sample.images["hls_s30-30m"], expected)
        assert dataset.specs[0].invalid(sample.images["hls_s30-30m"]).sum() == 18
        with rasterio.open(f"{path}.mask.tif") as raster:
            mask = raster.read(1)
        np.testing.assert_array_equal(split.target(0), np.where(mask == -1, IGNORE, mask))


def test_statistics_are_of_reflectance(root):
    norm = build_dataset({"name": "hls_burn_scars", "root": str(root)}).normalisation()
    assert norm.units == {"hls_s30": "reflectance"}
    assert all(0.2 < mean < 0.3 for mean, _ in norm.table["hls_s30"].values())


def test_validation_folder_is_the_test_split(root):
    dataset = build_dataset({"name": "hls_burn_scars", "root": str(root)})
    assert all("t11skd" in key for key in dataset.splits["test"].keys)
    with pytest.raises(ValueError, match=r"the folder .*validationx? ?.*is missing|is missing"):
        build_dataset({"name": "hls_burn_scars", "root": str(root / "nowhere")})
