"""What a source hands over (a Plan), and how it becomes a shard set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import footprints
from data_prep.parallel import Meter, each
from data_prep.store import READ
from dinov2.data.sample import Sample
from dinov2.data.shards import ShardSet, ShardWriter


@dataclass(frozen=True)
class Skip:
    """An item that yields no sample, and why (counted in the summary)."""

    reason: str


class Refused(ValueError):
    """An item whose bytes are damaged or unsafe; the message names the file."""


@dataclass(frozen=True)
class Plan:
    """A source, ready to run: ``make(item)`` is pure, so any process can make any item, in any order.

    ``labels``, ``provenance`` and ``licence`` as in :class:`dinov2.data.shards.ShardWriter`; a label described with
    ``majority_of`` is made by :class:`data_prep.refine.Refine`. ``filtered``: why the source left items out already.
    """

    items: Sequence[Any]
    make: Callable[[Any], Sample | Skip]
    labels: Mapping[str, Any]
    provenance: Mapping[str, Any]
    licence: str = "unknown"
    filtered: Mapping[str, int] = field(default_factory=dict)

    def samples(self) -> Iterator[Sample]:
        """The samples in the order of the items."""
        return (s for s in map(self.make, self.items) if isinstance(s, Sample))


@dataclass
class Summary:
    """What happened to the items: samples written, left out and refused by reason, shards kept from an earlier run."""

    written: int = 0
    kept_shards: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    bytes_in: float = 0
    bytes_out: int = 0

    def add(self, other: Summary) -> None:
        """Take in what happened to further items."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        parts = [f"{self.written} samples written"]
        parts += [f"{count} skipped: {reason}" for reason, count in sorted(self.skipped.items())]
        parts += [f"{len(self.refused)} refused, the first: {self.refused[0]}"] if self.refused else []
        if self.bytes_in:
            ratio = self.bytes_out / self.bytes_in
            parts.append(f"{self.bytes_out:,} bytes out / {self.bytes_in:,.0f} in = {ratio:.2f}")
        return "; ".join(parts + [f"{self.kept_shards} shards kept from an earlier run"] * bool(self.kept_shards))


Refine = Callable[[Sample], Iterator[Sample | Skip]]


@dataclass(frozen=True)
class Work:
    """All that a worker process needs to write any shard of a set."""

    plan: Plan
    writer: ShardWriter
    refine: Refine
    per_shard: int  # items
    max_refused: float  # share of the items

    def __len__(self) -> int:
        return -(-len(self.plan.items) // self.per_shard)

    def shard(self, number: int) -> Summary:
        """Write shard ``number``, unless it is complete already."""
        if self.writer.complete(number):
            return replace(self.noted(number), written=0, kept_shards=1)
        summary, before = Summary(), READ.bytes
        notes = {"skipped": summary.skipped, "refused": summary.refused}
        self.writer.write(number, self._samples(number, summary), notes)
        return Summary(**{**vars(summary), "bytes_in": READ.bytes - before, "bytes_out": self._size(number)})

    def noted(self, number: int) -> Summary:
        """What happened to the items of a complete shard, whoever wrote it."""
        row = self.writer.row(number)
        notes = row.get("notes", {})  # shards that an earlier version wrote have none
        return Summary(row["samples"], skipped=Counter(notes.get("skipped")), refused=notes.get("refused", []))

    def check_refused(self, summary: Summary) -> None:
        """ValueError where more items are refused than may be."""
        if len(summary.refused) > self.max_refused * len(self.plan.items):
            count = f"{len(summary.refused)} of {len(self.plan.items)} items are refused"
            raise ValueError(f"{count}, more than --max-refused {self.max_refused:g} allows: {summary.refused[0]}")

    def _samples(self, number: int, summary: Summary) -> Iterator[Sample]:
        for item in self.plan.items[number * self.per_shard : (number + 1) * self.per_shard]:
            try:
                made = self.plan.make(item)
                results = [made] if isinstance(made, Skip) else list(self.refine(made))
            except Refused as error:
                if not self.max_refused:
                    raise ValueError(f"{error} (--max-refused 0.01 goes on without up to 1 % of the items)") from error
                summary.refused.append(str(error))
                continue
            for result in results:
                if isinstance(result, Skip):
                    summary.skipped[result.reason] += 1
                else:
                    summary.written += 1
                    yield result

    def _size(self, number: int) -> int:
        return self.writer.path(number).stat().st_size


def write(
    plan: Plan,
    out: Path,
    *,
    samples_per_shard: int,
    compression: str | None,
    workers: int,
    refine: Refine | None = None,
    per_item: int = 1,
    part: tuple[int, int] = (0, 1),
    max_refused: float = 0.0,
) -> tuple[ShardSet | None, Summary]:
    """Write the samples to ``out``, same bytes for any number of worker processes; complete shards are kept.

    ``refine`` makes the samples that are stored, about ``per_item``, of one that the source made; ``part`` (i, n)
    writes the shards i, i + n, ... and leaves the rest to others: the set is None until all shards are there.
    """
    if not plan.items:
        left = "".join(f"; {count} {reason}" for reason, count in plan.filtered.items())
        raise ValueError(f"there is nothing to prepare: the source has no item{left}")
    per_shard = max(1, samples_per_shard // per_item)
    # part of the recipe: a longer run must not adopt the last, shorter shard of an earlier one
    provenance = {**plan.provenance, "items": len(plan.items), "samples_per_shard": samples_per_shard}
    writer = ShardWriter(out, compression, plan.labels, provenance, plan.licence)
    work = Work(plan, writer, refine or _as_made, per_shard, max_refused)
    total, numbers = Summary(skipped=Counter(plan.filtered)), range(part[0], len(work), part[1])
    with Meter("shards", len(numbers), "samples") as meter:
        for _, done in each(Work.shard, work, numbers, workers):
            total.add(done)
            meter.advance(done.written)
            work.check_refused(total)
    if not all(writer.complete(number) for number in range(len(work))):
        return None, total
    whole = Summary(skipped=Counter(plan.filtered))  # of all parts and runs
    for number in range(len(work)):
        whole.add(work.noted(number))
    work.check_refused(whole)
    if not whole.written:
        raise ValueError(f"no sample is left: {whole}")
    shards = writer.finish(len(work))
    footprints.write(out, workers)
    return shards, total


def _as_made(sample: Sample) -> Iterator[Sample | Skip]:
    yield sample


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
    return {name: mask, "scene": {"kind": "class", "classes": list(classes), "ignore": -1, "majority_of": name}}
