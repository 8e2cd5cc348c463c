"""What a run leaves behind and shows: metrics.jsonl, environment.txt, lines or a progress bar on the terminal."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dinov2 import distributed
from dinov2.files import write_atomic

METRICS, RANKS = "metrics.jsonl", "ranks.jsonl"
PACKAGES = ("eo-ssl", "torch", "numpy", "omegaconf", "fvcore", "webdataset", "rasterio", "h5py", "xformers")


def versions() -> list[str]:
    """Everything that can change a number and must be the same on all nodes: ``name version``."""
    lines = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package} not installed")
    root = Path(__file__).resolve().parents[2]
    git = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return [*lines, f"commit {git.stdout.strip() or 'unknown'}"]


def environment() -> str:
    """The versions of this run and its rank 0's platform."""
    return "\n".join([*versions(), platform.platform()]) + "\n"


def keep_until(path: Path, step: int, again: bool) -> None:
    """Drop what :class:`Log` says from a file of JSON lines, and a last line that is half written."""
    if not path.exists():
        return
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        read = [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged (not a JSON object per line): mend it or move it away") from error
    evaluated = [again and x["step"] == step and any(key.startswith("eval/") for key in x) for x in read]
    kept = [line for line, x, drop in zip(whole, read, evaluated, strict=True) if x["step"] <= step and not drop]
    write_atomic(path, "".join(kept))


class Log:
    """Scalars of a run. Only rank 0 writes.

    Lines after ``resumed_step`` (of a killed run) are dropped, and its evaluation where it is made ``again``.
    """

    def __init__(self, folder: Path, total: int, resumed_step: int, track: Sequence[str], again: bool = False) -> None:
        self.silent = distributed.rank() != 0
        self.folder, self.total, self.trackers = folder, total, []
        if self.silent:
            return
        for name in (METRICS, RANKS):
            keep_until(folder / name, resumed_step, again)
        self.file = open(folder / METRICS, "a", buffering=1)  # noqa: SIM115 (held for the run's lifetime)
        self.trackers = [TRACKERS[name](folder) for name in track]
        self.console = Console(highlight=False)
        self.bar = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("pretraining", total=total, completed=resumed_step)
            self.bar.start()

    def say(self, text: str) -> None:
        """One line for the reader."""
        if not self.silent:
            self.console.print(text, markup=False, soft_wrap=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of scalars to metrics.jsonl and to every tracker."""
        if self.silent:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker(step, values)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self.bar:
            self.bar.update(
                self.task, completed=step, description=f"loss {values['loss']:.4f}" if "loss" in values else ""
            )
        else:
            self.say(f"step {step}/{self.total}  {shown}")

    def write_ranks(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """Append numbers of every rank to ranks.jsonl."""
        if not self.silent:
            line = {"step": step} | {k: [round(v, 4) for v in numbers] for k, numbers in values.items()}
            with open(self.folder / RANKS, "a") as file:
                file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Flush and stop the progress bar."""
        if not self.silent:
            self.file.close()
            if self.bar:
                self.bar.stop()


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard is to be written, but not installed: pip install 'eo-ssl[track]'") from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # what a process has not flushed is lost with it

    return write


def _wandb(folder: Path):
    try:
        import wandb
    except ImportError as error:
        raise ValueError("train.track names wandb: pip install 'eo-ssl[track]'") from error
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "eo-ssl"), dir=str(folder), name=folder.name, resume="allow"
    )
    return lambda step, values: run.log(dict(values), step=step)


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
