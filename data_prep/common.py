"""What a source hands over (a Plan), and how it becomes a shard set."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dinov2.data.sample import Sample
from dinov2.data.shards import ShardSet, ShardWriter


@dataclass(frozen=True)
class Skip:
    """An item that yields no sample, and why (counted in the summary)."""

    reason: str


@dataclass(frozen=True)
class Plan:
    """A source, ready to run: ``make(item)`` is pure, so any process can make any item, in any order.

    ``labels``, ``provenance`` and ``licence`` as in :class:`dinov2.data.shards.ShardWriter`.
    """

    items: Sequence[Any]
    make: Callable[[Any], Sample | Skip]
    labels: Mapping[str, Any]
    provenance: Mapping[str, Any]
    licence: str = "unknown"

    def samples(self) -> Iterator[Sample]:
        """The samples in the order of the items."""
        return (s for s in map(self.make, self.items) if isinstance(s, Sample))


@dataclass
class Summary:
    """What happened to the items: samples written, items skipped by reason, shards kept from an earlier run."""

    written: int = 0
    kept_shards: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.written} samples written"]
        parts += [f"{count} skipped: {reason}" for reason, count in sorted(self.skipped.items())]
        return "; ".join(parts + [f"{self.kept_shards} shards kept from an earlier run"] * bool(self.kept_shards))


def _write_shard(plan: Plan, writer: ShardWriter, number: int, items: Sequence[Any]) -> Summary:
    """One shard, in whatever process."""
    summary = Summary()
    if writer.complete(number):
        return Summary(kept_shards=1)

    def kept() -> Iterator[Sample]:
        for result in map(plan.make, items):
            if isinstance(result, Skip):
                summary.skipped[result.reason] += 1
            else:
                summary.written += 1
                yield result

    writer.write(number, kept())
    return summary


def write(
    plan: Plan, out: Path, *, samples_per_shard: int, compression: str | None, workers: int
) -> tuple[ShardSet, Summary]:
    """Write the samples to ``out``, same bytes for any number of worker processes; complete shards are kept."""
    if not plan.items:
        raise ValueError("there is nothing to prepare: the source has no item")
    # part of the recipe: a longer run must not adopt the last, shorter shard of an earlier one
    provenance = {**plan.provenance, "items": len(plan.items), "samples_per_shard": samples_per_shard}
    writer = ShardWriter(out, compression, plan.labels, provenance, plan.licence)
    chunks = [plan.items[i : i + samples_per_shard] for i in range(0, len(plan.items), samples_per_shard)]
    total = Summary()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("shards", total=len(chunks))
        for part in _each(plan, writer, chunks, workers):
            total.written += part.written
            total.kept_shards += part.kept_shards
            total.skipped += part.skipped
            progress.advance(bar)
    if not total.written and not total.kept_shards:
        raise ValueError(f"no sample is left: {total}")
    return writer.finish(len(chunks)), total


def _each(plan: Plan, writer: ShardWriter, chunks: Sequence[Sequence[Any]], workers: int) -> Iterator[Summary]:
    """Summaries of all shards, as they get ready."""
    if workers <= 1:
        yield from (_write_shard(plan, writer, n, items) for n, items in enumerate(chunks))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes are the parallelism; BLAS threads would fight them
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_write_shard, plan, writer, n, items) for n, items in enumerate(chunks)]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Digest of the names, sizes and times of modification of files below a folder: changed ones are another source."""
    stats = ((p.relative_to(folder).as_posix(), p.stat()) for p in files)
    listing = "\n".join(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats)
    return hashlib.sha256(listing.encode()).hexdigest()


def slug(text: str) -> str:
    """``text`` as a sample key: lower case letters, digits, ``_`` and ``-``, starting with a letter or digit."""
    return re.sub(r"[^a-z0-9_\-]+", "_", text.lower()).lstrip("_-") or "x"


MAJORITY = 0.5  # of a chip that its scene class must cover


def scene_class(mask: np.ndarray, classes: int, ignore: int) -> int:
    """The class that covers at least half of a label mask ``[h, w]`` of numbers 0..classes-1, -1 if none does."""
    counts = np.bincount(mask[mask != ignore].ravel(), minlength=classes)
    majority = int(counts.argmax())
    return majority if counts[majority] >= MAJORITY * mask.size else -1


def label_info(name: str, classes: Sequence[str], ignore: int) -> dict[str, dict[str, Any]]:
    """The descriptions of a label mask called ``name`` and of ``scene``, its majority class."""
    mask = {"kind": "mask", "classes": list(classes), "ignore": ignore}
    return {name: mask, "scene": {"kind": "class", "classes": list(classes), "ignore": -1}}
