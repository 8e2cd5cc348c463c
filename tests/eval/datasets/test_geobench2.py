"""The whole protocol of GEO-Bench-2 in one command, on tortillas in the layout of the published ones."""

import json

import pytest

from eval import schema
from eval.main import main
from tests.eval.datasets.layouts import tortillas

VIT = "random:vit_tiny?patch_size=4&img_size=8&embed_dim=32&depth=4&num_heads=2&attn_dim=32&attn_heads=2"


@pytest.mark.slow
def test_the_whole_protocol_is_one_command(tmp_path, monkeypatch):
    monkeypatch.setenv("RDIR", str(tmp_path))
    for name in (*tortillas.MAPS, *tortillas.LABELLED):
        (folder := tmp_path / "datasets/geobench2" / name).mkdir(parents=True)
        if name in tortillas.MAPS:
            tortillas.of_maps(name)(folder, 10, False)
        else:
            tortillas.of_labels(name)(folder, 4, False, 5)
    given = [
        "--model-obj",
        VIT,
        "--config-obj",
        str(schema.CONFIGS / "geobench2"),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert main([*given, "seeds=[0]", "task.epochs=1", "resamples=20"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert {row["config"] for row in rows} == {f"geobench2/{name}" for name in (*tortillas.MAPS, *tortillas.LABELLED)}
