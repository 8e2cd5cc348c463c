import csv

import numpy as np
import pytest

from eval.leaderboard import draws, leaderboard, members, read_groups, write_leaderboard
from eval.results import summarise


def row(model, config, value, half=0.02, role="pretrained", metric="accuracy", unit="", seed=0):
    return {"model": model, "role": role, "dataset": "d", "task": "knn", "metric": metric, "unit": unit, "seed": seed,
            "value": value, "ci_low": value - half, "ci_high": value + half, "n": 100, "config": config}  # fmt: skip


ROWS = [
    row("a", "geo/one", 0.9), row("b", "geo/one", 0.8), row("c", "geo/one", 0.7, role="floor"),
    row("a", "geo/two", 0.6), row("b", "geo/two", 0.6), row("c", "geo/two", 0.5, role="floor"),
    row("a", "height", 2.0, 0.1, metric="rmse", unit="m"), row("b", "height", 3.0, 0.1, metric="rmse", unit="m"),
    row("c", "height", 1.0, 0.1, "floor", "rmse", "m"),
]  # fmt: skip


def test_mean_ranks_by_hand():
    found = {s.model: s for s in leaderboard(ROWS)}
    assert found["a"].rank.value == pytest.approx((1 + 1.5 + 2) / 3)  # ties share, a smaller error is better
    assert found["b"].rank.value == pytest.approx((2 + 1.5 + 3) / 3)
    assert found["c"].rank.value == pytest.approx((3 + 3 + 1) / 3)
    assert [s.model for s in leaderboard(ROWS)] == ["a", "b", "c"]


def test_averages_by_folder_leave_errors_out():
    found = {s.model: s.averages for s in leaderboard(ROWS)}
    assert set(found["a"]) == {"geo"}
    assert found["a"]["geo"].value == pytest.approx(0.75)
    half = 0.02 / 2**0.5  # two independent intervals of the same width
    assert found["a"]["geo"].low == pytest.approx(0.75 - half, abs=2e-3)
    assert found["a"]["geo"].high == pytest.approx(0.75 + half, abs=2e-3)


def test_ranks_are_as_stable_as_the_intervals():
    clear = [row("a", "one", 0.9), row("b", "one", 0.5)]
    a, b = leaderboard(clear)
    assert (a.rank.low, a.rank.high, a.first, b.first) == (1, 1, 1, 0)
    a, b = leaderboard([row("a", "one", 0.71, 0.2), row("b", "one", 0.7, 0.2)])
    assert (a.rank.low, a.rank.high) == (1, 2) and 0.4 < b.first < a.first < 0.6
    assert a.first + b.first == pytest.approx(1)


def test_draws_end_at_the_intervals():
    skewed = {**row("a", "one", 0.8), "ci_low": 0.7, "ci_high": 0.82}
    drawn = draws(summarise([skewed]))[:, 0]
    assert np.quantile(drawn, (0.025, 0.975)) == pytest.approx((0.7, 0.82), abs=0.01)
    assert (drawn < 0.8).mean() == pytest.approx(0.5, abs=0.03)


def test_a_model_that_lacks_an_evaluation_has_no_rank():
    found = {s.model: s for s in leaderboard(ROWS[:-1])}
    assert found["c"].rank is None and found["c"].averages["geo"].value == pytest.approx(0.6)
    assert found["a"].rank.value == pytest.approx((1 + 1.5 + 1) / 3)  # among the two that have all
    assert leaderboard([]) == []


def test_named_averages(tmp_path):
    path = tmp_path / "averages.yaml"
    path.write_text("all scores: [geo/*]\nfirst: ['*/one']\n")
    groups = read_groups(path)
    found = {s.model: s.averages for s in leaderboard(ROWS, groups)}
    assert found["b"]["all scores"].value == pytest.approx(0.7) and found["b"]["first"].value == pytest.approx(0.8)
    assert read_groups(None) is None
    lines = summarise(ROWS)
    with pytest.raises(ValueError, match="average x: no evaluation is called forest/"):
        members({"x": ["forest/*"]}, lines)
    with pytest.raises(ValueError, match="average x: height is an error in m, not a fraction"):
        members({"x": ["*"]}, lines)
    path.write_text("x: geo/one\n")
    with pytest.raises(ValueError, match="x is not a list of evaluations"):
        read_groups(path)


def test_tables(tmp_path):
    standings = leaderboard(ROWS[:-1])
    write_leaderboard(standings, tmp_path)
    head, _, first, *_, last = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert head == "| model | role | mean rank | first | geo | geo/one | geo/two | height |"
    assert first.startswith("| a | pretrained | 1.17 [1.00, 1.33] | ") and first.endswith("| 2 [1.9, 2.1] m |")
    assert last.startswith("| c | floor | – | – |") and last.endswith("| 50.0 [48.0, 52.0] | – |")
    records = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [r["model"] for r in records] == ["a", "b", "c"]
    assert float(records[0]["height high"]) == pytest.approx(2.1) and records[2]["height"] == records[2]["rank"] == ""
