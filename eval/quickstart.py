"""The main job on a small procedural world: shards, pretraining, evaluation, report.

    make quickstart      (or: python eval/quickstart.py)

Each step is a command that can be typed as it is printed; what is done is not done again. Exit code 1 if the pretrained
encoder does not beat its floors by more than the intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

from rich.console import Console  # noqa: E402

from dinov2 import cli  # noqa: E402
from dinov2.env import ROOT  # noqa: E402
from dinov2.files import write_atomic  # noqa: E402
from eval.results import Row, to_json, verdicts  # noqa: E402

RUN = Path("runs/quickstart")
DATA = Path("data/quickstart")
SAMPLES = {"train": 6000, "val": 1000, "test": 2000}
PROCESSES = 2  # one thread each: two processes beat two threads
FIELDS = ("model", "role", "dataset", "task", "metric", "value", "ci_low", "ci_high", "n", "seed")


def commands() -> list[list[str]]:
    """The command lines of the main job, without the interpreter."""
    prepare = [
        ["data_prep/main.py", "sandbox", "--out", f"{DATA / split}", "--samples", str(count), "--split-name", split]
        + ["--workers", str(PROCESSES)]
        for split, count in SAMPLES.items()
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    train = ["train.py", "--config-file", "configs/pretrain/quickstart.yaml", "--output-dir", f"{RUN}"]
    roots = zip(("root", "val_root", "test_root"), SAMPLES, strict=True)
    models = f"{RUN};random:{RUN};pixelstats"
    evaluate = ["eval/main.py", "--model-obj", models, "--config-obj", "configs/eval/quickstart"]
    evaluate += ["--output-dir", f"{RUN / 'eval'}", *(f"dataset.{key}={DATA / split}" for key, split in roots)]
    return [*prepare, [*torchrun, *train], [*torchrun, *evaluate]]


def show(command: list[str]) -> str:
    """As a user would type it."""
    return "python " + " ".join(f'"{word}"' if ";" in word else word for word in command)


def main(argv: list[str]) -> int:
    """Run everything; 1 if a floor is not beaten."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    console, begin = Console(highlight=False, soft_wrap=True), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in commands():
        console.print(f"[{time.perf_counter() - begin:4.0f} s] {show(command)}", style="bold", markup=False)
        code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode
        if code:
            raise ValueError(f"{show(command)} ended with exit code {code}; the same command goes on where it stopped")
    rows: list[Row] = [json.loads(line) for line in (ROOT / RUN / "eval" / "results.jsonl").read_text().splitlines()]
    shutil.copyfile(ROOT / RUN / "eval" / "report.html", ROOT / RUN / "report.html")
    short = ",\n ".join(to_json({k: row[k] for k in FIELDS}) for row in rows)  # type: ignore[literal-required]
    write_atomic(ROOT / RUN / "results.json", f"[{short}]\n")
    lost = [verdict for verdict in verdicts(rows) if not verdict.wins]
    console.print(f"{time.perf_counter() - begin:.0f} s; report: {RUN / 'report.html'}, rows: {RUN / 'results.json'}")
    for verdict in lost:
        console.print(str(verdict), style="bold red", markup=False)
    return 1 if lost else 0


if __name__ == "__main__":
    cli.run(main)
