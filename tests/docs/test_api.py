"""The Python of docs/api.md, block after block."""

import re
from pathlib import Path

import torch

from data_prep.main import main as prepare
from dinov2.data.shards import ShardSet
from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import save_export
from docs.examples.steps import sandbox_tifs

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/api.md"


def world() -> None:
    """What the page says that the folder holds."""
    sandbox_tifs(Path(), 8)
    bands = ["--sensor", "sentinel2_l2a", "--bands", "B02,B03,B04,B08", "--date", "2021-06-01"]
    prepare(["folder", "--src", "images", *bands, "--chip", "32", "--out", "data/mine"])
    Path("runs/mine").mkdir(parents=True)
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny", patch_size=8, img_size=32, depth=2, attn_dim=48, attn_heads=2)
    norm = Normalisation.from_stats(ShardSet.open(["data/mine"]).stats)
    save_export("runs/mine/model_final.safetensors", encoder, normalisation=norm.to_dict(), info={})


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    world()
    names = {"REPO": str(ROOT), "first_image": min(Path("images").iterdir())}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == PAGE.read_text().count("```python") >= 8
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["patches"].shape == (1, 192, 8, 8) and names["logits"].shape == (1, 6, 64, 64)
    assert len(list(Path("maps").glob("*_pred.tif"))) == 8 and {r["model"] for r in names["rows"]} == {
        "mine",
        "pixelstats",
    }
    assert "32 samples; {'B02':" in capsys.readouterr().out
