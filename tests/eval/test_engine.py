import dataclasses

import pytest
import torch

from eval import schema
from eval.engine import Bench, collect, evaluate, plan
from eval.engine import run as run_cells

CPU = torch.device("cpu")


def cells_of(models, configs, output=None):
    return plan(models, [schema.load(c) for c in configs], output)


def changed(config, name, **changes):
    parts = {key: {**config[key], **changes.pop(key, {})} for key in ("dataset", "task")}
    return {**config, **parts, **changes, "name": name}


@pytest.fixture
def linear(config):
    task = {"name": "linear", "epochs": 5, "learning_rates": [0.01, 0.1], "poolings": ["cls", "mean"]}
    return {**config, "name": "tiny/linear", "task": task, "seeds": [0, 1]}


def test_rows(tmp_path, run, config, linear, shards):
    rows = evaluate([str(run), f"random:{run}", "pixelstats"], [config, linear], tmp_path / "out")
    assert [(r["model"], r["role"], r["task"], r["seed"]) for r in rows] == [
        (m, role, task, seed)
        for m, role in (("run", "pretrained"), ("random:run", "floor"), ("pixelstats", "floor"))
        for task, seed in (("knn", 0), ("linear", 0), ("linear", 1))
    ]
    first = rows[0]
    assert first["n"] + first["n_train"] + first["n_val"] == 96
    assert first["normalisation"] == "checkpoint" and rows[-1]["normalisation"] == "dataset"
    assert first["bands"] == ["sentinel2_l2a/B02", "sentinel2_l2a/B03", "sentinel2_l2a/B04"]
    assert len({r["split_hash"] for r in rows}) == len({r["data_hash"] for r in rows}) == 1
    # the classes differ in the statistics of their pixels, so a probe of these is perfect
    assert [r["value"] for r in rows if r["model"] == "pixelstats"] == [1.0, 1.0, 1.0]
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {
        "results.csv",
        "results.jsonl",
        "results.md",
        "run/tiny/knn/seed-0.json",
        "run/tiny/linear/results.csv",
    } <= names


def test_results_lie_in_the_run_folder(run, config):
    evaluate([str(run), "pixelstats"], [config])
    assert (run / "eval_model_final" / "tiny" / "knn" / "results.csv").is_file()
    assert (run / "eval_model_final" / "pixelstats" / "tiny" / "knn" / "results.csv").is_file()


def test_done_cells_are_skipped_until_something_changes(tmp_path, run, config, tools, shards):
    def age():
        evaluate([str(run)], [config])
        return (run / "eval_model_final/tiny/knn/seed-0.json").stat().st_mtime_ns

    first = age()
    assert age() == first
    tools.write_run(run, shards, seed=9)
    second = age()
    assert second > first
    config["task"]["k"] = 4
    third = age()
    assert third > second
    more = tools.write(tmp_path / "more", tools.samples(120, radar=True))
    config["dataset"]["root"] = str(more)
    assert age() > third


def test_a_cell_without_a_head_stays_as_it_is_when_tested_again(tmp_path, run, config, tools):
    cells = cells_of([str(run)], [config])
    run_cells(cells, Bench(CPU))
    before = cells[0].file.path.stat().st_mtime_ns
    run_cells(cells, Bench(CPU), test_only=True)
    rows, failed = collect(cells)
    assert len(rows) == 1 and not failed and cells[0].file.path.stat().st_mtime_ns == before
    more = tools.write(tmp_path / "more", tools.samples(120, radar=True))
    for other in ({"task": {"k": 4}}, {"dataset": {"root": str(more)}}):
        with pytest.raises(ValueError, match="of this config, model and data to be tested"):
            run_cells(cells_of([str(run)], [changed(config, config["name"], **other)]), Bench(CPU), test_only=True)
    assert collect(cells) == (rows, [])


def test_one_failed_cell_is_recorded_and_the_rest_goes_on(run, config):
    bad = changed(config, "tiny/bad", task={"k": 1000})
    cells = cells_of([str(run)], [bad, config])
    run_cells(cells, Bench(CPU))
    rows, failed = collect(cells)
    assert [r["config"] for r in rows] == ["tiny/knn"]
    assert len(failed) == 1 and "task.k is 1000" in failed[0] and failed[0].startswith("tiny/bad, run, seed 0")
    trace = (run / "eval_model_final/tiny/bad/seed-0.error.txt").read_text()
    assert trace.startswith("Traceback") and "knn.py" in trace
    with pytest.raises(RuntimeError, match="1 of 2 evaluation cells failed; first: tiny/bad"):
        evaluate([str(run)], [bad, config])


def test_a_size_that_the_patch_does_not_divide_is_one_sentence(run, config):
    cells = cells_of([str(run)], [changed(config, "tiny/odd", dataset={"size": 15})])
    run_cells(cells, Bench(CPU))
    (failed,) = collect(cells)[1]
    assert "15" in failed and "patch" in failed


def test_poisoned_test_labels_change_nothing_that_is_chosen(tmp_path, run, linear, tools):
    clean = list(tools.samples(96, radar=True))
    lists = {"val": ["p1", "p5", "p9"], "test": ["p2", "p3", "p20", "p21"]}
    poisoned = [
        dataclasses.replace(s, labels={"scene": (s.labels["scene"] + 1) % 3}) if s.meta["place"] in lists["test"] else s
        for s in clean
    ]
    rows = []
    for name, samples in (("clean", clean), ("poisoned", poisoned)):
        root = tools.write(tmp_path / name, samples)
        config = changed(linear, "tiny/linear", dataset={"root": str(root), **lists})
        rows.append(evaluate([str(run)], [config], tmp_path / f"out-{name}"))
    for a, b in zip(*rows, strict=True):
        assert a["chosen"] == b["chosen"]
        assert a["model_hash"] == b["model_hash"] and a["split_hash"] != b["split_hash"]
        # same predictions: each column keeps its sum while the rows move on by one class
        assert a["confusion"] == b["confusion"][1:] + b["confusion"][:1]


def test_parts_divide_the_cells_without_splitting_what_shares_features(run, config, linear):
    cells = cells_of([str(run), f"random:{run}", "pixelstats"], [config, linear])
    groups = list(dict.fromkeys(c.group for c in cells))
    assert len(cells) == 9 and len(groups) == 3
    bench = Bench(CPU)
    run_cells(cells, bench, (1, 2))
    done = [c for c in cells if c.file.path.is_file()]
    assert {c.group for c in done} == {groups[1]} and len(done) == 3


def test_planning_complains_early(tmp_path, run, config, tools, shards):
    twin = tools.write_run(tmp_path / "other" / "run", shards)
    with pytest.raises(ValueError, match="two models are called run"):
        cells_of([str(run), str(twin)], [config])
    with pytest.raises(ValueError, match="two configs are called tiny/knn"):
        cells_of([str(run)], [config, config])
    with pytest.raises(ValueError, match="name a folder with --output-dir"):
        cells_of(["pixelstats"], [config])
    with pytest.raises(ValueError, match="there is no file"):
        cells_of(["nowhere"], [config])
