"""Training on two nodes of two tasks each: however a job ends, the run ends with the uninterrupted run's weights."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from dinov2.train import checkpoint, schema
from dinov2.train.trainer import train
from slurm.status import queue
from tests import tiny
from tests.ranks import run_ranks
from tests.slurm.cluster import Cluster, descendants, wait

pytestmark = pytest.mark.slurm
STEPS = 120
FEW = "train.steps=6"


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    raw = tiny.raw_config("simclr", tiny.shards(folder / "shards"), steps=STEPS, save_every=7)
    raw["data"] |= {"batch_size": 12, "workers": 1}
    return tiny.write_config(folder / "tiny.yaml", raw)


def command(config: Path, run: Path, *more: str) -> list[str]:
    layout = ["--nodes=2", "--tasks-per-node=2", "--time=60"]
    return ["train", *layout, *more, f"--config-file={config}", f"--output-dir={run}"]


def submit(cluster: Cluster, config: Path, run: Path, *more: str) -> str:
    """The job's number."""
    return cluster.submit(*command(config, run, *more)).partition("job ")[2].partition(";")[0]


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def complete(run: Path) -> bool:
    return (run / "model_final.safetensors").exists()


def logs(run: Path) -> str:
    return "\n".join(p.read_text(errors="replace") for p in sorted((run / "slurm").glob("*log*")))


def finish(cluster: Cluster, run: Path, job: str, seconds: float = 400.0) -> None:
    try:
        wait(lambda: complete(run) and cluster.ended(job), "the run did not end", seconds)
    except TimeoutError as error:
        raise AssertionError(logs(run)[-9000:] + cluster.run("scontrol", "show", "job", job, check=False)) from error


@pytest.fixture(scope="session")
def uninterrupted(cluster, config, tmp_path_factory) -> dict[str, torch.Tensor]:
    run = tmp_path_factory.mktemp("uninterrupted") / "whole"
    finish(cluster, run, submit(cluster, config, run))
    return weights(run)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.latest(run), "objective.")


def assert_same(run: Path, expected: dict[str, torch.Tensor]) -> None:
    found = weights(run)
    assert found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())
    assert steps(run) == STEPS


def underway(run: Path, beyond: int = 2) -> int:
    """Wait until a run has got beyond a step; where it is."""
    wait(lambda: steps(run) > beyond, f"no step beyond {beyond}: {logs(run)}")
    return steps(run)


def alone(config: str, run: str, steps: str) -> dict[str, torch.Tensor]:
    train(schema.load(Path(config), [steps]), Path(run))
    return weights(Path(run))


def test_two_nodes_train_as_two_local_ranks_do(cluster, config, tmp_path):
    run = tmp_path / "pair"
    job = submit(cluster, config, run, "--tasks-per-node=1", FEW)
    finish(cluster, run, job)
    expected = run_ranks(alone, 2, str(config), str(tmp_path / "local"), FEW)[0]
    assert all(torch.equal(weights(run)[k], v) for k, v in expected.items())
    assert "JobName=pair" in cluster.run("scontrol", "show", "job", job)
    assert "done" in cluster.submit("status", str(tmp_path))


@pytest.mark.slow
def test_a_warning_saves_and_queues_the_job_again(cluster, config, uninterrupted, tmp_path):
    run = tmp_path / "warned"
    job = submit(cluster, config, run)
    underway(run)
    cluster.run("scancel", "--signal=USR2", job)
    finish(cluster, run, job)
    assert_same(run, uninterrupted)
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", job)
    assert "SIGUSR2: saved after step" in logs(run) and "Traceback" not in logs(run)


@pytest.mark.slow
def test_a_killed_task_is_a_failed_job_which_the_same_command_continues(
    cluster, config, uninterrupted, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    run = tmp_path / "named"
    job = submit(cluster, config, run)
    underway(run)
    assert queue(job) == {job: "running"}
    os.kill(tasks(run)[-1], signal.SIGKILL)
    wait(lambda: cluster.ended(job), "the job did not end")
    line = next(line for line in cluster.submit("status", str(tmp_path)).splitlines() if line.startswith(" named"))
    assert "failed" in line and "rror" in line, line
    finish(cluster, run, submit(cluster, config, run))  # the same command goes on
    assert_same(run, uninterrupted)
    assert "done" in cluster.submit("status", str(tmp_path))


def tasks(run: Path) -> list[int]:
    """The processes of a run's ranks on this machine, without srun and their loader processes."""
    found = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    mine = [pid for pid in found if f"{run}/slurm" in cmdline(pid) and not cmdline(pid).startswith("srun")]
    loaders = {below for pid in mine for below in descendants(pid)}
    return [pid for pid in mine if pid not in loaders and "python" in cmdline(pid).split("\0")[0]]


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_requeued_from_outside(cluster, config, uninterrupted, tmp_path):
    run = tmp_path / "requeued"
    job = submit(cluster, config, run)
    underway(run)
    cluster.run("scontrol", "requeue", job)
    finish(cluster, run, job)
    assert_same(run, uninterrupted)
    assert "SIGTERM: saved after step" in logs(run)


@pytest.mark.slow
def test_cancelled_and_submitted_anew(cluster, config, uninterrupted, tmp_path):
    run = tmp_path / "cancelled"
    job = submit(cluster, config, run)
    underway(run)
    cluster.run("scancel", job)
    wait(lambda: cluster.ended(job), "the job did not end")
    assert not complete(run)
    finish(cluster, run, submit(cluster, config, run))
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_preempted_where_that_means_cancelled(cluster, config, uninterrupted, tmp_path):
    run = tmp_path / "preempted"
    job = submit(cluster, config, run, "--resubmit")
    underway(run)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"]
    cluster.run(*urgent)
    wait(lambda: cluster.ended(job), "the job was not preempted")
    wait(lambda: len(list((run / "slurm").glob("*_submission.sh"))) == 2, f"not submitted again: {logs(run)}")
    wait(lambda: complete(run), f"the second job did not end: {logs(run)}")
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_a_time_limit(cluster, config, tmp_path):
    """SLURM's limits are whole minutes, and its warning comes up to one minute early."""
    run, many = tmp_path / "limited", "train.steps=2000"
    job = submit(cluster, config, run, "--tasks-per-node=1", "--time=2", "--signal-delay=30", many)
    finish(cluster, run, job, 1500.0)
    expected = run_ranks(alone, 2, str(config), str(tmp_path / "local"), many, timeout=500)[0]
    assert all(torch.equal(weights(run)[k], v) for k, v in expected.items())
    assert "SIGUSR2: saved after step" in logs(run)


@pytest.mark.slow
def test_a_node_that_dies(cluster, config, uninterrupted, tmp_path):
    run = tmp_path / "died"
    job = submit(cluster, config, run)
    underway(run)
    cluster.kill_node("n2")
    wait(lambda: "Restarts=1" in cluster.run("scontrol", "show", "job", job), "the job was not queued again")
    cluster.start_node("n2")
    finish(cluster, run, job)
    assert_same(run, uninterrupted)
