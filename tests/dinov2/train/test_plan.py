"""What a run on many GPUs would take: hand counts, and the plan of a real configuration from an index alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.scaling import synthetic_index
from dinov2.train import plan
from dinov2.train.build import build_objective
from dinov2.train.dry_run import dry_run
from tests import tiny

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cfg(tmp_path):
    return tiny.config(tmp_path, "byol", tiny.shards(tmp_path / "shards"))


def test_state_and_traffic_are_hand_counts(cfg, capsys):
    with torch.device("meta"):
        objective = build_objective(cfg)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    teacher = sum(p.numel() for p in objective.teacher.parameters())
    assert plan.state_bytes(objective, 2, sharded=False) == 20 * trained + 4 * teacher
    alone = dry_run(cfg)
    assert alone["state bytes per rank"] == plan.state_bytes(objective, 1, sharded=False) == 16 * trained + 4 * teacher
    assert "byol compares 6 samples" in capsys.readouterr().out  # the remedy, before anything is spent
    assert plan.traffic_bytes(objective, 2, 3, sharded=False) == 4 * trained
    tokens, width, depth = 2 * (16 + 1), 24, 2
    assert plan.activation_bytes(objective, checkpointed=False) == 34 * width * depth * tokens
    assert plan.activation_bytes(objective, checkpointed=True) == (2 * depth + 34) * width * tokens


def test_more_ranks_hold_less_each_when_they_share(cfg):
    with torch.device("meta"):
        objective = build_objective(cfg)
    held = [plan.state_bytes(objective, ranks, sharded=True) for ranks in (1, 2, 8)]
    assert held[0] > held[1] > held[2]


def test_the_run_on_512_gpus_is_planned_from_its_index(tmp_path):
    synthetic_index(tmp_path / "majortom", shards=2000)
    words = ["--config-file", str(ROOT / "configs" / "pretrain" / "majortom_512.yaml"), "--dry-run", "--ranks"]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    shards = f"data.shards=[{tmp_path / 'majortom'}]"
    done = subprocess.run([*command, "512", shards], check=True, capture_output=True, text=True)
    for fact in ("gpu hours", "state bytes", "read bytes per second", "720,000 samples in 2,000 shards"):
        assert fact in done.stdout
    refused = subprocess.run([*command, "500", shards], capture_output=True, text=True)
    assert refused.returncode == 2 and "500 ranks must divide" in refused.stderr
