"""Models against each other over many evaluations: named averages, and ranks that know the intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.stats import rankdata

from dinov2 import config
from dinov2.files import write_atomic
from eval.results import Line, Row, summarise, write_csv, written
from eval.scoring import LOWER

DRAWS = 2000
Z = 1.959964  # standard deviations that hold one half of 95 %
Groups = Mapping[str, Sequence[str]]  # of an average: patterns of its evaluations' names


@dataclass(frozen=True)
class Estimate:
    """A figure made of many lines, and the 95 % interval that theirs allow."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """One model's place.

    ``rank`` is its mean rank over all evaluations (1 is best, ties share), ``first`` in which share of the draws no
    other model's is better; ``averages`` holds those whose evaluations it has all done, as fractions. A model that
    lacks an evaluation has no rank.
    """

    model: str
    role: str
    rank: Estimate | None
    first: float
    averages: dict[str, Estimate]
    lines: dict[str, Line]  # by evaluation


def read_groups(path: Path | None) -> Groups | None:
    """A YAML file ``name of the average: [patterns of evaluations]``; None where there is none."""
    if path is None:
        return None
    groups: Any = config.plain(config.read_yaml(path))
    for name, patterns in groups.items():
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            raise ValueError(f"{path}: {name} is not a list of evaluations, such as [geobench/*]")
    return groups


def members(groups: Groups | None, lines: Sequence[Line]) -> dict[str, list[str]]:
    """The evaluations of every average; without ``groups`` one average per folder of several evaluations.

    ValueError for a group that nothing belongs to, or that holds an error in a unit: fractions alone have one scale.
    """
    units = {x.config: x.unit or x.metric for x in lines if x.metric in LOWER}
    names = list(dict.fromkeys(x.config for x in lines))
    if groups is None:
        folders: dict[str, list[str]] = {}
        for name in names:
            if name not in units:
                folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
        return {folder: found for folder, found in folders.items() if len(found) > 1 and folder != "."}
    found = {group: [n for n in names if any(fnmatchcase(n, p) for p in groups[group])] for group in groups}
    for group, its in found.items():
        if not its:
            raise ValueError(f"average {group}: no evaluation is called {' or '.join(groups[group])}")
        if errors := [n for n in its if n in units]:
            raise ValueError(f"average {group}: {errors[0]} is an error in {units[errors[0]]}, not a fraction")
    return found


def draws(lines: Sequence[Line]) -> np.ndarray:
    """Values that the lines' intervals allow, ``[DRAWS, N]``: normal on either side, half of an interval being Z."""
    z = np.random.default_rng(0).standard_normal((DRAWS, len(lines)))
    value, low, high = np.array([(x.value, x.low, x.high) for x in lines]).reshape(-1, 3).T
    return value + np.where(z > 0, np.maximum(high - value, 0), np.maximum(value - low, 0)) * z / Z


def estimate(value: float, drawn: np.ndarray) -> Estimate:
    """A figure and the 95 % interval of what was drawn for it ``[DRAWS]``; drawn extreme ranks move inwards only."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def leaderboard(rows: Sequence[Row], groups: Groups | None = None) -> list[Standing]:
    """Every model's standing, the best mean rank first.

    Cells are drawn independently of each other, although all models see the same test images: the intervals of ranks
    are rather too wide than too narrow.
    """
    lines = summarise(rows)
    if not lines:
        return []
    possible = dict(zip(((x.model, x.config) for x in lines), draws(lines).T, strict=True))  # [DRAWS] each
    table: dict[str, dict[str, Line]] = {}
    for x in lines:
        table.setdefault(x.model, {})[x.config] = x
    averages = members(groups, lines)
    ranks = mean_ranks(table, possible)
    standings = []
    for model, its in table.items():
        means = {
            name: estimate(
                float(np.mean([its[c].value for c in found])), np.mean([possible[model, c] for c in found], 0)
            )
            for name, found in averages.items()
            if its.keys() >= set(found)
        }
        rank, first = ranks.get(model, (None, 0.0))
        standings.append(Standing(model, next(iter(its.values())).role, rank, first, means, its))
    return sorted(standings, key=lambda s: (s.rank.value if s.rank else np.inf, s.model))


def mean_ranks(
    table: Mapping[str, Mapping[str, Line]], possible: Mapping[tuple[str, str], np.ndarray]
) -> dict[str, tuple[Estimate, float]]:
    """Mean rank and share of first places of every model that has done all evaluations."""
    configs = list(dict.fromkeys(c for its in table.values() for c in its))
    models = [m for m, its in table.items() if len(its) == len(configs)]
    if not models:
        return {}
    sign = np.array([[-1.0 if table[models[0]][c].metric in LOWER else 1.0] for c in configs])  # [C, 1]
    values = np.array([[table[m][c].value for m in models] for c in configs])  # [C, M]
    drawn = np.array([[possible[m, c] for m in models] for c in configs]).transpose(2, 0, 1)  # [DRAWS, C, M]
    mean = rankdata(-sign * values, axis=-1).mean(-2)  # [M]
    means = rankdata(-sign * drawn, axis=-1).mean(-2)  # [DRAWS, M]
    best = (means == means.min(-1, keepdims=True)).mean(0)  # [M]
    return {m: (estimate(float(mean[i]), means[:, i]), float(best[i])) for i, m in enumerate(models)}


def columns(standings: Sequence[Standing]) -> tuple[list[str], list[str]]:
    """Names of the averages and of the evaluations."""
    averages = dict.fromkeys(name for s in standings for name in s.averages)
    return list(averages), list(dict.fromkeys(c for s in standings for c in s.lines))


def write_leaderboard(standings: Sequence[Standing], output: Path) -> None:
    """``leaderboard.md`` and ``leaderboard.csv``: a line per model."""
    averages, configs = columns(standings)
    head = ["model", "role", "mean rank", "first", *averages, *configs]
    text = "| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n"
    records = []
    for s in standings:
        rank, first = "–", "–"
        if s.rank:
            rank, first = f"{s.rank.value:.2f} [{s.rank.low:.2f}, {s.rank.high:.2f}]", f"{100 * s.first:.0f} %"
        means = [percent(s.averages.get(name)) for name in averages]
        cells = [str(s.lines[c]) if c in s.lines else "–" for c in configs]
        text += "| " + " | ".join([s.model, s.role, rank, first, *means, *cells]) + " |\n"
        record: dict[str, Any] = {"model": s.model, "role": s.role, "first": s.first if s.rank else None}
        parts = {"rank": s.rank, **{f"average {k}": x for k, x in s.averages.items()}, **s.lines}
        for name, x in parts.items():
            record |= {name: x.value, f"{name} low": x.low, f"{name} high": x.high} if x else {}
        records.append(record)
    write_atomic(output / "leaderboard.md", text)
    write_csv(output / "leaderboard.csv", records, list(dict.fromkeys(key for r in records for key in r)))


def percent(mean: Estimate | None) -> str:
    """An average as a table shows it."""
    return written("", mean.value, interval=(mean.low, mean.high)) if mean else "–"
