"""A SLURM cluster of two nodes on this machine, from Debian's packages; everything it writes is in one folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")

# Debian's slurmd is built for several nodes per machine. A requeued job waits for cred_expire, by default two minutes
# and at least 5 s.
CONF = """\
ClusterName=mini
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
GresTypes=gpu
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=200000,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
SwitchType=switch/none
JobRequeue=1
KillWait=20
MinJobAge=600
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=10
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=8 CoresPerSocket=8 \
RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def why_not() -> str | None:
    """Why there can be no cluster here, None where there can."""
    absent = [name for name in BINARIES if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.getuid() == 0 else "the cluster's daemons need root"


def free_ports() -> list[int]:
    """Three free ports, the last two side by side."""
    while True:
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            a.bind(("127.0.0.1", 0))
            b.bind(("127.0.0.1", 0))
            try:
                c.bind(("127.0.0.1", b.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue
            return [s.getsockname()[1] for s in (a, b, c)]


def wait(condition: Callable[[], object], what: str, seconds: float = 400.0) -> None:
    """Until ``condition``; TimeoutError says what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {seconds:g} s")
        time.sleep(0.1)


class Cluster:
    """Nodes n1 and n2 of eight processors each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def start(self) -> None:
        """Bring the daemons up and wait for both nodes."""
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, ports=free_ports()))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.run("munged", "--force", *(f"--{option}={self.folder}/munge.{end}" for option, end in places.items()))
        self.run("slurmctld")
        for node in ("n1", "n2"):
            self.start_node(node)
        wait(lambda: self.run("sinfo", "-hN", "-o", "%T").split() == ["idle"] * 4, "both nodes are not idle", 60)

    def start_node(self, node: str) -> None:
        """Start the node's daemon."""
        self.run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """As a power cut does it: daemon, steps and tasks of a node."""
        daemon = int((self.folder / f"slurmd-{node}.pid").read_text())
        steps = [pid for pid in stepds() if any(f"SLURMD_NODENAME={node}" in environ(p) for p in descendants(pid))]
        for pid in [daemon, *(below for step in steps for below in [step, *descendants(step)])]:
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End all jobs, then the daemons; what does not end by itself is killed."""
        self.run("scancel", "--user=root", check=False)
        for step in stepds():
            if f"{self.folder}/slurm.conf" in environ(step):
                for pid in [*descendants(step), step]:
                    os.kill(pid, signal.SIGKILL)
        for name in ("slurmctld", "slurmd-n1", "slurmd-n2", "munge"):
            path = self.folder / f"{name}.pid"
            pid = int(path.read_text()) if path.exists() else None
            for number in (signal.SIGTERM, signal.SIGKILL):
                if pid and Path(f"/proc/{pid}").exists():
                    os.kill(pid, number)
                    gone(pid, within=10.0)

    def run(self, *words: str, check: bool = True) -> str:
        """Standard output of a command."""
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, timeout=60)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def submit(self, *words: str, code: int = 0) -> str:
        """``slurm/submit.py words``; what it says (its error, where it is to end with another ``code``)."""
        command = [sys.executable, str(ROOT / "slurm" / "submit.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def ended(self, job: str) -> bool:
        """Whether no task of a job is waiting or running."""
        return not self.run("squeue", "--noheader", "--array", "--format=%i", f"--job={job}", check=False).strip()


def gone(pid: int, within: float) -> None:
    """Wait until a process has ended, not longer than ``within`` seconds."""
    deadline = time.monotonic() + within
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def environ(pid: int) -> str:
    """The environment a process was started with; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def stepds() -> list[int]:
    """All processes that run a job's step on a node."""
    listed = subprocess.run(["ps", "-C", "slurmstepd", "-o", "pid="], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def descendants(pid: int) -> list[int]:
    """Processes below a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    parents = dict(map(int, line.split()) for line in listed)  # type: ignore[misc]
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [below for child in found for below in descendants(child)]
