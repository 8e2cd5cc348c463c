import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from data_prep.main import main
from data_prep.mmearth_modalities import LABELS
from dinov2.train import schema
from dinov2.train.trainer import train
from tests.data_prep.layouts import mmearth, prepared

COUNT, SIDE = 4, 16
ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B08", "B09", "B10", "B11", "B12")  # as documented


def tiles(count: int = COUNT, descending: tuple[str, ...] | None = ("VV", "VH")) -> dict[str, dict]:
    return {
        f"Tile_{i}": {
            "S2_DATE": f"2020-0{1 + i}-15",
            "S2_type": ("l1c", "l2a")[i % 2],
            "CRS": "EPSG:32632",
            "lat": 47.0 + i / 10,
            "lon": 9.0,
            "BANDS": {"sentinel1_asc": ["VV", "VH"], "sentinel1_desc": descending if i else None},
        }
        for i in range(count)
    }


def arrays(count: int = COUNT, side: int = SIDE) -> dict[str, np.ndarray]:
    """Every data set of the file, with numbers that no other tile, channel or pixel has, and the documented fills."""
    rng = np.random.default_rng(0)
    maps = {
        "sentinel2": (13, np.uint16, 1, 10_000),
        "sentinel2_cloudmask": (1, np.uint16, 0, 1024),
        "sentinel2_cloudprod": (1, np.uint16, 0, 100),
        "sentinel2_scl": (1, np.uint8, 0, 11),
        "aster": (2, np.int16, -100, 3000),
        "dynamic_world": (1, np.uint8, 0, 10),
        "canopy_height_eth": (2, np.int8, 0, 60),
    }
    out = {k: rng.integers(lo, hi, (count, c, side, side)).astype(t) for k, (c, t, lo, hi) in maps.items()}
    out["sentinel1"] = rng.normal(-12, 5, (count, 8, side, side)).astype(np.float32)
    out["sentinel1"][:, [2, 3, 6, 7]] = -np.inf  # no HH, HV
    out["sentinel1"][0, 4:] = -np.inf  # no descending pass
    codes = np.array([0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100, 255], np.uint8)
    out["esa_worldcover"] = rng.choice(codes, (count, 1, side, side))
    for i in range(1, count, 2):  # level 2A
        out["sentinel2"][i, 10] = 0
    for i in range(0, count, 2):  # level 1C
        out["sentinel2_cloudprod"][i], out["sentinel2_scl"][i] = 65535, 255
    out["canopy_height_eth"][0, 0, 0, 0], out["aster"][0, 0, 0, 0] = 127, -32768
    out["era5"] = rng.normal(280, 10, (count, 12)).astype(np.float32)
    out["era5"][1, 3] = np.inf
    for name in ("lat", "lon", "month"):
        out[name] = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    for name, n, dtype in (("biome", 14, np.uint8), ("eco_region", 846, np.uint16)):
        out[name] = np.eye(n, dtype=dtype)[rng.integers(0, n, count)]
    return out


@pytest.fixture(scope="module")
def src(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mmearth") / "data_100k_v001"
    mmearth(folder, arrays(), tiles(), {"train": [0, 1, 2], "val": [3], "test": []})
    return folder


@pytest.fixture(scope="module")
def samples(src, tmp_path_factory):
    return prepared("mmearth", src, tmp_path_factory.mktemp("out"), "--workers", "2", "--samples-per-shard", "2")


def test_images_have_the_bands_of_their_level_by_name(samples):
    stored = arrays()
    assert [s.key for s in samples] == [f"tile_{i}" for i in range(COUNT)]
    for i, sample in enumerate(samples):
        level = ("sentinel2_l1c-10m", "sentinel2_l2a-10m")[i % 2]
        assert set(sample.images) == {level, "sentinel1_grd-10m", "dem-10m", "slope-10m"}
        spec = sample.specs[level]
        assert spec.bands == tuple(b for b in ORDER if i % 2 == 0 or b != "B10")
        assert (spec.unit, spec.scale, spec.nodata) == ("reflectance", 1e-4, 0)
        for channel, band in enumerate(ORDER):
            if band in spec.bands:
                assert np.array_equal(sample.images[level][spec.bands.index(band)], stored["sentinel2"][i, channel])
        assert np.array_equal(sample.images["dem-10m"], stored["aster"][i, :1])
        assert np.array_equal(sample.images["slope-10m"], stored["aster"][i, 1:])
        assert sample.times == {level: [f"2020-0{1 + i}-15"], "sentinel1_grd-10m": [], "dem-10m": [], "slope-10m": []}
        assert sample.meta["split"] == ("val" if i == 3 else "train") and sample.crs == "EPSG:32632"


def test_radar_tells_its_pass_and_what_is_absent(samples):
    stored = arrays()["sentinel1"]
    for i, sample in enumerate(samples):
        spec, image = sample.specs["sentinel1_grd-10m"], sample.images["sentinel1_grd-10m"]
        assert spec.unit == "db" and spec.bands[:2] == ("VV_ascending", "VH_ascending")
        assert spec.bands[2:] == ("VV_descending", "VH_descending")  # no tile has HH or HV
        there = stored[i][[0, 1, 4, 5]]
        absent = np.isneginf(there)
        assert np.array_equal(spec.invalid(image), absent) and np.array_equal(image[~absent], there[~absent])


def test_labels_mark_what_is_unknown(samples):
    stored = arrays()
    for i, sample in enumerate(samples):
        labels = sample.labels
        assert set(labels) | {"sentinel2_scl", "sentinel2_cloudprod"} == set(LABELS)
        assert ("sentinel2_scl" in labels) == ("sentinel2_cloudprod" in labels) == (i % 2 == 1)
        codes = [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
        cover = stored["esa_worldcover"][i, 0]
        assert all(labels["esa_worldcover"][cover == code].tolist().count(n) for n, code in enumerate(codes))
        assert (labels["esa_worldcover"][~np.isin(cover, codes)] == 255).all()
        world = stored["dynamic_world"][i, 0]
        assert np.array_equal(labels["dynamic_world"][world > 0], world[world > 0] - 1)
        assert (labels["dynamic_world"][world == 0] == 255).all()
        height, unknown = stored["canopy_height_eth"][i, 0], stored["canopy_height_eth"][i, 0] == 127
        assert np.array_equal(np.isnan(labels["canopy_height"]), unknown) and unknown.any() == (i == 0)
        assert np.array_equal(labels["canopy_height"][~unknown], height[~unknown])
        assert all(labels[name] == stored[name][i].argmax() for name in ("biome", "eco_region"))
        assert np.array_equal(np.isfinite(labels["era5"]), np.isfinite(stored["era5"][i]))
        assert np.array_equal(labels["month"], stored["month"][i])
    assert np.array_equal(samples[1].labels["sentinel2_scl"], stored["sentinel2_scl"][1, 0])
    dem = samples[0].specs["dem-10m"]
    assert dem.invalid(samples[0].images["dem-10m"]).sum() == 1


def test_area_dates_splits_and_bands(src, tmp_path, capsys):
    def kept(*words: str):
        return prepared("mmearth", src, tmp_path / "_".join(words), *words)

    assert [s.key for s in kept("--bbox", "8.9", "47.09", "9.1", "47.21")] == ["tile_1", "tile_2"]
    assert [s.key for s in kept("--split", "val")] == ["tile_3"]
    assert [s.key for s in kept("--dates", "2020-02-01", "2020-12-31", "--limit", "1")] == ["tile_1"]
    assert "1 skipped: outside of --dates" in " ".join(capsys.readouterr().out.split())
    red = kept("--keep-bands", "sentinel2_l2a=B04,B03")
    assert [s.key for s in red] == ["tile_1", "tile_3"]
    assert red[0].specs["sentinel2_l2a-10m"].bands == ("B03", "B04")
    assert np.array_equal(red[0].images["sentinel2_l2a-10m"], arrays()["sentinel2"][1, 2:4])


def test_files_that_contradict_are_one_sentence(tmp_path):
    def run(name: str, change: dict, about=None) -> None:
        mmearth(tmp_path / name, arrays() | change, about or tiles(), {"train": [0]})
        prepared("mmearth", tmp_path / name, tmp_path / f"{name}_out")

    with pytest.raises(ValueError, match=r"a.h5: sentinel2 has tiles of \(12, 16, 16\) uint16, not 13 channels"):
        run("a", {"sentinel2": arrays()["sentinel2"][:, :12]})
    with pytest.raises(ValueError, match="tile Tile_0 is of Sentinel-2 level 'l3'"):
        run("b", {}, {"Tile_0": {**tiles()["Tile_0"], "S2_type": "l3"}})
    mmearth(tmp_path / "c", arrays(), tiles(), {"train": [0]})
    (tmp_path / "c/c_tile_info.json").write_text(json.dumps({"Other": {}}))
    with pytest.raises(ValueError, match="c_tile_info.json does not tell of the tile Tile_0 of row 0"):
        prepared("mmearth", tmp_path / "c", tmp_path / "c_out")
    (tmp_path / "c/c_splits.json").unlink()
    with pytest.raises(ValueError, match="c_splits.json is missing: --src is the folder of c.h5"):
        main(["mmearth", "--src", str(tmp_path / "c"), "--out", "x"])


@pytest.mark.realdata
def test_real_scenes_in_mmearth_files(realdata, tmp_path):
    """TerraMesh scenes as MMEarth tiles: band order, levels and fills of real pixels, and a pretraining run on them."""
    scenes = sorted(path.stem for path in (realdata / "terramesh/S2L2A").glob("*.tif"))

    def scene(folder: str, name: str) -> np.ndarray:
        with rasterio.open(realdata / f"terramesh/{folder}/{name}.tif") as raster:
            return raster.read()[:, :128, :128]

    filled = arrays(5, 128)
    level2 = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    level1 = [*level2[:10], "B10", *level2[10:]]
    for i, name in enumerate(scenes):
        image, bands = (scene("S2L1C", name), level1) if i % 2 == 0 else (scene("S2L2A", name), level2)
        for channel, band in enumerate(ORDER):
            filled["sentinel2"][i, channel] = image[bands.index(band)] if band in bands else 0
        filled["sentinel1"][i, :2] = scene("S1RTC", name)
        filled["sentinel1"][i, 2:] = -np.inf
        filled["aster"][i, 0] = scene("DEM", name)[0]
    mmearth(tmp_path / "real", filled, tiles(5, None), {"train": [*range(5)]})
    samples = prepared("mmearth", tmp_path / "real", tmp_path / "out", "--chip", "32")
    assert len(samples) == 80
    sample = samples[21]  # tile 1, row 1, column 1
    want = scene("S2L2A", scenes[1])[:, 32:64, 32:64]
    bands = sample.specs["sentinel2_l2a-10m"].bands
    assert np.array_equal(sample.images["sentinel2_l2a-10m"], want[[level2.index(b) for b in bands]])
    words = [f"data.shards=[{tmp_path / 'out'}]", "data.workers=0", "data.batch_size=16", "train.steps=3"]
    words += ["model.embed_dim=24", "model.depth=1", "model.num_heads=2", "model.attn_dim=24", "optim.warmup_steps=0"]
    assert train(schema.load(Path("configs/pretrain/realdata.yaml"), words), tmp_path / "run")
