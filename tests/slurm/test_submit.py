"""What a submission says and refuses, without a cluster and on one; and the local executor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dinov2.train import checkpoint
from slurm import jobs
from tests import tiny
from tests.slurm.cluster import ROOT, wait


def submit(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "slurm" / "submit.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def refusal(*words: str, **environment: str) -> str:
    done = submit(*words, **environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture
def config(tmp_path) -> Path:
    raw = tiny.raw_config("simclr", tiny.shards(tmp_path / "shards"))
    return tiny.write_config(tmp_path / "tiny.yaml", raw)


def test_the_script_can_be_read_without_a_cluster(config, tmp_path):
    words = ["--nodes=3", "--gpus-per-node=2", "--partition=gpu", "--time=90", "--sbatch=account=abc", "--dry-run"]
    run = ["--config-file", str(config), "--output-dir", str(tmp_path / "big run")]
    script = submit("train", *words, *run, PATH="/usr/bin:/bin").stdout
    for line in ("nodes=3", "ntasks-per-node=2", "gpus-per-node=2", "partition=gpu", "time=90", "account=abc"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --signal=USR2@120" in script and "#SBATCH --requeue" in script
    assert "'big run'" in script and "--kill-on-bad-exit=1" in script
    assert not (tmp_path / "big run").exists()


def test_mistakes_are_found_before_anything_waits_in_a_queue(config, tmp_path):
    run = ["--config-file", str(config), "--output-dir", str(tmp_path / "run")]
    assert "sbatch is not on this machine" in refusal("train", *run, PATH=str(tmp_path))
    assert "are 5 ranks, which must divide data.lanes 3072" in refusal("train", "--nodes=5", *run)
    assert "matches no file" in refusal("prep", "terramesh", "--src", str(tmp_path / "no*"), "--out", str(tmp_path))
    assert "'account' is not KEY=VALUE" in refusal("train", "--sbatch=account", *run)
    assert "argument --nodes: 0 is less than 1" in refusal("train", "--nodes=0", *run)
    assert "give them to train.py itself" in refusal("train", "--dry-run", *run, "--export", str(tmp_path / "e"))
    for region in "ab":
        (tmp_path / region / "S2").mkdir(parents=True)
    assert "matches several 'S2'" in refusal(
        "prep", "folder", "--src", str(tmp_path / "*" / "S2"), "--out", str(tmp_path)
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.slurm
def test_what_sbatch_refuses_is_one_sentence(cluster, config, tmp_path):
    run = ["--config-file", str(config), "--output-dir", str(tmp_path / "run")]
    assert "Invalid partition" in cluster.submit("train", "--partition=nowhere", *run, code=2).splitlines()[-1]
    assert "sbatch refused" in cluster.submit("train", "--gpus-per-node=1", *run, code=2).splitlines()[-1]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_the_cluster_cannot_start_says_why_it_waits(cluster, config, tmp_path):
    said = cluster.submit("train", "--nodes=3", "--config-file", str(config), "--output-dir", str(tmp_path / "run"))
    try:  # a site may enlarge its partition: SLURM takes the job
        wait(lambda: "pending Partition" in cluster.submit("status", str(tmp_path)), "no reason is listed", 60)
    finally:
        cluster.run("scancel", said.partition("job ")[2].partition(";")[0])


@pytest.mark.slow
def test_local_jobs_run_and_fail_as_the_commands_do(config, tmp_path):
    run = ["--config-file", str(config), "--output-dir", str(tmp_path / "run")]
    done = submit("train", "--local", "--tasks-per-node=2", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkpoint.latest(tmp_path / "run") and (tmp_path / "run" / "model_final.safetensors").exists()
    listing = submit("status", str(tmp_path)).stdout
    assert "done" in listing and " 6 " in listing
    again = submit(
        "train", "--local", "--gpus-per-node=3", "--tasks-per-node=1", *run[:2], "--output-dir", str(tmp_path / "other")
    )
    assert again.returncode == 1
    assert "3 GPUs were asked for" in submit("status", str(tmp_path)).stdout


def test_an_address_that_no_name_service_knows(monkeypatch, tmp_path):
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "NodeName=$4 Arch=x86_64 NodeAddr=10.1.2.3 Port=1"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert jobs.address("n17.invalid") == "10.1.2.3"
    assert jobs.address("127.0.0.1") == "127.0.0.1"
