"""Files on disk to scores: the datasets as the engine sees them."""

import json

import numpy as np
import pytest

from eval.main import main


@pytest.fixture
def folder(tmp_path, tif):
    """Sixteen chips of two bands in which class 1 is brighter, and their masks."""
    rng = np.random.default_rng(0)
    for i in range(16):
        mask = np.repeat(np.repeat(rng.integers(0, 2, (4, 4)), 4, 0), 4, 1).astype(np.uint8)
        tif(
            tmp_path / f"s2/{i}.tif",
            (1000 + 2000 * mask.astype(int) + rng.integers(0, 99, (2, 16, 16))).astype(np.uint16),
        )
        tif(tmp_path / f"masks/{i}.tif", mask)
    (tmp_path / "seg.yaml").write_text(
        f"dataset:\n  name: files\n  root: {tmp_path}\n"
        "  layers: {s2: {path: 's2/{id}.tif', sensor: sentinel2_l2a, gsd_m: 10, bands: [B04, B08]}}\n"
        "  target: {path: 'masks/{id}.tif', ignore: [255]}\n  classes: [dark, bright]\n"
        "task: {name: decoder, decoder: linear, epochs: 30, learning_rates: [0.1], batch_size: 4}\n"
    )
    return tmp_path


def evaluate(folder, *overrides):
    out = folder / "out"
    given = ["--model-obj", "pixelstats", "--config-obj", str(folder / "seg.yaml"), "--output-dir", str(out)]
    code = main([*given, *overrides])
    return code, [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_classes_that_anyone_can_see_are_found(folder):
    code, rows = evaluate(folder)
    assert code == 0
    assert rows[0]["value"] > 0.99 and rows[0]["n_train"] == 10


def test_masks_without_any_label_give_no_score(folder, tif):
    for i in range(16):
        tif(folder / f"masks/{i}.tif", np.full((16, 16), 255, np.uint8))
    code, rows = evaluate(folder)
    assert code == 1 and not rows
