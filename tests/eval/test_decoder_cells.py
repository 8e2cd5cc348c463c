"""Decoder cells through the engine and the command line, on a shard set with a map per sample."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dinov2.data.shards import write_shards
from eval import schema
from eval.engine import Bench, collect, evaluate, plan, run_cell
from eval.engine import run as run_cells
from eval.main import main
from eval.trained import load_trained
from tests.dense import World

ROOT = Path(__file__).resolve().parents[2]
VIT = "random:vit_tiny?patch_size=4&img_size=16&embed_dim=32&depth=2&num_heads=2&attn_dim=32&attn_heads=2"
QUICK = {"name": "decoder", "decoder": "linear", "epochs": 3, "batch_size": 4, "learning_rates": [0.01, 0.1]}


def write(folder, shift=0, blank=None):
    """Train 12, val 5, test 5 samples; ``shift`` moves the classes of the test maps, ``blank`` maps have no label."""
    about = {"cover": {"kind": "mask", "classes": ["dark", "middle", "bright"], "ignore": -1}}
    about["height"] = {"kind": "mask", "unit": "m"}
    about["mean"] = {"kind": "scalar", "unit": "m"}
    for seed, (name, count) in enumerate({"root": 12, "val_root": 5, "test_root": 5}.items()):
        world = World("segmentation", count, seed=seed)
        values = World("regression", count, seed=seed)
        moved = shift if name == "test_root" else 0
        samples = (
            replace(
                world.sample(i),
                labels={
                    "cover": np.where(name == blank, -1, (world.target(i) + moved) % 3).astype("int16"),
                    "height": values.target(i),
                    "mean": float(world.labels("regression")[i]),
                    "scene": int(world.labels("classification")[i]),
                },
            )
            for i in range(count)
        )
        write_shards(samples, folder / name, samples_per_shard=8, labels=about)
    return {name: str(folder / name) for name in ("root", "val_root", "test_root")}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cover"))


def config(roots, name="cells/cover", label="cover", task=None, **more):
    dataset = {"name": "shards", "title": "blocks", "label": label, **roots}
    return {"name": name, "dataset": dataset, "task": {**QUICK, **(task or {})}, "resamples": 50, **more}


def test_a_decoder_cell_says_how_it_came_about(tmp_path, roots):
    (row,) = evaluate([VIT], [config(roots)], tmp_path)
    assert (row["kind"], row["metric"], row["task"], row["role"]) == ("segmentation", "miou", "decoder", "floor")
    assert (row["n"], row["n_train"], row["n_val"]) == (5, 12, 5) and row["ci_low"] <= row["value"] <= row["ci_high"]
    assert row["sizing"] == "positions interpolated" and row["input_size"] == 16
    assert row["curve"]["epoch"] == [3] and row["chosen"]["val_miou"] == row["curve"]["val_miou"][0]
    assert set(row["per_class"]) >= {"iou", "f1"} and "labels_hash" not in row
    folder = next(tmp_path.rglob("seed-0.json")).parent
    assert load_trained(folder).classes == ("dark", "middle", "bright")


@pytest.mark.parametrize(("blank", "split"), [("root", "train"), ("val_root", "val"), ("test_root", "test")])
def test_maps_without_a_label_are_one_sentence(tmp_path, blank, split):
    with pytest.raises(RuntimeError, match=f"ValueError: dataset blocks: no pixel of its {split} maps has a label"):
        evaluate([VIT], [config(write(tmp_path, blank=blank))], tmp_path / "out")


@pytest.mark.parametrize(
    ("label", "task", "metric"),
    [
        ("height", {}, "rmse"),
        ("mean", {"decoder": "linear_classifier"}, "rmse"),
        ("mean", {"name": "linear", "epochs": 20, "learning_rates": [0.1], "batch_size": 8}, "rmse"),
        ("mean", {"name": "knn", "k": 3}, "rmse"),
        ("scene", {"decoder": "linear_classifier"}, "accuracy"),
    ],
)
def test_what_is_predicted_is_the_datasets_kind(tmp_path, roots, label, task, metric):
    task = task if "name" in task else {**QUICK, **task}
    given = {**config(roots, label=label), "task": task}
    (row,) = evaluate(["pixelstats"], [given], tmp_path)
    assert row["metric"] == metric and (row["unit"] == "m") == (metric == "rmse")
    table = (tmp_path / "results.md").read_text()
    assert ("] m |" in table) == (metric == "rmse")


def test_targets_of_the_same_images_are_kept_apart(tmp_path, roots):
    given = [config(roots, f"cells/{label}", label) for label in ("cover", "height")]
    together = evaluate(["pixelstats"], given, tmp_path / "together")
    alone = [evaluate(["pixelstats"], [one], tmp_path / one["name"])[0] for one in given]
    assert [r["metric"] for r in together] == ["miou", "rmse"]
    assert [r["value"] for r in together] == [r["value"] for r in alone]


def test_few_labels_are_another_cell_with_their_hash(tmp_path, roots):
    few = {"labels": {"fraction": 0.5}}
    everything, half = evaluate(["pixelstats"], [config(roots), config(roots, "cells/half", **few)], tmp_path)
    assert (everything["n_train"], half["n_train"]) == (12, 6) and len(half["labels_hash"]) == 12
    assert everything["config_hash"] != half["config_hash"]
    assert schema.load({**config(roots), "labels": {"fraction": 1.0}}).config_hash == everything["config_hash"]
    file = tmp_path / "keys.txt"
    listed = config(roots, "cells/file", labels={"strategy": "file", "file": str(file)})
    hashes = []
    for keys in ("s0-001\ns0-002\ns0-003\ns0-004\ns0-005\ns0-006\n", "s0-001\ns0-002\ns0-003\ns0-009\ns0-007\n"):
        file.write_text(keys)
        hashes.append(evaluate(["pixelstats"], [listed], tmp_path)[0]["labels_hash"])
    assert hashes[0] != hashes[1]  # the same config, other contents: done again


def test_cells_that_learn_side_by_side_are_those_that_learn_alone(tmp_path, roots):
    task, nowhere = {"crop": "random", "crop_size": 8}, str(tmp_path / "nowhere")
    given = [
        config(roots, "cells/all", task=task, seeds=[0, 1]),
        config(roots, "cells/half", task=task, labels={"fraction": 0.5}),
        config(roots, "cells/none", task=task, labels={"strategy": "file", "file": nowhere}),
        config(roots, "cells/other", task={"epochs": 1}, seeds=[0, 1]),
    ]
    cells = plan(["pixelstats"], [schema.load(c) for c in given], tmp_path / "together")
    bench = Bench(torch.device("cpu"), cells=cells)
    run_cell(cells[0], bench)
    assert sorted(f"{path.parent.name} {path.stem}" for path in bench.learnt) == ["all seed-1", "half seed-0"]
    run_cells(cells, bench)
    together, failed = collect(cells)
    assert len(failed) == 1 and "nowhere does not exist" in failed[0]  # its mistake is its own
    assert not bench.learnt and len(together) == 5
    for row in together:
        one = next(c for c in given if c["name"] == row["config"]) | {"seeds": [row["seed"]]}
        (alone,) = evaluate(["pixelstats"], [one], tmp_path / f"alone-{row['seed']}")
        assert {**alone, "seconds": 0} == {**row, "seconds": 0}


def test_scratch_starts_from_random_weights_of_the_same_encoder(tmp_path, run, roots, tools):
    scratch = config(roots, "cells/scratch", task={"train": "scratch", "epochs": 2})
    tuned = config(roots, "cells/tuned", task={"train": "finetune", "epochs": 2})
    rows = {r["config"]: r for r in evaluate([str(run)], [scratch, tuned], tmp_path / "out")}
    assert rows["cells/scratch"]["role"] == "baseline" and rows["cells/tuned"]["role"] == "pretrained"
    assert rows["cells/scratch"]["model_hash"] != rows["cells/tuned"]["model_hash"]


def test_mistakes_are_recorded_and_the_rest_goes_on(tmp_path, roots):
    names = {"unknown": {"decoder": "upernett"}, "good": {}, "probe": {"name": "knn"}}
    configs = [config(roots, f"cells/{name}", task=task) for name, task in names.items()]
    configs[2]["task"] = {"name": "knn"}
    cells = plan([VIT], [schema.load(c) for c in configs], tmp_path)
    run_cells(cells, Bench(torch.device("cpu")))
    rows, failed = collect(cells)
    assert [r["config"] for r in rows] == ["cells/good"] and len(failed) == 2
    assert "task.decoder 'upernett' is not one of" in failed[0] and "did you mean 'upernet'" in failed[0]
    assert "dataset blocks has a map per image: task.name=knn takes labels" in failed[1]


def project(folder, configs):
    """Config files in a folder."""
    (folder / "configs").mkdir()
    for raw in configs:
        name = raw.pop("name").partition("/")[2]
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    return ["--config-obj", str(folder / "configs")]


def table(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def start(arguments, ranks=0):
    head = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"] if ranks else []
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *head, str(ROOT / "eval" / "main.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_finished_cell_is_tested_again_without_training(tmp_path, roots):
    models = ["--model-obj", "pixelstats", "--output-dir", str(tmp_path / "out")]
    configs = project(tmp_path, [config(roots)])
    assert main([*models, *configs, "--test-only"]) == 1  # nothing is finished yet
    assert main([*models, *configs]) == 0
    (first,) = table(tmp_path / "out")
    file = next((tmp_path / "out").rglob("seed-0.safetensors"))
    before = file.stat().st_mtime_ns
    assert main([*models, *configs, "--test-only"]) == 0
    assert table(tmp_path / "out") == [first] and file.stat().st_mtime_ns == before
    other = write(tmp_path / "moved", shift=1)
    assert main([*models, *configs, "--test-only", f"dataset.test_root={other['test_root']}"]) == 0
    (moved,) = table(tmp_path / "out")
    assert moved["value"] < first["value"] and moved["chosen"] == first["chosen"]
    assert moved["data_hash"] != first["data_hash"] and file.stat().st_mtime_ns == before


def test_only_what_was_trained_alike_is_tested_again(tmp_path, roots):
    few = {"labels": {"fraction": 0.5}}
    arguments = ["--model-obj", "pixelstats", "--output-dir", str(tmp_path / "out")]
    arguments += project(tmp_path, [config(roots, **few)])
    assert main(arguments) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json*")}
    for other in ("task.decoder=fcn", "labels.seed=1"):
        with pytest.raises(ValueError, match=r"there is no .*seed-0\.json of this config, model and data"):
            main([*arguments, "--test-only", other])
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json*")} == before
    assert not list((tmp_path / "out").rglob("*.error.txt"))


def test_what_decoders_learn_is_written_for_tensorboard(tmp_path, roots):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'eo-ssl[track]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    task = {"epochs": 4, "evaluate_every": 2, "learning_rates": [1e-3, 1e-2]}
    cells = plan(["pixelstats"], [schema.load(config(roots, task=task, running={"tensorboard": True}))], tmp_path)
    run_cells(cells, Bench(torch.device("cpu")))
    ((row,), failed) = collect(cells)
    assert not failed
    written = EventAccumulator(str(cells[0].file.path.with_suffix("") / "tensorboard")).Reload()
    assert {f"{what}/rate {rate}" for what in ("validation", "loss") for rate in ("0.001", "0.01")} <= set(
        written.Tags()["scalars"]
    )
    best = written.Scalars(f"validation/rate {row['chosen']['learning_rate']:g}")
    assert [e.step for e in best] == row["curve"]["epoch"] == [2, 4]
    assert [e.value for e in best] == pytest.approx(row["curve"]["val_miou"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_make_the_table_of_one(tmp_path, roots):
    tasks = {
        "cover/linear": {},
        "cover/fcn": {"decoder": "fcn", "decoder_options": {"channels": 8, "convs": 1}},
        "cover/crops": {"crop": "random", "crop_size": 8},
        "cover/tuned": {"train": "finetune", "epochs": 1},
        "height/linear": {},
    }
    configs = [config(roots, f"x/{n.replace('/', '-')}", n.partition("/")[0], task) for n, task in tasks.items()]
    configs.append({**config(roots, "x/knn", "scene"), "task": {"name": "knn", "k": 3}})
    arguments = ["--model-obj", f"{VIT};pixelstats", *project(tmp_path, configs)]
    one = start([*arguments, "--output-dir", str(tmp_path / "one")])
    assert one.wait(200) == 1, one.stdout.read()  # there is nothing to tune in pixel statistics
    two = start([*arguments, "--output-dir", str(tmp_path / "two")], ranks=2)
    assert two.wait(200) == 1, two.stdout.read()
    assert len(table(tmp_path / "one")) == 11 and table(tmp_path / "one") == table(tmp_path / "two")
    assert all(row["n"] == 5 for row in table(tmp_path / "two"))


@pytest.mark.slow
def test_a_cell_that_was_killed_is_done_on_the_next_call(tmp_path, roots):
    configs = [config(roots, "x/a", task={"epochs": 1}), config(roots, "x/b", task={"epochs": 400})]
    arguments = ["--model-obj", VIT, *project(tmp_path, configs), "--output-dir", str(tmp_path / "out")]
    process, limit = start(arguments), time.monotonic() + 100
    while not (done := list((tmp_path / "out").rglob("a/seed-0.json"))):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((tmp_path / "out").rglob("b/seed-0.json")) and not list((tmp_path / "out").rglob("error.txt"))
    before = done[0].stat().st_mtime_ns
    assert main(arguments) == 0
    assert [row["config"] for row in table(tmp_path / "out")] == ["a", "b"]
    assert done[0].stat().st_mtime_ns == before
