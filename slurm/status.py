"""``submit.py status``: what became of the jobs of every folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

LOGS = "slurm"  # the folder of logs and pickles inside a run, an evaluation or a folder of shard sets
ERROR = re.compile(  # the last line of a traceback (torch names the rank first), or what SLURM says of a step
    r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupted)\b.*|slurmstepd\S*: error: .*)", re.MULTILINE
)
DONE = "Job completed successfully"  # submitit's own words, in the log of every task


class State(NamedTuple):
    """One line of the listing; an array's states are counted."""

    folder: Path
    job: str
    state: str
    step: str
    speed: str
    error: str


def status(root: Path) -> None:
    """Print a table of all folders below ``root`` that jobs were submitted for; ValueError where there is none."""
    found = [state for logs in sorted(root.rglob(LOGS)) if (state := read(logs)) is not None]
    if not found:
        raise ValueError(f"{root}: nothing below this folder was submitted by slurm/submit.py")
    table = Table("run", "job", "state", "step", "images/s", Column("last error", overflow="fold"), box=None)
    for state in found:
        table.add_row(*map(escape, (str(state.folder.relative_to(root)), *state[1:])))
    Console(width=None if os.isatty(1) else 200).print(table, highlight=False)


def read(logs: Path) -> State | None:
    """The newest submission of a folder of logs, None where it holds none."""
    pickles = sorted(logs.glob("*_submitted.pkl"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    jobs = [p.name.removesuffix("_submitted.pkl") for p in pickles]
    if not jobs:
        return None
    newest = jobs[-1].partition("_")[0]
    mine = [job for job in jobs if job.partition("_")[0] == newest]
    running = queue(newest)
    states = Counter(running.get(job) or running.get(newest) or ended(logs, job) for job in mine)
    text = ", ".join(state if len(mine) == 1 else f"{count} {state}" for state, count in sorted(states.items()))
    step, speed = progress(logs.parent)
    return State(logs.parent, newest, text, step, speed, "" if states.keys() == {"done"} else last_error(logs))


def queue(job: str) -> dict[str, str]:
    """Job id -> state of the tasks of ``job`` that have not ended, says SLURM or, of local ones, this machine."""
    if Path(f"/proc/{job}/cmdline").exists() and b"submitit" in Path(f"/proc/{job}/cmdline").read_bytes():
        return {job: "running here"}
    if shutil.which("squeue") is None:
        return {}
    words = ["squeue", "--noheader", "--array", "--job", job, "--format", "%i %T %r"]
    lines = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()  # an ended job is an error
    known = {}
    for name, state, reason in (line.split(maxsplit=2) for line in lines):
        known[name] = state.lower() + (f" {reason}" if state == "PENDING" else "")
    return known


def ended(logs: Path, job: str) -> str:
    """How a job that is in no queue ended: every task says so in its log, or was killed."""
    texts = [path.read_text(errors="replace") for path in logs.glob(f"{job}_*_log.out")]
    return "done" if texts and all(DONE in text.rpartition("Starting with")[2] for text in texts) else "failed"


def last_error(logs: Path) -> str:
    """The last line of the newest log that names an error."""
    for path in sorted(logs.glob("*_log.err"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if found := ERROR.findall(path.read_text(errors="replace")):
            return found[-1]
    return ""


def progress(folder: Path) -> tuple[str, str]:
    """Step and images per second of a training run; empty for anything else."""
    path = folder / "metrics.jsonl"
    text = path.read_text().rpartition("\n")[0] if path.exists() else ""  # the last line may be half written
    lines = [json.loads(line) for line in text.splitlines()]
    speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
    return str(lines[-1]["step"]) if lines else "", f"{speeds[-1]:.0f}" if speeds else ""
