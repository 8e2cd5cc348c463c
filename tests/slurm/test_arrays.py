"""Evaluation and preparation as arrays."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from omegaconf import OmegaConf
from rasterio.transform import from_origin

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet, write_shards
from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import save_export
from tests.slurm.cluster import Cluster, wait

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SPEC = ImageSpec("sentinel2_l2a", 10, ("B02", "B03"), "uint16", "reflectance", 1e-4, 0.0, None)
MODELS = 12


def shard_set(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    chips = (rng.integers(500 + 900 * (i % 2), 900 + 900 * (i % 2), (2, 16, 16)).astype(np.uint16) for i in range(48))
    samples = (Sample(f"s{i}", {SPEC.key: c}, {SPEC.key: SPEC}, labels={"scene": i % 2}) for i, c in enumerate(chips))
    write_shards(samples, folder, labels={"scene": {"kind": "class", "classes": ["dark", "bright"], "ignore": -1}})
    return folder


def ended(cluster: Cluster, output: str) -> None:
    for job in output.partition("job ")[2].partition(";")[0].split(", "):
        wait(lambda job=job: cluster.ended(job), f"job {job} does not end", 400)


def test_twelve_cells_one_of_which_crashes(cluster, tmp_path):
    data = shard_set(tmp_path / "set")
    normalisation = Normalisation.from_stats(ShardSet.open(data).stats).to_dict()
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "attn_dim": 16, "attn_heads": 2}
    for seed in range(MODELS):
        torch.manual_seed(seed)
        encoder = build_encoder("vit_tiny", patch_size=8, img_size=16, **sizes)
        save_export(tmp_path / f"m{seed:02d}.safetensors", encoder, normalisation=normalisation, info={})
    damaged = tmp_path / "m07.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    evaluation = {"dataset": {"name": "shards", "label": "scene", "root": str(data)}, "task": {"name": "knn"}}
    OmegaConf.save(OmegaConf.create(evaluation), tmp_path / "knn.yaml")
    models = ";".join(str(tmp_path / f"m{seed:02d}.safetensors") for seed in range(MODELS))
    words = ["--model-obj", models, "--config-obj", str(tmp_path / "knn.yaml"), "--output-dir", str(tmp_path / "out")]
    ended(cluster, cluster.submit("eval", "--at-once=2", *words))
    rows = sorted((tmp_path / "out").rglob("seed-*.json"))
    assert len(rows) == MODELS - 1 and not any("m07" in str(path) for path in rows)
    assert all(json.loads(path.read_text())["n"] for path in rows)
    listing = cluster.submit("status", str(tmp_path))
    assert "failed" in listing and "m07" in listing
    assert len(list((tmp_path / "out").glob("*.csv"))) >= 1


def test_six_sources_one_of_which_is_queued_again(cluster, tmp_path):
    tiles, out = tmp_path / "tiles", tmp_path / "sets"
    rng = np.random.default_rng(0)
    for name in "abcdef":
        (tiles / name).mkdir(parents=True)
        where = {"crs": "EPSG:32633", "transform": from_origin(500000.0, 5000000.0, 10.0, 10.0)}
        with rasterio.open(
            tiles / name / f"{name}.tif", "w", width=64, height=64, count=1, dtype="float32", nodata=-32768.0, **where
        ) as raster:
            raster.write(rng.normal(300, 50, (1, 64, 64)).astype(np.float32))
    words = ["--src", str(tiles / "*"), "--out", str(out), "--sensor", "dem", "--chip", "16"]
    said = cluster.submit("prep", "--at-once=2", "folder", *words)
    third = said.partition("job ")[2].partition(";")[0] + "_2"
    wait(lambda: "RUNNING" in cluster.run("squeue", "-h", "--format=%T", f"--job={third}", check=False), "does not run")
    cluster.run("scontrol", "requeue", third)
    ended(cluster, said)
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", third)
    assert len(ShardSet.open([str(out / name) for name in "abcdef"])) == 6 * 16
    assert "6 done" in cluster.submit("status", str(tmp_path))
