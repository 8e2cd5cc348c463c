"""Run the local commands as jobs of a SLURM cluster; what follows the job's options is passed on to them.

    python slurm/submit.py train  --nodes 4 --gpus-per-node 8 --partition gpu --time 1440 \\
                                  --config-file configs/pretrain/X.yaml --output-dir runs/X [key=value ...]
    python slurm/submit.py eval   --gpus-per-node 1 --model-obj 'runs/A;runs/B' --config-obj configs/eval/folder
    python slurm/submit.py prep   --cpus-per-task 8 terramesh --src 'scenes/*' --out data/terramesh --chip 32
    python slurm/submit.py status [runs]

Training is one job that queues itself again at its time limit and when it is preempted, and goes on from its last
checkpoint; whatever ended it, the same command continues it. Evaluation is an array with a task per model and dataset
and a last job that writes the tables; preparation is an array with a task, and a shard set, per source file or folder
(data.shards takes several). See docs/cluster.md.
"""

from __future__ import annotations

import argparse
import glob
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import submitit  # noqa: E402
from submitit.core.utils import FailedJobError  # noqa: E402

import train  # noqa: E402
from dinov2 import cli, env  # noqa: E402
from dinov2.train import schema  # noqa: E402
from eval import main as evaluation  # noqa: E402
from slurm.jobs import Evaluate, Job, Prepare, Tabulate, Train  # noqa: E402
from slurm.status import LOGS, status  # noqa: E402

FOR_EVER = 10**6  # times that a job may queue itself again: it does so only after a step that it has saved


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        add_options(commands.add_parser(name, allow_abbrev=False, help=f"{name} as jobs"))
    listing = commands.add_parser("status", help="runs with their state, step, images/s and last error")
    listing.add_argument("folder", type=Path, nargs="?", default=ROOT / "runs", help="where to look (default: runs)")
    return p


def add_options(p: argparse.ArgumentParser) -> None:
    """Options of a job."""
    p.add_argument("--nodes", type=count, default=1)
    p.add_argument("--gpus-per-node", type=int, default=0)
    p.add_argument("--tasks-per-node", type=count, help="processes on a node (default: as many as its GPUs, or 1)")
    p.add_argument("--cpus-per-task", type=count, default=1, help="loader processes included (%(default)s)")
    p.add_argument("--partition")
    p.add_argument("--time", type=count, default=1440, help="limit in minutes, at which the job queues again (1440)")
    p.add_argument("--signal-delay", type=int, default=120, help="seconds before the limit to save in (%(default)s)")
    p.add_argument("--interface", help="network interface between nodes, such as ib0")
    p.add_argument("--at-once", type=count, default=256, help="tasks of an array that run together (%(default)s)")
    p.add_argument(
        "--sbatch", type=pair, action="append", default=[], metavar="KEY=VALUE", help="any further option of sbatch"
    )
    p.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell line before the job's command")
    p.add_argument("--resubmit", action="store_true", help="preempted jobs are cancelled here: submit them anew")
    p.add_argument("--dry-run", action="store_true", help="print the sbatch script, then stop")
    p.add_argument("--local", action="store_true", help="run on this machine, and wait (submitit's local executor)")


def count(text: str) -> int:
    """A number of at least 1 on the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` on the command line."""
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as account=abc")
    return key, value


def pretraining(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    """One job; all its tasks are ranks of the run."""
    options = train.parser().parse_args(rest)
    if options.export or options.print_config or options.ranks:
        raise ValueError("--export, --print-config and --ranks are no job's work: give them to train.py itself")
    cfg = schema.load(options.config_file, options.overrides)  # mistakes are found here, not after hours in a queue
    world = args.nodes * tasks(args)
    if cfg.data.lanes % world or cfg.data.batch_size % world:
        raise ValueError(
            f"{args.nodes} nodes of {tasks(args)} tasks are {world} ranks, which must divide data.lanes "
            f"{cfg.data.lanes} and data.batch_size {cfg.data.batch_size}: choose other numbers"
        )
    folder = train.run_folder(options).absolute()
    words = ["--config-file", str(options.config_file.absolute()), "--output-dir", str(folder), *options.overrides]
    return submit([Train(words, args.gpus_per_node, args.interface, argv if args.resubmit else ())], args, folder)


def evaluating(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    """An array with a task per group of cells that share features, and the job that waits for it."""
    options = evaluation.parser().parse_args(rest)
    _, _, cells, output = evaluation.planned(options)
    groups = [[cell for cell in cells if cell.group == group] for group in dict.fromkeys(c.group for c in cells)]
    return submit(
        [Evaluate(group, options.test_only) for group in groups], args, output.absolute(), Tabulate(cells, output)
    )


def preparing(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    """An array with a task per source."""
    p = argparse.ArgumentParser(prog="slurm/submit.py prep", allow_abbrev=False)
    p.add_argument("source")
    p.add_argument("--src", required=True, help="files or folders: a pattern in quotes")
    p.add_argument("--out", "--output-dir", "--output_dir", type=Path, required=True)
    own, more = p.parse_known_args(rest)
    sources = [Path(name).absolute() for name in sorted(glob.glob(env.expand(own.src)))]
    if not sources:
        raise ValueError(f"--src {own.src} matches no file or folder")
    twice = [name for name, times in Counter(src.stem for src in sources).items() if times > 1]
    if twice:
        raise ValueError(f"--src {own.src} matches several {twice[0]!r}, all of which would be written to one folder")
    out = own.out.absolute()
    jobs = [Prepare([own.source, "--src", str(src), "--out", str(out / src.stem), *more]) for src in sources]
    return submit(jobs, args, out)


def tasks(args: argparse.Namespace) -> int:
    """Processes on a node."""
    return args.tasks_per_node or args.gpus_per_node or 1


def executor(args: argparse.Namespace, folder: Path) -> submitit.SlurmExecutor | submitit.LocalExecutor:
    """Submitit's executor for jobs that are called like ``folder`` and log there."""
    if not (args.local or args.dry_run or shutil.which("sbatch")):
        raise ValueError("sbatch is not on this machine: submit from a node of the cluster, or run with --local")
    logs, setup = folder / LOGS, [f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH", *args.setup]
    if args.local:
        local = submitit.LocalExecutor(logs, max_num_timeout=FOR_EVER)
        counts = {"nodes": args.nodes, "tasks_per_node": tasks(args), "gpus_per_node": args.gpus_per_node}
        local.update_parameters(timeout_min=args.time, signal_delay_s=args.signal_delay, setup=setup, **counts)
        return local
    # a warning in the seconds before submitit listens would kill the task, which is then a failed job
    python = f"env --ignore-signal=USR2 {shlex.quote(sys.executable)}"
    cluster = SlurmScript(logs, max_num_timeout=FOR_EVER, python=python)
    cluster.update_parameters(
        job_name=folder.name,
        partition=args.partition,
        time=args.time,
        nodes=args.nodes,
        ntasks_per_node=tasks(args),
        gpus_per_node=args.gpus_per_node or None,
        cpus_per_task=args.cpus_per_task,
        signal_delay_s=args.signal_delay,
        array_parallelism=args.at_once,
        setup=setup,
        srun_args=["--kill-on-bad-exit=1"],  # ranks that are left would wait for the lost one
        additional_parameters={"requeue": True, **dict(args.sbatch)},
    )
    return cluster


class SlurmScript(submitit.SlurmExecutor):
    """Submitit's executor, whose scripts can be printed where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        """Submitit's question whether there is a SLURM, which :func:`executor` has answered."""
        return 2

    def script(self) -> str:
        """What sbatch would get."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def submit(jobs: Sequence[Job], args: argparse.Namespace, folder: Path, last: Job | None = None) -> int:
    """Submit ``jobs`` (several: an array), and ``last`` to run when they have ended; 1 where a local one failed."""
    here = executor(args, folder)
    if isinstance(here, SlurmScript) and args.dry_run:
        print(f"# {len(jobs)} of these" if len(jobs) > 1 else "# one of these", here.script(), sep="\n")
        return 0
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    try:
        submitted = here.submit_array(jobs) if len(jobs) > 1 else [here.submit(jobs[0])]
        if last is not None:
            follow(here, submitted)
            submitted.append(here.submit(last))
    except FailedJobError as error:  # sbatch's own sentence is the last line
        raise ValueError(f"sbatch refused the job: {str(error).strip().splitlines()[-1]}") from error
    print(
        f"{folder}: job {', '.join(dict.fromkeys(j.job_id.partition('_')[0] for j in submitted))}; "
        f"logs in {folder / LOGS}"
    )
    return 0 if not args.local else max(job.exception() is not None for job in submitted)


def follow(here: submitit.SlurmExecutor | submitit.LocalExecutor, jobs: Sequence[submitit.Job]) -> None:
    """What is submitted next runs once ``jobs`` have ended, however they did."""
    if isinstance(here, SlurmScript):
        here.update_parameters(dependency=f"afterany:{jobs[0].job_id.partition('_')[0]}", nodes=1, ntasks_per_node=1)
        return
    for job in jobs:
        job.wait()


COMMANDS = {"train": pretraining, "eval": evaluating, "prep": preparing}


def main(argv: list[str]) -> int:
    """Entry point."""
    args, rest = parser().parse_known_args(argv)
    env.load()
    if args.command == "status":
        status(args.folder)
        return 0
    return COMMANDS[args.command](args, rest, argv)


if __name__ == "__main__":
    cli.run(main)
