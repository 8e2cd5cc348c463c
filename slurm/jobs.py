"""What runs inside a job: the local commands, as functions that submitit pickles.

A pickle holds what a job was asked for and never its progress: that is on disk, so a job that was requeued from
outside, or submitted anew, goes on where the last checkpoint (row, shard) is.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
import torch
from submitit.core.utils import DelayedSubmission

from dinov2 import distributed
from eval.engine import Bench, Cell, collect, run
from eval.results import write_tables

ROOT = Path(__file__).resolve().parents[1]
FIRST_PORT, PORTS = 10_000, 20_000  # below those that systems hand out themselves


class Job:
    """A function without arguments, which submitit's own handler of SIGUSR2 (the end is near) queues again as it is."""

    def __call__(self) -> None:
        """Do the work; an exception fails the job."""
        raise NotImplementedError

    def checkpoint(self) -> DelayedSubmission:
        """What to run next time."""
        return DelayedSubmission(self)


@dataclass(frozen=True)
class Train(Job):
    """``train.py argv`` as one rank of a job.

    ``gpus``: that a node must have; ``interface``: the network interface to use; ``again``: the submission's own
    arguments where preempted jobs are cancelled (PreemptMode=CANCEL) and must be submitted anew, else empty.
    """

    argv: Sequence[str]
    gpus: int = 0
    interface: str | None = None
    again: Sequence[str] = ()

    def __call__(self) -> None:
        """See the class."""
        job = submitit.JobEnvironment()
        join(job, self.interface)
        if torch.cuda.device_count() < self.gpus:
            raise ValueError(
                f"{self.gpus} GPUs were asked for on {job.hostname}, which has {torch.cuda.device_count()}"
            )
        from dinov2.train.interrupt import Interrupted
        from train import pretrain

        try:
            pretrain(list(self.argv))
        except Interrupted as stop:
            if stop.signal == signal.SIGUSR2:
                if job.global_rank == 0:
                    print(stop, flush=True)
                    job._requeue(0)  # `scontrol requeue`, or its equal in the local executor
                sys.exit(0)  # without a result: the job is not over
            if self.again and job.global_rank == 0 and preempted(job.job_id):
                submit_again(self.again)
            raise


@dataclass(frozen=True)
class Prepare(Job):
    """``data_prep/main.py argv``; shards that are complete are kept when it runs again."""

    argv: Sequence[str]

    def __call__(self) -> None:
        """See the class."""
        from data_prep.main import main

        main(list(self.argv))


@dataclass(frozen=True)
class Evaluate(Job):
    """Cells of an evaluation that share features; those that are done are kept when it runs again."""

    cells: Sequence[Cell]
    test_only: bool = False

    def __call__(self) -> None:
        """See the class."""
        run(self.cells, Bench(distributed.device()), test_only=self.test_only)
        raise_failures(self.cells)


@dataclass(frozen=True)
class Tabulate(Job):
    """The tables of an evaluation whose ``cells`` other jobs have done, or have died of."""

    cells: Sequence[Cell]
    output: Path

    def __call__(self) -> None:
        """See the class."""
        for cell in self.cells:
            if not (cell.file.path.is_file() or cell.file.error.is_file()):
                cell.file.fail("the job that evaluated it died; its log says why\n")
        write_tables(collect(self.cells)[0], self.output)
        raise_failures(self.cells)


def raise_failures(cells: Sequence[Cell]) -> None:
    """RuntimeError that names the cells without a row."""
    failed = collect(cells)[1]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}")


def join(job: submitit.JobEnvironment, interface: str | None) -> None:
    """Set the variables by which the ranks of ``job`` find each other."""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))  # the last attempt's port may not be free yet
    number = int(re.sub(r"\D", "", job.job_id)) + restarts
    os.environ.update(
        RANK=str(job.global_rank),
        WORLD_SIZE=str(job.num_tasks),
        LOCAL_RANK=str(job.local_rank),
        LOCAL_WORLD_SIZE=str(job.num_tasks // job.num_nodes),
        MASTER_ADDR=address(job.hostnames[0]) if job.num_nodes > 1 else "127.0.0.1",
        MASTER_PORT=str(FIRST_PORT + number % PORTS),
    )
    if interface:
        os.environ.update(GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface)


def address(node: str) -> str:
    """The address of a node; where no name service knows it, the one that SLURM uses. Neither: ValueError."""
    try:
        return socket.gethostbyname(node)
    except OSError:
        known = re.search(r"NodeAddr=(\S+)", scontrol("show", "node", node))
        if known is None or known[1] == node:
            raise ValueError(f"node {node} has no address: neither the name service nor SLURM knows one") from None
        return known[1]


def preempted(job_id: str) -> bool:
    """Whether SLURM has preempted the job: a SIGTERM may also be somebody's scancel."""
    since = re.search(r"PreemptTime=(\S+)", scontrol("show", "job", job_id))
    return since is not None and since[1] != "None"


def submit_again(argv: Sequence[str]) -> None:
    """Run ``slurm/submit.py argv`` from within a job, without the job's own variables."""
    clean = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM_", "SUBMITIT_"))}
    subprocess.run([sys.executable, str(ROOT / "slurm" / "submit.py"), *argv], check=True, env=clean)


def scontrol(*words: str) -> str:
    """The output of ``scontrol``, one line per object; empty where it knows nothing."""
    return subprocess.run(["scontrol", "-o", *words], capture_output=True, text=True).stdout
