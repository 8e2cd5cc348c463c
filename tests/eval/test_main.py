import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval.main import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "eval" / "main.py")


def call(*arguments, cwd, ranks=0):
    head = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"] if ranks else []
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *head, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=200)


@pytest.fixture
def project(tmp_path, config, monkeypatch):
    """A working folder with one good and one bad evaluation config."""
    (tmp_path / "configs").mkdir()
    for name, changes in (("knn", {}), ("bad", {"task": {"name": "knn", "k": 1000}})):
        plain = {k: v for k, v in (config | changes).items() if k != "name"}
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.distributed
def test_two_ranks_make_the_table_of_one_and_a_failed_cell_turns_the_exit_code(project, run, capsys):
    models = f"{run};random:{run};pixelstats"
    assert main(["main", "--model-obj", models, "--config-obj", "configs", "--output_dir", "one"]) == 1
    two = call("--model-obj", models, "--config-obj", "configs", "--output-dir", "two", ranks=2, cwd=project)
    assert two.returncode == 1, two.stderr
    assert len(table(project / "one")) == 3
    assert table(project / "one") == table(project / "two")
    for output in (capsys.readouterr().out, two.stdout):
        assert "FAILED bad, run, seed 0: ValueError: task.k is 1000" in output
        assert "knn: run does NOT beat pixelstats" in output
    assert (project / "two" / "report.html").read_text().startswith("<!doctype html>")
    assert main(["--model-obj", models, "--config-obj", "configs/knn.yaml", "--output-dir", "one"]) == 0
    assert len(table(project / "one")) == 3


def test_a_mistake_is_one_sentence_and_exit_code_2(project):
    done = call("--model-obj", "nowhere", "--config-obj", "configs/knn.yaml", cwd=project)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model 'nowhere': there is no file nowhere; give a run folder")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "override", "message"),
    [
        ("pixelstats", "task.k=3", "there is no run folder among the models: name a folder with --output-dir"),
        ("pixelstats", "task.kk=3", "configs/knn.yaml: config key 'task.kk'"),
    ],
)
def test_mistakes(project, model, override, message):
    with pytest.raises(ValueError, match=message):
        main(["--model-obj", model, "--config-obj", "configs/knn.yaml", override])


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python eval/main.py --model-obj" in capsys.readouterr().out


def test_the_list_of_models_needs_nothing_else(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--list-models"])
    assert stop.value.code == 0 and "croma_base_joint" in capsys.readouterr().out


def test_a_model_that_its_first_dataset_refuses_is_left_out_of_the_pictures(tmp_path, shards, config):
    radar = tmp_path / "b.yaml"
    optical = tmp_path / "a.yaml"
    for file, images in ((optical, ["sentinel2_l2a"]), (radar, ["sentinel1_rtc"])):
        dataset = {**config["dataset"], "images": images, "size": 16}
        file.write_text(yaml.safe_dump({"dataset": dataset, "task": config["task"]}))
    models = "croma_base_sar@random?embed_dim=16&depth=4;pixelstats"
    assert main(["--model-obj", models, "--config-obj", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 1
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [(r["config"], r["role"]) for r in rows if "croma" in r["model"]] == [("b", "floor")]
    assert (tmp_path / "out/report.html").is_file()
