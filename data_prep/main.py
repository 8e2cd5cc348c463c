"""Prepare shard sets: one subcommand per source, and ``verify`` and ``stats`` for what is there.

python data_prep/main.py sandbox --out data/sandbox --samples 4000 --workers 2
python data_prep/main.py folder --src tiles/ --sensor enmap --out data/enmap --chip 32
python data_prep/main.py terramesh --src terramesh/ --out data/terramesh --chip 32
python data_prep/main.py timeseries --roi roi.geojson --s2-start 2021-01-01 --s2-end 2021-12-31 --out tiles/
python data_prep/main.py verify data/sandbox
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data_prep import common, drift, refine  # noqa: E402
from dinov2.cli import run  # noqa: E402
from dinov2.data.shards import ShardSet, verify  # noqa: E402
from dinov2.data.stats import Stats  # noqa: E402

# modules of this package, each imported for its command only: some take seconds
SOURCES = (
    "sandbox",
    "folder",
    "band_files",
    "fmow",
    "fmow_sentinel",
    "majortom",
    "mmearth",
    "satlas",
    "spectral_earth",
    "ssl4eo",
    "terramesh",
    "pixels",
    "worldcereal",
)
TOOLS = {"timeseries": "timeseries.command", "fetch": "fetch", "split": "split", "leakage": "leakage"}
CHECKS = {"verify": "check every byte of a shard set", "stats": "statistics per sensor and band"}


def module_of(command: str) -> ModuleType:
    """The module of a source or tool."""
    return import_module(f"data_prep.{TOOLS.get(command, command)}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="data_prep/main.py", description=__doc__, **form)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*SOURCES, *TOOLS, *CHECKS):
        if name not in arguments[:1]:
            commands.add_parser(name, help=CHECKS.get(name))
        elif name in CHECKS:
            text = f"{CHECKS[name]}; example: python data_prep/main.py {name} data/sandbox"
            add_check(commands.add_parser(name, description=text))
        else:
            module = module_of(name)
            command = commands.add_parser(name, description=module.__doc__, **form)
            module.add_arguments(command)
            if name in SOURCES:
                add_writing(command)
    return parser.parse_args(arguments)


def add_writing(command: argparse.ArgumentParser) -> None:
    """Options of every source: the shard set that it writes."""
    add = command.add_argument
    add("--out", "--output-dir", "--output_dir", type=Path, required=True, help="folder of the shard set")
    add("--samples-per-shard", type=int, default=256, help="(%(default)s)")
    add("--compression", choices=["zstd"], help="of the arrays (none)")
    add("--workers", type=int, default=1, help="processes (%(default)s); the bytes do not depend on it")
    add(
        "--part",
        type=part,
        default=(0, 1),
        metavar="I/N",
        help="of a job array: every N-th shard from the I-th on, from 0; the index is written by who ends last",
    )
    add("--max-refused", type=float, default=0.0, help="share of damaged items to go on with (0)")


def add_check(command: argparse.ArgumentParser) -> None:
    """Options of ``verify`` and ``stats``."""
    command.add_argument("sets", nargs="+", help="folders or URLs of shard sets")
    if command.prog.endswith("verify"):
        command.add_argument("--reference", help="another set of these sensors, to which statistics are compared")
        command.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")


def part(text: str) -> tuple[int, int]:
    """``I/N`` as (I, N); ValueError unless 0 <= I < N."""
    index, _, count = text.partition("/")
    if not 0 <= int(index) < int(count):
        raise ValueError(text)
    return int(index), int(count)


def prepare(args: argparse.Namespace) -> str:
    """Run a source; the summary as a sentence."""
    if args.samples_per_shard < 1:
        raise ValueError(f"--samples-per-shard {args.samples_per_shard} must be at least 1")
    plan, refined = module_of(args.command).plan(args), None
    if "label_raster" in args:
        refined = refine.Refine.of(args, plan.labels)
        labels = {**plan.labels, **{name: refine.map_info(path) for name, path in refined.rasters.items()}}
        plan = replace(plan, labels=labels, provenance={**plan.provenance, **refined.provenance()})
    shards, summary = common.write(
        plan,
        args.out,
        samples_per_shard=args.samples_per_shard,
        compression=args.compression,
        workers=args.workers,
        refine=refined,
        per_item=refined.per_item(plan) if refined else 1,
        part=args.part,
        max_refused=args.max_refused,
    )
    if shards is None:
        return f"{args.out}: shards of other parts are missing, so there is no index yet ({summary})"
    return f"{args.out}: {len(shards)} samples in {len(shards.counts)} shards ({summary})"


def stats_table(stats: Stats) -> Table:
    """One row per sensor and band."""
    table = Table(box=None, pad_edge=False)
    for column in ("sensor", "band", "unit", "valid pixels", "mean", "std", "min", "max"):
        table.add_column(column, no_wrap=True)
    for (sensor, band), s in stats.items():
        table.add_row(sensor, band, s.unit, f"{s.count:,}", *(f"{v:.4g}" for v in (s.mean, s.std, s.min, s.max)))
    return table


def checked(args: argparse.Namespace) -> tuple[list[str], str]:
    """What is wrong with the sets, and what was looked at."""
    report = verify(args.sets)
    problems = report.problems
    for path in [] if problems else args.sets:  # damaged bytes have no statistics
        problems += drift.own(path, args.workers)
        problems += drift.against(path, args.reference) if args.reference else []
    return problems, f"{report.samples} samples in {report.shards} shards: {len(problems) or 'no'} problems"


def main(arguments: list[str]) -> int:
    """Run one subcommand."""
    args, console = parse(arguments), Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)
    say = partial(console.print, markup=False, highlight=False)
    if args.command == "verify":
        problems, summary = checked(args)
        say("\n".join([*problems, summary]))
        return 2 if problems else 0
    if args.command == "leakage":
        shown, sentences = module_of("leakage").leakage(args)
        say("\n".join(sentences))
        return 2 if shown else 0
    if args.command == "timeseries":
        return int(module_of("timeseries").run(args))
    if args.command == "stats":
        console.print(stats_table(ShardSet.open(args.sets).stats))
    else:
        say(getattr(module_of(args.command), args.command)(args) if args.command in TOOLS else prepare(args))
    return 0


if __name__ == "__main__":
    run(main)
