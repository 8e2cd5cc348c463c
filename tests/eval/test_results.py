import csv
import json

import pytest

from eval.results import CellFile, markdown, summarise, to_json, verdicts, write_tables


def row(model="net", role="pretrained", value=0.8, low=0.75, high=0.85, seed=0, config="c", **more):
    fields = {
        "model": model, "role": role, "dataset": "d", "task": "knn", "metric": "accuracy",
        "value": value, "ci_low": low, "ci_high": high, "n": 100, "seed": seed, "config": config,
        "metrics": {"accuracy": value, "mean_f1": 0.5}, "config_hash": "a", "model_hash": "m",
    }  # fmt: skip
    return {**fields, **more}


def test_lines_join_seeds_and_sort_by_value():
    rows = [
        row("floor", "floor", 0.9, 0.8, 0.95),
        row(value=0.8, low=0.7, high=0.9),
        row(value=0.6, low=0.5, high=0.7, seed=1),
    ]
    floor, net = summarise(rows)
    assert (floor.model, floor.seeds) == ("floor", 1)
    assert (net.low, net.high, net.seeds) == (0.5, 0.9, 2)
    assert (net.value, net.seed_std) == (pytest.approx(0.7), pytest.approx(0.1))


def test_a_model_wins_only_by_more_than_the_intervals():
    close, clear = row("a", "floor", 0.7, 0.65, 0.76), row("b", "floor", 0.6, 0.55, 0.66)
    other = row("z", "floor", 0.99, 0.98, 1.0, config="another")
    found = {v.floor: v for v in verdicts([row(), close, clear, other])}
    assert set(found) == {"a", "b"}
    assert not found["a"].wins and found["b"].wins
    assert "does NOT beat a by more than the intervals (+10.0 points)" in str(found["a"])


def test_a_cell_is_done_only_for_the_same_inputs(tmp_path):
    cell = CellFile(tmp_path / "c", 0)
    assert cell.done({"config_hash": "a"}) is None
    cell.write(row())
    assert cell.done({"config_hash": "a", "model_hash": "m"})["value"] == 0.8
    assert cell.done({"config_hash": "a", "model_hash": "n"}) is None


def test_a_failure_is_forgotten_once_the_cell_is_done(tmp_path):
    cell = CellFile(tmp_path / "c", 0)
    cell.fail("Traceback ...\nValueError: no")
    assert cell.error.read_text().endswith("no")
    cell.write(row())
    assert not cell.error.exists()
    cell.fail("a mistyped folder")  # must not cost the row that was there
    assert cell.done({"config_hash": "b"}) is None and cell.error.exists()
    assert cell.done({"config_hash": "a"}) is not None and not cell.error.exists()


def test_results_csv_lists_metrics_of_all_seeds_of_one_config(tmp_path):
    CellFile(tmp_path, 2).write(row(seed=2, config_hash="before"))
    for seed in (0, 1):
        CellFile(tmp_path, seed).write(row(seed=seed))
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        "metric,value,ci_low,ci_high,n,seed",
        "accuracy,0.8,0.75,0.85,100,0",
        "mean_f1,0.5,,,100,0",
        "accuracy,0.8,0.75,0.85,100,1",
        "mean_f1,0.5,,,100,1",
    ]


def test_tables(tmp_path):
    rows = [row(), row("f", "floor", 0.5, 0.4, 0.6)]
    write_tables(rows, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == rows
    assert "| c | net | pretrained | accuracy | 80.0 [75.0, 85.0] | 0.0 % | 100 |" in markdown(rows)
    assert (tmp_path / "results.csv").read_text().startswith("model,role,dataset,kind,task,metric,unit,value")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_table_says_what_a_row_was_made_from(tmp_path):
    more = {"bands": ["s2/B02", "zeros"], "missing": ["s2/B03", "s2/B04"], "sizing": "tiles of 16", "n_train": 7}
    write_tables([row(**more, labels_hash="h")], tmp_path)
    (found,) = csv.DictReader((tmp_path / "results.csv").open())
    assert (found["bands"], found["missing"]) == ("s2/B02;zeros", "s2/B03;s2/B04")
    assert (found["sizing"], found["n_train"], found["labels_hash"]) == ("tiles of 16", "7", "h")


def test_absent_classes_are_null():
    assert to_json({"f1": [1.0, float("nan")]}) == '{"f1": [1.0, null]}'
