from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import rasterio

from eval import pixels, predict
from eval.series import learners, precision
from eval.series.mosaic import Grid, Piece, write_embedding
from eval.series.tables import write_table

CLASSES = 3


@pytest.fixture
def tables(tmp_path) -> list[Path]:
    """Two tables of the same 240 rows on a plane: one whose features tell the class, one of noise."""
    rng = np.random.default_rng(0)
    crop = rng.integers(0, CLASSES, 240)
    crop[::20] = -1
    x, y = rng.uniform(0, 10, (2, 240))
    good = np.eye(CLASSES)[crop] + rng.normal(0, 0.25, (240, CLASSES))
    others = {"crop": crop, "height": 2.0 * good[:, 0] + 3 * good[:, 1], "x": x, "y": y}
    for name, features in (("good", good), ("noise", rng.normal(0, 1, (240, 5)))):
        write_table(tmp_path / f"{name}.parquet", features.astype(np.float32), others)
    return [tmp_path / "good.parquet", tmp_path / "noise.parquet"]


def run(tables, out, *words: str) -> list[dict]:
    features = [w for t in tables for w in ("--features", str(t))]
    pixels.main([*features, "--output", str(out), *words])
    return pyarrow.csv.read_csv(out / "results.csv").to_pylist()


def test_features_that_tell_the_class_win_with_every_learner(tables, tmp_path):
    rows = run(tables, tmp_path / "out", "--label", "crop", "--seeds", "2", "--fractions", "0.2", "1", "--block", "2")
    assert len(rows) == 2 * 2 * 2 * 4
    for row in rows:
        assert row["n_train"] <= (240 - 12) * 0.8 and 0.2 < row["n_test"] / 228 < 0.5
        assert (row["accuracy"] > 0.8) == (row["features"] == "good"), row
    few = {r["n_train"] for r in rows if r["fraction"] == 0.2}
    assert max(few) < 50
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| good | linear |" in text and "macro_f1" in text


def test_regression(tables, tmp_path):
    rows = run(tables, tmp_path / "out", "--label", "height", "--task", "regression", "--seeds", "1")
    scores = {(r["features"], r["learner"]): r for r in rows}
    assert scores["good", "linear"]["rmse"] < 0.05 < 1 < scores["noise", "linear"]["rmse"]
    assert scores["good", "forest"]["r2"] > 0.8 > 0.1 > scores["noise", "forest"]["r2"]


def test_a_square_is_either_for_training_or_for_test(tables):
    data = learners.read_table(tables[0], "crop", "classification")
    for seed in range(3):
        train, test = learners.split(data, 2.0, seed)
        squares = [{tuple(p) for p in np.floor(data.places[rows] / 2)} for rows in (train, test)]
        assert not squares[0] & squares[1] and len(train) + len(test) == len(data.labels) == 228
        assert not set(train) & set(test)


@pytest.mark.parametrize(
    "values, task, want",
    [
        (["a", None, "b", "a"], "classification", ["a", "b", "a"]),
        ([3, None, -1, 4], "classification", [3, 4]),
        ([3.0, np.nan, -1.0, None], "classification", [3.0]),
        ([3.0, np.nan, -1.0, None], "regression", [3.0, -1.0]),
    ],
)
def test_rows_without_a_label_are_left_out(tmp_path, values, task, want):
    pq.write_table(pa.table({"e000": np.arange(4.0), "y": pa.array(values, from_pandas=False)}), tmp_path / "t.parquet")
    data = learners.read_table(tmp_path / "t.parquet", "y", task)
    assert data.labels.tolist() == want and np.unique(data.labels).size == len(set(want))
    assert data.features[:, 0].tolist() == [i for i, y in enumerate(values) if y in want]


def test_features_have_the_order_of_their_numbers(tmp_path):
    wide = np.arange(2 * 1002, dtype=np.float32).reshape(2, 1002)  # e1000 sorts before e101 as a word
    write_table(tmp_path / "t.parquet", wide, {"y": [0, 1]})
    np.testing.assert_array_equal(learners.read_table(tmp_path / "t.parquet", "y", "classification").features, wide)


def test_few_labels_hold_every_class_and_grow_from_seed_to_seed():
    labels = np.array([0] * 90 + [1] * 9 + [2])
    rows = learners.fewer(np.arange(100), labels, 0.02, "classification", 0)
    assert set(labels[rows]) == {0, 1, 2} and len(rows) <= 5
    assert not np.array_equal(rows, learners.fewer(np.arange(100), labels, 0.02, "classification", 1))


def test_scores_by_hand():
    truth, guess = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    scores = learners.SCORES["classification"]
    assert scores["accuracy"](truth, guess) == 0.5
    assert scores["macro_f1"](truth, guess) == pytest.approx((2 / 3 + 0.5) / 2)  # class 2 is not in the truth


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_map_holds_what_the_learner_says_of_every_pixel(tables, tmp_path, kind):
    rng = np.random.default_rng(1)
    truth = rng.integers(0, CLASSES, (7, 9))
    x = (np.eye(CLASSES)[truth] + rng.normal(0, 0.05, (7, 9, CLASSES))).astype(np.float32)
    x[0, 0] = np.nan
    stored = precision.to_store(x, kind)
    pieces = {name: [Piece(0, 0, array)] for name, array in stored.items()}
    grid = Grid("EPSG:32631", rasterio.Affine(10, 0, 0, 0, -10, 0), 7, 9)
    write_embedding(tmp_path / "e.tif", pieces["values"], pieces.get("scales", []), grid, kind, {})
    words = ["--features", str(tables[0]), "--label", "crop", "--input", str(tmp_path / "e.tif")]
    pixels.main(["map", *words, "--output", str(tmp_path / "crop.tif")])
    with rasterio.open(tmp_path / "crop.tif") as file:
        found, tags = file.read(1), file.tags()
        assert file.transform == grid.transform
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and not list(tmp_path.glob(".*"))
        assert len(file.colormap(1)) == CLASSES
    assert found[0, 0] == 255 and tags["class_2"] == "2" and (tmp_path / "crop.png").is_file()
    assert predict.main(["areas", "--input", str(tmp_path / "crop.tif"), "--output", str(tmp_path / "areas.csv")]) == 0
    lines = (tmp_path / "areas.csv").read_text().split()[1:-1]
    assert [int(line.split(",")[1]) for line in lines] == np.bincount(found[found != 255]).tolist()
    assert (found == truth).sum() == 62
    pixels.main(
        [
            "map",
            *words[:2],
            "--label",
            "height",
            "--task",
            "regression",
            *words[4:],
            "--output",
            str(tmp_path / "h.tif"),
        ]
    )
    with rasterio.open(tmp_path / "h.tif") as file:
        height = file.read(1)
    want = 2 * x[..., 0] + 3 * x[..., 1]
    np.testing.assert_allclose(height[1:], want[1:], atol=0.15)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--label", "colour"], "has no label 'colour' beside its features; its other columns: crop, height, x, y"),
        (["--label", "crop", "--learners", "svm"], "learner 'svm' is not one of"),
        (["--label", "crop", "--fractions", "0"], "--fractions greater than 0"),
        (["--label", "crop", "--block", "100"], "leaves one part empty"),
    ],
)
def test_what_cannot_be_is_one_sentence(tables, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        run(tables, tmp_path / "out", *words)


def test_tables_of_other_rows_are_refused(tables, tmp_path):
    short = pq.read_table(tables[1]).slice(0, 100)
    pq.write_table(short, tmp_path / "short.parquet")
    with pytest.raises(ValueError, match="short holds other rows than good"):
        run([tables[0], tmp_path / "short.parquet"], tmp_path / "out", "--label", "crop")
