"""Ranks that die, hang or are told to stop: the run goes on to the same weights, or says who is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dinov2.train import checkpoint
from tests import tiny

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}


def written(folder: Path, **train) -> Path:
    path = tiny.shards(folder / "shards")
    return tiny.write_config(folder / "tiny.yaml", tiny.raw_config("simclr", path, **train))


def command(config: Path, run: Path, *torchrun: str) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *torchrun]
    return [sys.executable, *launch, str(ROOT / "train.py"), "--config-file", str(config), "--output-dir", str(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.latest(run))


def same(run: Path, other: Path) -> bool:
    expected = weights(other)
    return all(torch.equal(v, expected[k]) for k, v in weights(run).items())


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while (steps(run) or [0])[-1] < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(launcher: int) -> list[int]:
    """The processes that a torchrun has started, in rank order."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    return sorted(int(pid) for pid, parent in map(str.split, listed) if int(parent) == launcher)


def chaos(folder: Path, world: int, kills: int, seed: int) -> dict[str, int]:
    """Runs among kills, all of which end with the weights of the first, undisturbed one."""
    config, runs = written(folder, steps=8, save_every=1, keep=2), folder / "runs"
    runs.mkdir()
    script = str(ROOT / "tests" / "dinov2" / "train" / "chaos.py")
    words = [sys.executable, script, str(config), str(runs), str(world), str(kills), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for run in runs.iterdir():
        assert same(run, runs / "run-0") and steps(run) == list(range(1, 9))
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.distributed
def test_a_few_random_kills_change_nothing(tmp_path):
    assert chaos(tmp_path, world=2, kills=2, seed=0)["kills"] == 2


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_hundred_random_kills_change_nothing(world, tmp_path):
    counts = chaos(tmp_path, world=world, kills=34, seed=world)
    assert counts["kills"] >= 34
    print(counts)


@pytest.mark.distributed
@pytest.mark.slow
def test_torchrun_starts_anew_after_a_rank_has_died(tmp_path):
    config = written(tmp_path, steps=40, save_every=3)
    subprocess.run(command(config, tmp_path / "whole"), check=True, capture_output=True, env=ENVIRONMENT)
    process = subprocess.Popen(
        command(config, tmp_path / "killed", "--max-restarts=3"), stdout=subprocess.DEVNULL, env=ENVIRONMENT
    )
    wait_for_step(tmp_path / "killed", 10, process)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    assert process.wait(300) == 0
    assert same(tmp_path / "killed", tmp_path / "whole") and steps(tmp_path / "killed") == list(range(1, 41))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_the_step(tmp_path):
    config = written(tmp_path, steps=2000, timeout_min=0.1)
    process = subprocess.Popen(command(config, tmp_path / "run"), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for_step(tmp_path / "run", 5, process)
    asleep = ranks_of(process.pid)[1]
    os.kill(asleep, signal.SIGSTOP)
    stopped_at = steps(tmp_path / "run")[-1]
    time.sleep(20)
    os.kill(asleep, signal.SIGCONT)
    assert process.wait(200) == 1
    line = next(line for line in process.stderr.read().splitlines() if "did not answer" in line)
    assert "rank 0, step" in line and "rank 1 did not answer" in line
    assert abs(int(line.partition("step ")[2].partition(":")[0]) - stopped_at) <= 2


@pytest.mark.distributed
@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path):
    config = written(tmp_path, steps=2000, save_every=1000, log_every=1)
    process = subprocess.Popen(command(config, tmp_path / "run"), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for_step(tmp_path / "run", 5, process)
    os.kill(ranks_of(process.pid)[1], signal.SIGUSR1)
    said = process.communicate(timeout=200)[0]
    step = int(said.partition("SIGUSR1: saved after step ")[2].partition(";")[0])
    assert checkpoint.latest(tmp_path / "run").name == f"step-{step:08d}" and steps(tmp_path / "run")[-1] == step
