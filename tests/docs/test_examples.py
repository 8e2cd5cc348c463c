"""The examples on their small worlds, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, made",
    [
        ("geotiffs", ["run/model_final.safetensors", "maps/train_0_0000000_embedding.tif"]),
        ("floods", ["eval/report.html", "maps/train_0_0000000_pred.png", "maps/train_0_0000005_pred.tif"]),
        ("crops", ["embedding.png", "results/results.csv", "crops.tif"]),
    ],
)
def test_an_example_makes_what_it_says(name, made, tmp_path):
    script = ROOT / f"docs/examples/{name}.py"
    words = [sys.executable, script, "--quick", "--output", "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in made:
        assert (tmp_path / "out" / file).stat().st_size > 100


@pytest.mark.parametrize("name", ["geotiffs", "floods", "crops"])
def test_an_example_needs_data(name, tmp_path):
    script = ROOT / f"docs/examples/{name}.py"
    done = subprocess.run([sys.executable, script, "--output", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: give --src, ")
