import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dinov2 import objectives
from dinov2.data.shards import write_shards
from dinov2.train import schema
from eval.shootout import commands, load, runs, table
from tests import tiny

ROOT = Path(__file__).parents[2]
SELF_SUPERVISED = [name for name in objectives.OBJECTIVES if name != "geo_aware"]  # it learns from maps, as tests do
CONFIGS = sorted((ROOT / "configs" / "shootout").glob("*.yaml"))


def terms(cfg):
    """What has to be the same for all: encoder, shards, number of samples seen, seed."""
    return cfg.model, cfg.data.shards, cfg.data.images, cfg.data.batch_size * cfg.train.steps, cfg.train.seed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_all_objectives_meet_on_equal_terms(path, tmp_path, monkeypatch):
    monkeypatch.setenv("EOSSL_REALDATA", str(tmp_path))  # named in commands that are made, not run
    shootout = load(path)
    configs = runs(shootout, seeds=[0])
    assert set(configs) == set(SELF_SUPERVISED)
    commands(shootout, tmp_path, configs, [])
    resolved = [schema.load(tmp_path / "configs" / f"{name}.yaml") for name in configs]
    assert all(terms(cfg) == terms(resolved[0]) for cfg in resolved)


def test_seeds_are_runs_of_their_own():
    shootout = load(CONFIGS[0])
    configs = runs(shootout, ["byol", "mae"], [0, 3])
    assert list(configs) == ["byol-0", "byol-3", "mae-0", "mae-3"]
    assert configs["mae-3"]["train"]["seed"] == 3 and configs["mae-3"]["objective"]["name"] == "mae"
    with pytest.raises(ValueError, match="--only simclt: the config compares simclr"):
        runs(shootout, ["simclt"])


def test_commands_that_prepare_name_the_machines_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("EOSSL_REALDATA", "/real data")
    shootout = load(ROOT / "configs" / "shootout" / "realdata.yaml")
    prepare = commands(shootout, tmp_path, {"mae": {}}, [])[: len(shootout.prepare)]
    assert [command[:4] for command in prepare[:2]] == [
        ["data_prep/main.py", "terramesh", "--src", "/real data/terramesh"]
    ] * 2
    made = {command[command.index("--out") + 1] for command in prepare}
    assert made == {*shootout.pretrain["data"]["shards"], "data/terramesh"}  # the last one is what is evaluated


def test_a_config_that_names_a_base_holds_differences_only():
    short, long = (load(ROOT / "configs" / "shootout" / f"{name}.yaml") for name in ("sandbox", "sandbox_long"))
    assert list(runs(short)) == SELF_SUPERVISED
    assert list(runs(long, ["mae"])) == ["mae-0", "mae-1", "mae-2"]
    (few,), (many, *_) = (list(runs(shootout, ["mae"]).values()) for shootout in (short, long))
    assert many["train"]["steps"] > few["train"]["steps"]
    assert {**many, "train": 0} == {**few, "train": 0} and long.evaluations == short.evaluations


def test_table_has_cost_and_health_of_runs_and_none_of_floors(tmp_path):
    (tmp_path / "mae").mkdir()
    lines = [
        {"step": s, "images_per_s": 10.0 * s, "memory_mib": 300 - s, "health/std": 0.5, "health/rank": 7.0 + s}
        for s in (1, 2, 3)
    ]
    (tmp_path / "mae" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored = {"dataset": "d", "task": "knn", "metric": "accuracy", "config": "d/knn"}
    scored |= {"ci_low": 0.4, "ci_high": 0.6, "n": 9}
    rows = [
        {**scored, "model": m, "role": r, "value": 0.5, "seed": 0}
        for m, r in (("mae", "pretrained"), ("pixelstats", "floor"))
    ]
    text = table(tmp_path, ["mae"], rows)
    assert "| mae | 50.0 [40.0, 60.0] | 20 | 299 | 0.50 | 10.0 |" in text
    assert "| pixelstats | 50.0 [40.0, 60.0] |  |  |  |  |" in text


@pytest.mark.slow
def test_two_objectives_from_shards_to_one_report(tmp_path):
    shards, out = tmp_path / "shards", tmp_path / "out"
    both = list(tiny.samples(150))[2::3]  # those with optical and radar images
    write_shards((replace(sample, labels={"scene": i % 2}) for i, sample in enumerate(both)), shards)
    raw = {name: tiny.raw_config(name, shards) for name in ("simclr", "mae")}
    shared = {part: raw["mae"][part] for part in ("data", "model", "optim", "train")}
    own = {name: {"objective": dict(list(cfg["objective"].items())[1:])} for name, cfg in raw.items()}
    dataset = {"name": "shards", "root": str(shards), "label": "scene", "size": 32}
    (tmp_path / "linear.yaml").write_text(json.dumps({"dataset": dataset, "task": {"name": "linear"}, "resamples": 50}))
    config = {"pretrain": shared, "objectives": own, "evaluations": [str(tmp_path / "linear.yaml")]}
    (tmp_path / "shootout.yaml").write_text(json.dumps(config))
    command = [sys.executable, str(ROOT / "eval/shootout.py"), "--config-file", str(tmp_path / "shootout.yaml")]
    done = subprocess.run([*command, "--output-dir", str(out), "train.steps=4"], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # four steps need not beat random weights
    assert (out / "shootout.md").read_text().count("\n") == 6 and "mae" in (out / "eval" / "report.html").read_text()
