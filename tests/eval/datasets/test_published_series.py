"""Published series through the engine: dates that differ in number, two sensors, necks, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval.main import main
from tests.eval.datasets.layouts import series

ROOT = Path(__file__).resolve().parents[3]
VIT = "random:vit_tiny?patch_size=4&img_size=8&embed_dim=32&depth=2&num_heads=2&attn_dim=32&attn_heads=2"
TASK = {"name": "decoder", "decoder": "linear", "epochs": 3, "batch_size": 4, "learning_rates": [0.05]}


@pytest.fixture
def configs(tmp_path):
    """PASTIS-R with six dates of both sensors, with both necks; its Sentinel-2 series alone, whole and thus padded."""
    series.pastis_r(tmp_path / "data", 20, scrambled=False)
    given = {"name": "pastis_r", "root": str(tmp_path / "data")}
    whole = {**given, "images": ["sentinel2_l2a"], "layers": {"s2": {"evenly": None}}}
    for name, dataset, task in (
        ("ltae", given, {"neck": "ltae", "neck_options": {"heads": 4}}),
        ("linear", given, {"neck": "linear"}),
        ("padded", whole, {"neck": "ltae", "neck_options": {"heads": 4}}),
    ):
        text = yaml.safe_dump({"dataset": dataset, "task": {**TASK, **task}, "resamples": 20})
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / f"configs/{name}.yaml").write_text(text)
    return tmp_path / "configs"


def rows(folder):
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_make_the_table_of_one(tmp_path, configs):
    given = ["--model-obj", VIT, "--config-obj", str(configs), "--output-dir"]
    assert main([*given, str(tmp_path / "one")]) == 0
    head = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*head, str(ROOT / "eval" / "main.py"), *given, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == 3 and one == two
    assert {row["config"].split("/")[-1] for row in one} == {"ltae", "linear", "padded"}
