"""Pretrain an encoder.

    torchrun --nproc_per_node=2 train.py --config-file configs/pretrain/quick_check.yaml [key=value ...]

Runs with or without torchrun. A run folder that holds checkpoints of the same configuration is resumed. A mistake in
the input is one sentence and exit code 2; under torchrun every rank prints it and torchrun exits with 1.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[0] = str(ROOT)

from omegaconf import OmegaConf  # noqa: E402

from dinov2 import cli, distributed, env  # noqa: E402
from dinov2.train.interrupt import Interrupted  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config-file", type=Path, required=True, help="YAML file with differences from the defaults")
    p.add_argument("--output-dir", "--output_dir", type=Path, help="run folder (default: runs/<config's name>)")
    p.add_argument("--dry-run", action="store_true", help="print parameters, memory, steps, bytes and time, then stop")
    p.add_argument("--print-config", action="store_true", help="print the resolved configuration, then stop")
    p.add_argument("--ranks", type=int, help="dry run: what so many GPUs would take, from the sets' indexes alone")
    p.add_argument("--export", type=Path, metavar="FILE", help="write the newest checkpoint's encoder, then stop")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="options that override the file")
    return p


def run_folder(args: argparse.Namespace) -> Path:
    """Where a run lives."""
    return args.output_dir or Path(os.environ.get("ODIR") or ROOT / "runs") / args.config_file.stem


def main(argv: list[str]) -> int:
    """Entry point; 128 + its number where a signal stopped the run, as a shell has it."""
    try:
        pretrain(argv)
    except Interrupted as stop:
        distributed.say(str(stop))
        return 128 + stop.signal
    return 0


def pretrain(argv: list[str]) -> None:
    """Everything that the command line asks for; see :func:`dinov2.train.trainer.train`."""
    args = parser().parse_args(argv)
    env.load()
    from dinov2.train import schema  # after env.load: configs may name environment variables

    cfg = schema.load(args.config_file, args.overrides)
    if args.print_config:
        print(OmegaConf.to_yaml(cfg), end="")
        return
    folder = run_folder(args)
    if args.ranks is not None and not (args.dry_run and args.ranks > 0):
        raise ValueError(f"--ranks {args.ranks}: a number of GPUs, at least 1, that --dry-run plans for")
    if args.export:
        export_newest(folder, args.export)
        return
    if args.dry_run and args.ranks:
        from dinov2.train.plan import print_plan

        print_plan(cfg, args.ranks)
        return
    evaluate = online_evaluation(cfg)
    distributed.init(datetime.timedelta(minutes=cfg.train.timeout_min))
    try:
        if args.dry_run:
            from dinov2.train.dry_run import dry_run

            dry_run(cfg)
            return
        from dinov2.train.trainer import train

        train(cfg, folder, evaluate)
    finally:
        distributed.teardown()


def export_newest(folder: Path, path: Path) -> None:
    """Write the encoder of a run's newest checkpoint to ``path``."""
    from dinov2.train import checkpoint
    from dinov2.train.export import export_checkpoint

    newest = checkpoint.latest(folder)
    if newest is None:
        raise ValueError(f"{folder} holds no checkpoint to export")
    export_checkpoint(newest, path)
    print(f"{path}: the encoder of {newest}")


def online_evaluation(cfg):
    """The evaluation engine as a callable for the trainer, None where the configuration asks for none.

    ValueError where an evaluation config cannot be read: now, and not after hours of training.
    """
    if not cfg.train.evaluations:
        if cfg.train.evaluate_every:
            raise ValueError("train.evaluate_every: name configs in train.evaluations, or set it to 0")
        return None
    from eval import schema
    from eval.main import evaluate

    for config in cfg.train.evaluations:
        for path in schema.expand_configs(config):
            schema.load(path)

    def run(export: Path, step: int) -> dict[str, float]:
        rows = evaluate([str(export)], list(cfg.train.evaluations), export.parent)
        return {f"eval/{row['dataset']}/{row['task']}/{row['metric']}": row["value"] for row in rows}

    return run


if __name__ == "__main__":
    cli.run(main)
