"""One set of tables and one report of several evaluations: their rows joined, nothing evaluated again.

    python eval/tables.py out/encoders out/floors out/unet --output-dir out/all --averages averages.yaml

Takes folders that eval/main.py has written (or their results.jsonl). Pictures stay with the reports of the folders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

from dinov2 import cli  # noqa: E402
from eval.leaderboard import leaderboard, read_groups, write_leaderboard  # noqa: E402
from eval.report import write_report  # noqa: E402
from eval.results import Row, write_tables  # noqa: E402


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """All rows, those of an evaluation together; ValueError for a missing file, or a cell that two rows are of."""
    rows: dict[tuple[str, str, int], Row] = {}
    for path in paths:
        file = path / "results.jsonl" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"there is no {file}: give folders that eval/main.py has written")
        for row in map(json.loads, file.read_text().splitlines()):
            cell = row["config"], row["model"], row["seed"]
            if cell in rows and rows[cell] != row:
                raise ValueError(f"{file}: there is another row of {cell[0]}, {cell[1]}, seed {cell[2]}; leave one out")
            rows[cell] = row
    order = list(dict.fromkeys(config for config, *_ in rows))
    return sorted(rows.values(), key=lambda row: order.index(row["config"]))


def main(argv: list[str]) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("results", nargs="+", type=Path, help="folders with results.jsonl, or such files")
    p.add_argument("--output-dir", "--output_dir", type=Path, required=True)
    p.add_argument("--averages", type=Path, help="YAML of named averages: {name: [patterns of evaluations]}")
    args = p.parse_args(argv)
    rows, groups = read_rows(args.results), read_groups(args.averages)
    write_tables(rows, args.output_dir)
    write_leaderboard(leaderboard(rows, groups), args.output_dir)
    print(f"tables and report: {write_report(args.output_dir / 'report.html', rows, groups=groups)}")
    return 0


if __name__ == "__main__":
    cli.run(main)
