"""Several amounts of labels: an evaluation each, and the curve that the report draws of them."""

import json

import numpy as np
import pytest

from eval import schema
from eval.main import main
from eval.report import families

REGIONS = ("europe", "east-africa", "ghana-1", "north-america", "south-america", "japan")


@pytest.fixture
def stacks(tmp_path):
    """A region of every group of PhilEO Bench, in which roads are bright."""
    rng = np.random.default_rng(0)
    for region in REGIONS:
        for part, count in (("train", 12), ("val", 6), ("test", 6)):
            share = rng.integers(0, 101, (count, 8, 8, 1)).astype(np.uint8)
            noise = rng.integers(0, 400, (count, 8, 8, 10))
            np.save(tmp_path / f"{region}_0_{part}_s2.npy", (1000 + 20 * share.astype(int) + noise).astype(np.uint16))
            np.save(tmp_path / f"{region}_0_{part}_label_roads.npy", share)
    return tmp_path


def config(root, **labels):
    task = {"name": "decoder", "decoder": "linear", "epochs": 20, "learning_rates": [0.1], "batch_size": 4}
    dataset = {"name": "phileo_roads", "root": str(root)}
    return {"name": "phileo/roads", "dataset": dataset, "task": task, "labels": {"strategy": "group", **labels}}


def test_every_amount_is_an_evaluation(stacks):
    found = schema.load_all(config(stacks, curve=[3, 0.5, 1], val=0.5))
    assert [e.name for e in found] == ["phileo/roads/3-shot", "phileo/roads/50-percent", "phileo/roads/100-percent"]
    assert [(e.labels["shots"], e.labels["fraction"]) for e in found] == [(3, 1.0), (None, 0.5), (None, 1.0)]
    assert {e.family for e in found} == {"phileo/roads"} and len({e.config_hash for e in found}) == 3
    alone = schema.load_all(config(stacks, shots=3, val=0.5, index="somewhere"))
    assert [e.family for e in alone] == [""]
    assert alone[0].config_hash == found[0].config_hash  # where a choice is kept and what it is drawn with is no part
    with pytest.raises(ValueError, match="labels.curve of phileo/roads: 2.5 is neither a fraction nor a number"):
        schema.load_all(config(stacks, curve=[2.5]))


@pytest.mark.parametrize("task", ["roads", "buildings", "landcover"])
def test_published_protocol(task, monkeypatch):
    for path in (schema.CONFIGS / "phileo" / task).iterdir():
        found = schema.load_all(path)
        assert [e.labels["shots"] for e in found] == [50, 100, 500, 1000, 5000]
        assert {(e.labels["strategy"], e.labels["val"], e.task["epochs"]) for e in found} == {("group", 0.2, 250)}
        assert {e.labels["empty"] for e in found} == {None if task == "landcover" else 0.005}
    names = {p.stem for p in (schema.CONFIGS / "phileo" / task).iterdir()}
    assert names == {"frozen_cnn", "frozen_upernet", "finetune_cnn", "finetune_upernet"}


def test_from_stacks_to_the_curve_of_the_report(stacks, tmp_path):
    path, out = tmp_path / "roads.yaml", tmp_path / "out"
    raw = config(stacks, curve=[2, 6], val=0.5, index=str(tmp_path / "indices"))
    path.write_text(json.dumps({k: v for k, v in raw.items() if k != "name"}))
    words = ["--model-obj", "pixelstats", "--config-obj", str(path), "--output-dir", str(out)]
    assert main(words) == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(r["config"], r["n_train"], r["n_val"], r["n"], r["family"]) for r in rows] == [
        ("roads/2-shot", 12, 6, 36, "roads"),
        ("roads/6-shot", 36, 18, 36, "roads"),
    ]
    metrics = rows[1]["metrics"]
    assert metrics["rmse"] < 0.1 < metrics["zero_mse"] ** 0.5 and metrics["f1"] > 0.9 and rows[1]["unit"] == "share"
    assert {p.name for p in (tmp_path / "indices").iterdir()} == {f"phileo_roads_{n}-shot_seed-0.json" for n in (2, 6)}
    page = (out / "report.html").read_text()
    assert "<h2>Few labels</h2>" in page and 'alt="roads: rmse, share over the number of training images"' in page
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("seed-*.json")}
    assert main(words) == 0  # done cells stay done: the index files choose the same images
    assert stamps == {p: p.stat().st_mtime_ns for p in out.rglob("seed-*.json")}


def test_the_curve_of_every_model_over_its_images():
    row = {"role": "floor", "dataset": "d", "task": "decoder", "unit": "", "metric": "miou", "n": 9, "seed": 0}
    row |= {"ci_low": 0.2, "ci_high": 0.4, "value": 0.3, "family": "phileo/landcover"}
    rows = [
        row | {"model": model, "config": f"phileo/landcover/{n}-shot", "n_train": 6 * n}
        for n in (100, 50)
        for model in ("a", "b")
    ]
    ((title, picture),) = families(rows)
    assert title == "phileo/landcover: miou, %" and picture.startswith("data:image/svg+xml;base64,")
    assert families([{**r, "family": ""} for r in rows]) == []
    assert families(rows[::-1]) == [(title, picture)]
