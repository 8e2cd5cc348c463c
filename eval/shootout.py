"""Objectives side by side on the same shards, encoder and number of samples: trained, evaluated, one report.

    python eval/shootout.py --config-file configs/shootout/sandbox.yaml [--output-dir D] [--only NAME ...] [key=value]

``key=value`` override every pretraining config. What is done is not done again. Exit code 1 if a pretrained encoder
does not beat random weights in a linear probe by more than the intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

import numpy as np  # noqa: E402
from omegaconf import MISSING, OmegaConf  # noqa: E402
from rich.console import Console  # noqa: E402

from dinov2 import cli, config  # noqa: E402
from dinov2.env import ROOT, expand  # noqa: E402
from dinov2.files import write_atomic  # noqa: E402
from eval.quickstart import PROCESSES, show  # noqa: E402
from eval.report import read_metrics  # noqa: E402
from eval.results import Row, summarise, verdicts  # noqa: E402


@dataclass
class Shootout:
    """What is compared, and on what."""

    pretrain: dict[str, Any] = MISSING  # sections of a pretraining config that all runs share
    objectives: dict[str, Any] = MISSING  # name -> sections in which its runs differ
    seeds: list[int] = field(default_factory=lambda: [0])  # of pretraining: a run of every objective for each
    evaluations: list[str] = MISSING  # evaluation configs or folders
    overrides: list[str] = field(default_factory=list)  # key=value for all evaluations
    prepare: list[str] = field(default_factory=list)  # command lines that make the shards; $NAME of the environment


def load(path: Path) -> Shootout:
    """Read and check a YAML file; ``base`` in it names the file (from the project's root) that it differs from."""
    layers = [config.read_yaml(path)]
    while base := layers[0].pop("base", None):
        layers.insert(0, config.read_yaml(ROOT / base))
    return Shootout(**config.plain(config.merge(Shootout, *layers, origin=str(path))))


def runs(shootout: Shootout, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> dict[str, dict[str, Any]]:
    """Run name -> its pretraining config; ``only`` these objectives, and these ``seeds`` instead of the config's."""
    unknown = [name for name in only if name not in shootout.objectives]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: the config compares {', '.join(shootout.objectives)}")
    found, seeds = {}, seeds or shootout.seeds
    for name in only or shootout.objectives:
        for seed in seeds:
            own = {"objective": {"name": name}, "train": {"seed": seed}}
            merged = OmegaConf.merge(shootout.pretrain, shootout.objectives[name] or {}, own)
            found[name if len(seeds) == 1 else f"{name}-{seed}"] = config.plain(merged)
    return found


def commands(
    shootout: Shootout, output: Path, configs: Mapping[str, dict[str, Any]], overrides: Sequence[str]
) -> list[list[str]]:
    """The command lines, without the interpreter; the runs' configs are written to ``output``."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    training, folders = [], []
    for name, raw in configs.items():
        file = output / "configs" / f"{name}.yaml"
        write_atomic(file, OmegaConf.to_yaml(OmegaConf.create(raw)))
        folders.append(output / name)
        training.append(
            [*torchrun, "train.py", "--config-file", f"{file}", "--output-dir", f"{folders[-1]}", *overrides]
        )
    models = ";".join([*map(str, folders), f"random:{folders[0]}", "pixelstats"])
    evaluate = ["eval/main.py", "--model-obj", models, "--config-obj", ";".join(shootout.evaluations)]
    evaluate += ["--output-dir", f"{output / 'eval'}", *shootout.overrides]
    prepare = [[expand(word) for word in shlex.split(line)] for line in shootout.prepare]
    return [*prepare, *training, [*torchrun, *evaluate]]


def table(output: Path, names: Sequence[str], rows: Sequence[Row]) -> str:
    """Markdown: accuracies with their intervals, and what each run cost and how its embedding fared."""
    lines, tasks = summarise(rows), list(dict.fromkeys(row["config"] for row in rows))
    head = ["model", *(f"{task} [95 % CI]" for task in tasks), "images/s", "memory MiB", "std", "effective rank"]
    out = [head, ["---"] * len(head)]
    for model in dict.fromkeys(line.model for line in lines):
        scores = [str(x) for task in tasks for x in lines if (x.config, x.model) == (task, model)]
        cost = [""] * 4
        if model in names:
            curves = {key: values for key, (_, values) in read_metrics(output / model).items()}
            speed, rank = np.median(curves["images_per_s"]), curves["health/rank"][-1]
            cost = [
                f"{speed:.0f}",
                f"{max(curves['memory_mib']):.0f}",
                f"{curves['health/std'][-1]:.2f}",
                f"{rank:.1f}",
            ]
        out.append([model, *scores, *cost])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in out)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config-file", type=Path, required=True, help="YAML file: what is compared, and on what")
    p.add_argument("--output-dir", "--output_dir", type=Path, help="runs and report (default: runs/shootout_<config>)")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these objectives only")
    p.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="of pretraining, not the config's")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="options that override every pretraining config")
    return p


def main(argv: list[str]) -> int:
    """Run everything; 1 if random weights are not beaten."""
    args = parser().parse_intermixed_args(argv)
    shootout = load(args.config_file)
    output = args.output_dir or Path("runs") / f"shootout_{args.config_file.stem}"
    console, begin = Console(highlight=False, soft_wrap=True), time.perf_counter()
    configs = runs(shootout, args.only, args.seeds)
    for command in commands(shootout, output, configs, args.overrides):
        console.print(f"[{time.perf_counter() - begin:4.0f} s] {show(command)}", style="bold", markup=False)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode
        if code:
            raise ValueError(f"{show(command)} ended with exit code {code}; the same command goes on where it stopped")
    rows: list[Row] = [json.loads(line) for line in (output / "eval" / "results.jsonl").read_text().splitlines()]
    text = table(output, list(configs), rows)
    write_atomic(output / "shootout.md", text)
    console.print(text, markup=False)
    console.print(f"{time.perf_counter() - begin:.0f} s; report: {output / 'eval' / 'report.html'}")
    linear = {row["config"] for row in rows if row["task"] == "linear"}
    judged = [v for v in verdicts(rows) if v.config in linear and v.floor.startswith("random:")]
    for verdict in judged:
        console.print(str(verdict), style="green" if verdict.wins else "bold red", markup=False)
    return 0 if all(verdict.wins for verdict in judged) else 1


if __name__ == "__main__":
    cli.run(main)
