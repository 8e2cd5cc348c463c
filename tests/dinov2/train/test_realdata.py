from pathlib import Path

import pytest

from data_prep.main import main as prepare
from dinov2.models.export import load_export
from dinov2.train import schema
from dinov2.train.trainer import train

SENSORS = {"sentinel2_l1c", "sentinel2_l2a", "sentinel1_rtc", "dem", "enmap", "sentinel1_grd"}


@pytest.mark.realdata
def test_sensors_of_four_real_sets_in_one_run(realdata, tmp_path):
    terramesh = ["terramesh", "--src", f"{realdata}/terramesh", "--baseline-offset", "detect", "--chip", "32"]
    folder = ["folder", "--chip", "32", "--src"]
    prepare([*terramesh, "--out", f"{tmp_path}/terramesh"])
    prepare(
        [*folder, f"{realdata}/enmap/images", "--sensor", "enmap", "--drop-bad-bands", "--out", f"{tmp_path}/enmap"]
    )
    radar = ["--sensor", "sentinel1_grd", "--bands", "VV,VH", "--out", f"{tmp_path}/radar"]
    prepare([*folder, f"{realdata}/sen1floods11/S1", *radar])
    optics = ["--sensor", "sentinel2_l1c", "--baseline-offset", "none", "--out", f"{tmp_path}/optics"]
    prepare([*folder, f"{realdata}/sen1floods11/S2", *optics])
    sets = ",".join(f"{tmp_path}/{name}" for name in ("terramesh", "enmap", "radar", "optics"))
    small = ["model.embed_dim=24", "model.depth=1", "model.num_heads=2", "model.attn_dim=24", "data.batch_size=32"]
    words = [f"data.shards=[{sets}]", *small, "data.workers=0", "train.steps=4", "train.health_every=4"]
    cfg = schema.load(Path("configs/pretrain/realdata.yaml"), [*words, "optim.warmup_steps=0"])
    _, header = load_export(train(cfg, tmp_path / "run"))
    assert set(header["normalisation"]) == SENSORS
    assert len(header["normalisation"]["enmap"]["bands"]) == 218
