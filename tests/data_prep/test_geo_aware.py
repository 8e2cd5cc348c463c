"""Geo-aware pretraining for real: TerraMesh scenes as Major-TOM files, maps in one raster, prepared and trained on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject, transform_bounds

from dinov2.data.geo import GeoTargets
from eval.encoders import load_model
from tests.data_prep.layouts import S2, majortom, prepared, tif

ROOT = Path(__file__).parents[2]
L2A = tuple(b for b in S2 if b != "B10")
PHILEO = "B02,B03,B04,B08,B05,B06,B07,B8A,B11,B12"
CODES = (1, 2, 3, 4, 5, 6, 7, 9)  # of the land cover that TerraMesh has
BUILT, STEP = 5, 5e-4  # degrees

pytestmark = pytest.mark.realdata


def scenes(realdata: Path) -> list[str]:
    return sorted(path.stem for path in (realdata / "terramesh/S2L2A").glob("*.tif"))


def published(realdata: Path, folder: Path) -> None:
    """The scenes as published cells; what is very bright in blue counts as cloud."""
    rows = []
    for name in scenes(realdata):
        with rasterio.open(realdata / f"terramesh/S2L2A/{name}.tif") as raster:
            image, place, crs = raster.read(), raster.transform, raster.crs.to_string()
        bands = {**dict(zip(L2A, image, strict=True)), "cloud_mask": (image[1] > 3000).astype(np.uint8)}
        rows.append({"grid_cell": name, **{b: tif(i, place.c, place.f, crs=crs) for b, i in bands.items()}})
    majortom(folder / "Core-S2L2A", rows, [{"grid_cell": row["grid_cell"]} for row in rows])


def world_map(realdata: Path, path: Path, value, resampling: Resampling) -> None:
    """One raster of the world in degrees that holds ``value(land cover)`` where the scenes are, nothing elsewhere."""
    grid = {"width": round(360 / STEP), "height": round(180 / STEP), "transform": from_origin(-180, 90, STEP, STEP)}
    tiles = {"tiled": True, "blockxsize": 2048, "blockysize": 2048, "compress": "deflate", "sparse_ok": True}
    kind = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:4326", "nodata": 255, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", **kind, **grid, **tiles) as out:
        for name in scenes(realdata):
            with rasterio.open(realdata / f"terramesh/LULC/{name}.tif") as raster:
                west, south, east, north = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
                column, row = int((west + 180) / STEP), int((90 - north) / STEP)
                shape = int((north - south) / STEP) + 2, int((east - west) / STEP) + 2
                found = np.full(shape, 255, np.uint8)
                there = from_origin(-180 + column * STEP, 90 - row * STEP, STEP, STEP)
                places = {"src_transform": raster.transform, "src_crs": raster.crs, "dst_transform": there}
                options = {"dst_crs": "EPSG:4326", "dst_nodata": 255, "resampling": resampling}
                reproject(value(raster.read(1)), found, **places, **options)
            out.write(found, 1, window=rasterio.windows.Window(column, row, shape[1], shape[0]))


@pytest.fixture(scope="module")
def shards(realdata, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("geo")
    published(realdata, folder / "src")
    world_map(realdata, folder / "landcover.tif", lambda cover: cover, Resampling.nearest)
    built = lambda cover: np.where(cover == BUILT, 100, 0).astype(np.uint8)  # noqa: E731
    world_map(realdata, folder / "buildings.tif", built, Resampling.average)
    words = ["--chip", "56", "--keep-bands", f"sentinel2_l2a={PHILEO}", "--label-raster"]
    words += [f"{name}={folder / name}.tif" for name in ("landcover", "buildings")]
    samples = prepared("majortom", folder / "src", folder / "out", *words)
    assert len(samples) == 80
    check(realdata, samples)
    return folder / "out"


def check(realdata: Path, samples) -> None:
    """Fractions of all chips of a scene together are those of its own land cover; positions are the scenes'."""
    targets = GeoTargets("cloud_mask_s2l2a", "buildings", "landcover", CODES, True)
    for name in scenes(realdata):
        found = [targets(s) for s in samples if s.meta["cell"] == name]
        with rasterio.open(realdata / f"terramesh/LULC/{name}.tif") as raster:
            cover = raster.read(1)
            west, south, east, north = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
        assert len(found) == 16 and all(f["clouds_weight"] == 1 for f in found)
        assert min(f["landcover_weight"] for f in found) > 0.85  # a scene's edge cuts cells of the map
        share = np.mean([f["landcover"] for f in found], 0)
        assert np.abs(share - [(cover == code).mean() for code in CODES]).max() < 0.03
        assert abs(np.mean([f["buildings"] for f in found]) - (cover == BUILT).mean()) < 0.03
        turn = 2 * np.pi * np.array([((south + north) / 2 + 90) / 180, ((west + east) / 2 + 180) / 360])
        wanted = (np.stack([np.sin(turn), np.cos(turn)], 1).ravel() + 1) / 2
        assert np.abs(np.mean([f["coords"] for f in found], 0) - wanted).max() < 1e-3


VIT = ["model.arch=vit_tiny", "model.embed_dim=48", "model.depth=2", "model.num_heads=2", "model.attn_dim=48",
       "model.attn_heads=2", "model.patch_size=8", "model.layer_scale=null", "objective.decoder_dim=16"]  # fmt: skip
CNN = ["model.dims=[8,12,16,16]", "model.depths=[1,1,1,1]", "model.embed_dim=32"]


def train(recipe: str, folder: Path, words: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", "--config-file", f"configs/pretrain/{recipe}.yaml"]
    return subprocess.run([*command, "--output-dir", str(folder), *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("recipe", ["geo_aware", pytest.param("presets/geo_aware_phileo_cnn", marks=pytest.mark.slow)])
def test_it_pretrains(shards, recipe, tmp_path):
    words = [*(VIT if recipe == "geo_aware" else CNN), "model.image_size=56", "objective.size=56"]
    words += [f"objective.landcover_codes={list(CODES)}", f"data.shards=[{shards}]", "data.batch_size=16"]
    words += ["data.workers=0", "optim.base_lr=2e-3", "optim.warmup_steps=0", "train.steps=40", "train.log_every=1"]
    done = train(recipe, tmp_path / "run", words)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for term in ("landcover", "coords", "reconstruction", "loss"):
        values = [line[term] for line in lines if term in line]
        assert len(values) == 40 and np.mean(values[-8:]) < 0.8 * np.mean(values[:4]), (term, values)
    assert load_model(str(tmp_path / "run")).normalisation is not None


def test_maps_that_the_shards_lack_are_named(shards, tmp_path):
    words = [*VIT, "model.image_size=56", "objective.size=56", "objective.landcover=worldcover", "data.workers=0"]
    done = train("geo_aware", tmp_path, [*words, f"data.shards=[{shards}]"])
    assert done.returncode == 2
    assert "the shards hold no label 'worldcover', only buildings, cloud_mask_s2l2a, landcover" in done.stderr
