"""Published series through the engine: dates that differ in number, two sensors, necks, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval.main import main
from tests.eval.datasets.layouts import series, tortillas

ROOT = Path(__file__).resolve().parents[3]
VIT = "random:vit_tiny?patch_size=4&img_size=8&embed_dim=32&depth=2&num_heads=2&attn_dim=32&attn_heads=2"
TASK = {"name": "decoder", "decoder": "linear", "epochs": 2, "batch_size": 4, "learning_rates": [0.05]}


WHOLE = {"images": ["sentinel2_l2a"], "layers": {"s2": {"evenly": None}}}  # all dates: series differ, and are padded
SETS = {  # writer, options of the dataset beside its root, necks
    "pastis_r": (series.pastis_r, {}, ("ltae", "linear")),  # six dates of both sensors
    "pastis_r whole": (series.pastis_r, WHOLE, ("ltae",)),
    "biomassters": (series.biomassters, {}, ("ltae", "linear")),  # twelve months, some of them without Sentinel-2
    "multitemporal_crop": (series.multitemporal_crop, {}, ("ltae", "linear")),
    "crop_type_mapping_ss": (series.crop_type_mapping_ss, {}, ("ltae", "linear")),
    "crop_type_mapping_ss whole": (series.crop_type_mapping_ss, WHOLE, ("ltae",)),
    "geobench2_pastis": (tortillas.of_maps("pastis"), {}, ("ltae",)),
    "geobench2_kuro_siwo": (tortillas.of_maps("kuro_siwo"), {}, ("linear",)),  # whose days are unknown
}


@pytest.fixture
def configs(tmp_path):
    """All sets with the necks that fit them."""
    (tmp_path / "configs").mkdir()
    for name, (write, options, necks) in SETS.items():
        (root := tmp_path / name).mkdir()
        write(root, 10, scrambled=False)
        dataset = {"name": name.split()[0], "root": str(root), **options}
        for neck in necks:
            task = {**TASK, "neck": neck, **({"neck_options": {"heads": 4}} if neck == "ltae" else {})}
            text = yaml.safe_dump({"dataset": dataset, "task": task, "model": {"size": "resize"}, "resamples": 20})
            (tmp_path / f"configs/{name.replace(' ', '_')}_{neck}.yaml").write_text(text)
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
    assert len(one) == 12 and one == two
    assert {Path(row["config"]).name for row in one} == {path.stem for path in configs.iterdir()}
