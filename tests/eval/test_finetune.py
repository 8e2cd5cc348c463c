"""The ready fine-tuning configs: what they ask for, and that they run on files in the published layouts."""

import json

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from eval import schema
from eval.datasets import build_dataset
from eval.encoders import load_model
from eval.features import Trial
from eval.main import main
from eval.predict import main as predict
from eval.reading import VIEW
from eval.trained import load_trained
from tests.eval.datasets.layouts import series

PRITHVI = "prithvi@random?img_size=32&embed_dim=48&depth=2&num_heads=4"
SHORT = ["task.epochs=1", "task.crop_size=32", "task.batch_size=2", "task.warmup=1", "model.stride=16", "resamples=10"]
SHORT += ["task.decoder_options.channels=8"]
HAND = "data/flood_events/HandLabeled"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def config(name):
    return str(schema.CONFIGS / "finetune" / f"{name}.yaml")


def tif(path, array, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = dict(zip(("count", "height", "width"), array.shape, strict=True))
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 30, 30)}
    with rasterio.open(path, "w", driver="GTiff", dtype=array.dtype, nodata=nodata, **size, **place) as raster:
        raster.write(array)


def burn_scars(root):
    """Scenes of 40 pixels; what has burnt is dark in the infrared."""
    rng = np.random.default_rng(0)
    for i in range(8):
        burnt = np.kron(rng.integers(2, size=(5, 5)), np.ones((8, 8), np.int16))
        image = rng.uniform(0.1, 0.2, (6, 40, 40)) + np.array([0, 0, 0, -0.05, 0.1, 0.1])[:, None, None] * burnt
        path = root / ("training" if i < 5 else "validation") / f"subsetted_512x512_HLS.S30.T10TGS.20182{i:02d}.v1.4"
        tif(path.with_name(path.name + "_merged.tif"), image.astype(np.float32))
        tif(path.with_name(path.name + ".mask.tif"), burnt[None].astype(np.int16))


def floods(root):
    """Chips of 40 pixels of 13 bands and their lists; Bolivia's labels are the reverse of what the others show."""
    rng = np.random.default_rng(0)
    lists = {
        "train": ["Ghana_1", "Spain_2", "India_3"],
        "valid": ["USA_4"],
        "test": ["Mekong_5"],
        "bolivia": ["Bolivia_6"],
    }
    for split, names in lists.items():
        for name in names:
            water = np.kron(rng.integers(2, size=(5, 5)), np.ones((8, 8), np.int16))
            pixels = (rng.uniform(1000, 1100, (13, 40, 40)) + 800 * (1 - water)).astype(np.int16)
            tif(root / HAND / f"S2Hand/{name}_S2Hand.tif", pixels, 0)
            tif(root / HAND / f"S1Hand/{name}_S1Hand.tif", np.zeros((2, 40, 40), np.float32))
            label = 1 - water if split == "bolivia" else water
            tif(root / HAND / f"LabelHand/{name}_LabelHand.tif", label[None].astype(np.int16))
        path = root / f"splits/flood_handlabeled/flood_{split}_data.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n" for name in names))


def evaluate(name, root, out, *more):
    given = ["--model-obj", PRITHVI, "--config-obj", config(name), "--output-dir", str(out)]
    assert main([*given, f"dataset.root={root}", *SHORT, *more]) == 0
    return json.loads(next(out.rglob("seed-0.json")).read_text())


@pytest.mark.parametrize("name", ["hls_burn_scars", "sen1floods11", "multitemporal_crop"])
def test_published_settings(name):
    options = schema.load(config(name))
    task, model = options.task, options.model
    published = {
        "hls_burn_scars": ("dice", None, "adam", 1.3e-5, 0.0, 4, "none"),
        "sen1floods11": ("weighted_cross_entropy", 2, "adamw", 1.5e-5, 0.05, 4, "none"),
        "multitemporal_crop": ("weighted_cross_entropy", 13, "adam", 1.5e-5, 0.05, 8, "stack"),
    }[name]
    keys = ("loss", "class_weights", "optimizer", "learning_rates", "weight_decay", "batch_size", "neck")
    found = {**task, "class_weights": task["class_weights"] and len(task["class_weights"])}
    found["learning_rates"] = found["learning_rates"][0]
    assert tuple(found[key] for key in keys) == published
    shared = {
        "train": "finetune",
        "crop": "random",
        "crop_size": 224,
        "flip": True,
        "schedule": "linear",
        "warmup": 1500,
    }
    assert {key: task[key] for key in shared} == shared
    assert (model["size"], model["stride"], model["normalisation"]) == ("tile", 112, "dataset")


def test_burn_scars(tmp_path):
    burn_scars(tmp_path / "data")
    row = evaluate("hls_burn_scars", tmp_path / "data", tmp_path / "out")
    assert row["bands"] == [f"hls_s30/{band}" for band in ("B02", "B03", "B04", "B8A", "B11", "B12")]
    assert (row["sizing"], row["normalisation"], row["n"]) == ("tiles of 32", "standardise (dataset)", 3)
    assert all(abs(r["mean"]) < 0.3 and abs(r["std"] - 1) < 0.3 for r in row["received"])


def test_floods_and_then_bolivia_with_the_same_model(tmp_path):
    floods(tmp_path / "data")
    learnt = ["task.epochs=12", "task.learning_rates=[3e-3]"]
    row = evaluate("sen1floods11", tmp_path / "data", tmp_path / "out", *learnt)
    assert row["value"] > 0.6 and row["bands"][3] == "sentinel2_l1c/B8A"
    before = next((tmp_path / "out").rglob("*.safetensors")).read_bytes()
    bolivia = "dataset.test=splits/flood_handlabeled/flood_bolivia_data.csv"
    held_out = evaluate("sen1floods11", tmp_path / "data", tmp_path / "out", *learnt, bolivia, "--test-only")
    assert held_out["value"] < 0.3 and held_out["chosen"] == row["chosen"]
    assert next((tmp_path / "out").rglob("*.safetensors")).read_bytes() == before
    with pytest.raises(ValueError, match="there is no .*seed-0.json of this config, model and data to be tested"):
        evaluate(
            "sen1floods11", tmp_path / "data", tmp_path / "out", *learnt, "dataset.train=null", bolivia, "--test-only"
        )


def test_crops_of_three_dates_in_the_order_of_time(tmp_path):
    expected = series.multitemporal_crop(tmp_path / "data", 6, scrambled=False)
    row = evaluate("multitemporal_crop", tmp_path / "data", tmp_path / "out", "dataset.val=0.34")
    assert row["n"] == 3 and len(row["bands"]) == 6
    data = build_dataset({"name": "multitemporal_crop", "root": str(tmp_path / "data"), "val": 0.34})
    trial = Trial.of(
        load_model(PRITHVI), data, torch.device("cpu"), normalisation="dataset", sizing="tile", batch_size=1
    )
    view = next(trial.batches("test")).views[VIEW]["imgs"][0]  # [T, C, H, W]
    raw = expected[data.splits["test"][0].meta["id"]].images["hls_s30-30m"].astype(float)
    raw[raw == -9999] = np.nan
    table = data.normalisation().table["hls_s30"]
    for date in range(3):
        for band, name in enumerate(("B02", "B03", "B04", "B8A", "B11", "B12")):
            mean, std = table[name]
            wanted = (raw[date, band] * 1e-4 - mean) / std
            seen = np.isfinite(wanted)
            np.testing.assert_allclose(view[date, band].numpy()[seen], wanted[seen], atol=1e-3)
    trained = load_trained(next((tmp_path / "out").rglob("*.safetensors")))
    assert trained.head.neck.out_channels[-1] == 3 * 48
    key = data.splits["test"][0].meta["id"]
    with rasterio.open(tmp_path / "data" / "validation_chips" / f"{key}_merged.tif") as file:
        stack = file.read()
    tif(tmp_path / "scene.tif", np.where(stack == 9999, -9999, stack), -9999)
    scene = ["--input", str(tmp_path / "scene.tif"), "--output", str(tmp_path / "maps"), "--device", "cpu"]
    assert predict(["--model-obj", str(next((tmp_path / "out").rglob("*.safetensors"))), *scene]) == 0
    with rasterio.open(tmp_path / "maps" / "scene_pred.tif") as file:
        found = file.read(1)
    logits = next(trained.predictions(data.splits["test"], torch.device("cpu"), 1))
    assert (found >= 0).all() and np.array_equal(
        found, logits[0].argmax(0)
    )  # a date without a pixel is not all of them


@pytest.mark.realdata
@pytest.mark.slow
def test_prithvi_at_its_size_takes_a_step_on_hyperspectral_chips_and_predicts_one(tmp_path, realdata):
    """Random weights in the layout of the 100 M parameters; of 218 bands the six that are nearest to its own."""
    scene = realdata / "enmap" / "images"
    given = ["--model-obj", "prithvi@random", "--config-obj", str(schema.CONFIGS / "realdata_dense/enmap/fcn.yaml")]
    short = ["task.train=finetune", "task.epochs=1", "task.batch_size=14", "seeds=[0]", "running.batch_size=2"]
    options = [f"dataset.root={realdata / 'enmap'}", *short, "resamples=10"]
    assert main([*given, "--output-dir", str(tmp_path / "out"), *options]) == 0
    row = json.loads(next((tmp_path / "out").rglob("seed-0.json")).read_text())
    assert (len(row["bands"]), row["sizing"], row["n_train"]) == (6, "resized to 224", 14)
    cell = next((tmp_path / "out").rglob("seed-0.safetensors"))
    chip = sorted(scene.glob("*.tif"))[0]
    bands = [str(int(band.split("/B")[1]) - 1) for band in row["bands"]]
    assert predict(["--model-obj", str(cell), "--input", str(chip), "--output", str(tmp_path), "--bands", *bands]) == 0
    with rasterio.open(chip) as a, rasterio.open(tmp_path / f"{chip.stem}_pred.tif") as b:
        assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape) and (b.read(1) >= 0).all()
