"""Evaluate encoders, floors beside them: by kNN, by a linear probe, by a decoder on their feature maps.

    python eval/main.py --model-obj "runs/vit_small;random:runs/vit_small;pixelstats" \\
                        --config-obj configs/eval/quickstart dataset.root=data/sandbox

    python eval/main.py --list-models          # released encoders: what they expect and cost

Also under torchrun: the cells are divided over its ranks. Cells that are done are skipped on a re-run; a cell that
fails is recorded with its traceback, the rest goes on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.table import Column, Table  # noqa: E402

from dinov2 import cli, distributed, env  # noqa: E402
from eval import schema  # noqa: E402
from eval.costs import list_models  # noqa: E402
from eval.encoders import expand_models, home_of, load_model, name_of  # noqa: E402
from eval.engine import Bench, Cell, collect, default_output, evaluate, plan, run  # noqa: E402
from eval.leaderboard import Groups, leaderboard, read_groups, write_leaderboard  # noqa: E402
from eval.maps import finished, prediction_maps  # noqa: E402
from eval.pictures import patch_gallery  # noqa: E402
from eval.report import write_report  # noqa: E402
from eval.results import Row, summarise, verdicts, write_tables  # noqa: E402

PATIENCE = datetime.timedelta(days=7)  # ranks wait for the slowest one's cells

__all__ = ["evaluate", "main"]


def show(rows: Sequence[Row], failed: Sequence[str]) -> None:
    """The table, the verdicts (red where a floor is not beaten) and the failures."""
    console = Console(highlight=False)
    table = Table("config", Column("model", overflow="fold"), "role", "metric", "value [95 % CI]", "n")
    for line in summarise(rows):
        table.add_row(line.config, line.model, line.role, line.metric, escape(str(line)), str(line.n))
    if rows:
        console.print(table)
    for verdict in verdicts(rows):
        console.print(str(verdict), style="green" if verdict.wins else "bold red", markup=False, soft_wrap=True)
    for text in failed:
        console.print(f"FAILED {text}", style="bold red", markup=False, soft_wrap=True)


def report(
    models: Sequence[str], cells: Sequence[Cell], rows: Sequence[Row], output: Path, bench: Bench, groups: Groups | None
) -> None:
    """``leaderboard.{md,csv}`` and ``report.html``: the rows, the runs' curves, predictions of trained decoders, and
    the models' patch features on the first dataset.
    """
    write_leaderboard(leaderboard(rows, groups), output)
    runs = [home.parent for home in map(home_of, models) if home]
    evaluations = {cell.evaluation.name: cell.evaluation for cell in cells}
    gallery, maps = None, {}
    if rows:
        first = evaluations[rows[0]["config"]]
        scored = {row["model"] for row in rows if row["config"] == first.name}
        seen = [load_model(obj, bench.device) for obj in models if name_of(obj) in scored]
        treated = {"missing": first.missing, "sizing": first.model["size"]}
        gallery = patch_gallery(seen, bench.dataset(first.dataset), bench.device, **treated)
    for name, trained in finished(cells).items():
        dataset = bench.dataset(evaluations[name].dataset)
        if dataset.splits["test"].dense:
            maps[name] = prediction_maps(dataset, trained, bench.device)
    write_report(output / "report.html", rows, runs, gallery, maps, groups)


class ListModels(argparse.Action):
    """Print the released encoders and stop, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """See the class."""
        list_models()
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model-obj", "--model_obj", required=True, help="models, folders, globs, NAME@FILE joined by ';'")
    p.add_argument("--config-obj", "--config_obj", required=True, help="YAML files, folders and globs joined by ';'")
    p.add_argument("--output-dir", "--output_dir", type=Path, help="tables and rows (default: inside the first run)")
    p.add_argument("--averages", type=Path, help="YAML of named averages: {name: [patterns of evaluations]}")
    p.add_argument(
        "--test-only", "--test_only", action="store_true", help="test the kept decoders of finished cells again"
    )
    p.add_argument("--list-models", action=ListModels, nargs=0, help="released encoders, their input and cost")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="options that override every config")
    return p


def planned(args: argparse.Namespace) -> tuple[list[str], list[schema.Evaluation], list[Cell], Path]:
    """The models, evaluations and cells that a command line asks for, and the folder of its tables."""
    env.load()
    models = expand_models(args.model_obj)
    paths = schema.expand_configs(args.config_obj)
    evaluations = [evaluation for path in paths for evaluation in schema.load_all(path, args.overrides)]
    cells = plan(models, evaluations, args.output_dir)
    return models, evaluations, cells, args.output_dir or default_output(models)


def main(argv: list[str]) -> int:
    """Entry point; 1 if a cell failed."""
    args = parser().parse_args(argv[1:] if argv[:1] == ["main"] else argv)
    models, _, cells, output = planned(args)
    groups = read_groups(args.averages)
    distributed.init(timeout=PATIENCE)
    try:
        bench = Bench(distributed.device(), show=True)
        run(cells, bench, (distributed.rank(), distributed.world()), args.test_only)
        distributed.barrier()
        rows, failed = collect(cells)
        if distributed.rank() == 0:
            write_tables(rows, output)
            show(rows, failed)
            report(models, cells, rows, output, bench, groups)
            print(f"tables and report: {output}")
        distributed.barrier()  # torchrun would kill the rank that writes as soon as another one exits with 1
    finally:
        distributed.teardown()
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
