import json

import pytest

from data_prep.main import main as prepare
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
