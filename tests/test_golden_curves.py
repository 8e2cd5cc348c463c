"""Ten steps of every objective: a change that is not meant to change numbers leaves these curves alone.

``make golden`` writes them anew; the commit says why.
"""

import json
from pathlib import Path

import pytest

from dinov2.train.trainer import train
from tests import tiny

FOLDER = Path(__file__).with_name("golden_curves")
STEPS = 10
CHAOTIC = ("grad_norm", "images_per_s", "data_wait", "memory", "loader", "mfu")  # other processors run otherwise


def curve(name: str, folder: Path) -> list[dict[str, float]]:
    """Every loss term of a run's steps; the rate is small enough for rounding not to grow from step to step."""
    raw = tiny.raw_config(name, tiny.shards(folder / "shards"), steps=STEPS, health_every=STEPS + 1)
    raw["optim"]["base_lr"] = 1e-4
    cfg = tiny.schema.load(tiny.write_config(folder / "config.yaml", raw))
    train(cfg, folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CHAOTIC)} for line in lines]


@pytest.mark.parametrize("name", [*sorted(tiny.OBJECTIVES), "moco+queue", "barlow+exact"])
def test_ten_steps(name, tmp_path, update_curves):
    path = FOLDER / f"{name}.json"
    found = curve(name, tmp_path)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    if update_curves:
        path.write_text("[\n" + ",\n".join(json.dumps(line) for line in found) + "\n]\n")
    for got, expected in zip(found, json.loads(path.read_text()), strict=True):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-7), f"step {got['step']}"
