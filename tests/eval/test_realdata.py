import json
from dataclasses import replace

import pytest
import rasterio
import torch

from data_prep.main import main as prepare
from dinov2.data.sample import ImageSpec, Sample
from dinov2.models.zoo import ZOO
from dinov2.sensors import SENSORS
from eval.datasets import Split, build_dataset
from eval.encoders import load_model
from eval.engine import evaluate
from eval.features import Trial, extract
from eval.main import main


@pytest.mark.realdata
def test_land_cover_of_a_scene_that_was_held_out(tmp_path, realdata):
    shards, out = tmp_path / "terramesh", tmp_path / "out"
    source = ["terramesh", "--src", str(realdata / "terramesh"), "--out", str(shards), "--chip", "32"]
    prepare([*source, "--baseline-offset", "detect"])
    models = "random:vit_tiny?patch_size=8&img_size=32&depth=1&attn_dim=64;pixelstats"
    config = ["--config-obj", "configs/eval/realdata/knn.yaml", f"dataset.root={shards}"]
    config.append("dataset.test=[433D_629L_3_1]")
    assert main(["--model-obj", models, *config, "--output-dir", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["role"] for row in rows] == ["floor", "floor"]
    for row in rows:
        assert (row["n"], row["n_train"] + row["n_val"], row["ignored"]) == (30, 194, 21)
        assert len(row["bands"]) == 12 and row["normalisation"] == "dataset"
        assert row["per_class"]["support"] == [0, 10, 0, 20, 0, 0, 0, 0, 0]  # trees and crops
        assert row["value"] > 0.5


VIT = "embed_dim=32&depth=2&num_heads=4&img_size=32&patch_size=8"
TINY = {
    "CROMA": "embed_dim=32&depth=4",
    "DOFA": f"{VIT}&wave_dim=8",
    "Panopticon": f"{VIT}&attn_dim=24&attn_heads=4",
    "SatMAE": f"{VIT}&channel_embed=8",
    "PhilEO U-Net": "img_size=32&embed_dim=32&dims=[8,16]&depths=[1,1]",
    "PhilEO geo-aware U-Net": "dims=[8,8,16,16]&depths=[1,1,1,1]",
}
FULL = ["dofa", "croma_base_joint", "prithvi", "ssl4eo_mae", "satmae_base"]
SPLIT = {"split_by": "meta.scene", "test": ["433D_629L_3_1"], "val_by": "key", "val": 0.25}


def knn(shards, images, **options):
    """A k-NN evaluation of what the folder holds."""
    dataset = {"name": "shards", "root": str(shards), "label": "scene", "images": images, **options}
    return {"name": "tiny", "dataset": dataset, "task": {"name": "knn", "k": 5}}


def sane(row):
    """Every normalised band in a range that the right unit and statistics give."""
    return all(abs(r["mean"]) < 3 and 0 < r["std"] < 3 for r in row["received"])


@pytest.fixture(scope="module")
def terramesh(tmp_path_factory, realdata):
    out = tmp_path_factory.mktemp("terramesh")
    source = ["terramesh", "--src", str(realdata / "terramesh"), "--out", str(out), "--chip", "32"]
    prepare([*source, "--baseline-offset", "detect"])
    return out


@pytest.mark.realdata
def test_every_released_encoder_on_sentinel_1_and_2(tmp_path, terramesh):
    zoo = {n: r for n, r in ZOO.items() if not n.startswith("prithvi_")}  # fine-tuned on scenes of another kind
    models = [f"{name}@random?{TINY.get(release.family, VIT)}" for name, release in zoo.items()]
    config = knn(terramesh, ["sentinel2_l1c", "sentinel2_l2a", "sentinel1_rtc"], size=32, **SPLIT)
    rows = dict(zip(zoo, evaluate(models, [config], tmp_path), strict=True))
    for name, row in rows.items():
        bands = [f"{b.sensor}/{n}" for b in ZOO[name].expects.bands for n in b.names]
        assert row["role"] == "floor" and row["n"] == 37 and row["input_size"] == 32
        assert [r["expected"] for r in row["received"]] == bands or len(row["bands"]) == 13 + 12 + 2
        assert sane(row) and not row["missing"]
    assert rows["prithvi"]["normalisation"] == "standardise (published)"
    assert rows["croma_base_joint"]["bands"][-3:] == ["sentinel2_l2a/B12", "sentinel1_rtc/VV", "sentinel1_rtc/VH"]
    assert rows["scalemae"]["bands"] == [f"sentinel2_l1c/{b}" for b in ("B04", "B03", "B02")]


@pytest.mark.realdata
def test_hyperspectral_chips_for_models_by_wavelength(tmp_path, realdata):
    shards, files = tmp_path / "enmap", realdata / "enmap"
    source = ["folder", "--src", str(files / "images"), "--sensor", "enmap", "--drop-bad-bands", "--out", str(shards)]
    labels = ["--labels", str(files / "labels"), "--label-classes", "none,1,2,3,4,5,6", "--label-ignore", "0"]
    prepare([*source, *labels, "--chip", "8"])
    config = knn(shards, None, size=32, val=0.3, test=0.3)
    models = [f"dofa@random?{TINY['DOFA']}", f"panopticon_vitb14@random?{TINY['Panopticon']}"]
    for row in evaluate(models, [config], tmp_path / "out"):
        assert len(row["bands"]) == 218 and sane(row)
    with pytest.raises(RuntimeError, match="lacks sentinel1_grd/VV, sentinel1_grd/VH for model croma_base_sar"):
        evaluate(["croma_base_sar@random?embed_dim=32&depth=4"], [config], tmp_path / "sar")


@pytest.mark.realdata
def test_an_hls_chip_for_prithvi_and_what_it_lacks_for_others(tmp_path, realdata, tools):
    with rasterio.open(realdata / "hls/segmentation_test_0_input.tif") as file:
        image = file.read(range(1, 9))  # [8, 224, 224]: all but the thermal bands
    spec = ImageSpec("hls_l30", 30, SENSORS["hls_l30"].band_names, "float32", "reflectance", 1e-4, 0.0, -9999)
    chips = [image[:, y : y + 28, x : x + 28] for y in range(0, 224, 28) for x in range(0, 224, 28)]
    green = [float((c[4] - c[3]).mean() / (c[4] + c[3]).mean()) for c in chips]  # vegetation index
    limit = sorted(green)[len(green) // 2]
    samples = (
        Sample(f"c{i:02d}", {spec.key: chip}, {spec.key: spec}, labels={"scene": int(green[i] >= limit)})
        for i, chip in enumerate(chips)
    )
    config = knn(tools.write(tmp_path / "hls", samples), None, size=32)
    (row,) = evaluate([f"prithvi@random?{VIT}"], [config], tmp_path / "out")
    assert row["bands"] == [f"hls_l30/B0{i}" for i in range(2, 8)] and sane(row)
    assert row["normalisation"] == "standardise (published)"
    with pytest.raises(RuntimeError, match="lacks sentinel2_l1c/B05, .* for model satmae"):
        evaluate([f"satmae@random?{TINY['SatMAE']}"], [config], tmp_path / "out")
    (row,) = evaluate([f"satmae@random?{TINY['SatMAE']}"], [config | {"model": {"missing": "zero"}}], tmp_path / "zero")
    assert len(row["missing"]) == row["bands"].count("zeros") == 4


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_released_sizes_on_sentinel_1_and_2(terramesh, name):
    images = ["sentinel2_l1c", "sentinel2_l2a", "sentinel1_rtc"]
    whole = build_dataset(knn(terramesh, images, **SPLIT)["dataset"])
    few = {n: Split(s.keys[:2], s.labels[:2].tolist(), s.__getitem__) for n, s in whole.splits.items()}
    trial = Trial.of(load_model(f"{name}@random"), replace(whole, splits=few), torch.device("cpu"))
    assert trial.example["imgs"].shape[-1] == ZOO[name].expects.size and extract(trial)["test"]["cls"].shape[0] == 2
    assert sane({"received": trial.received})
