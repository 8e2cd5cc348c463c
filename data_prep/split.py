"""``split``: train, val and test sets of one shard set by blocks of ground, so that no neighbours are parted at random.

The earth is divided into blocks of ``--block-km``; a hash of seed and block decides where all of its samples go. What
lies within ``--gap-km`` of a block of another part is left out and counted, so parts are at least that far apart.

Example: python data_prep/main.py split data/alps --out data/alps_split --block-km 20 --fractions 0.8 0.1 0.1
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from data_prep import footprints
from data_prep.common import Plan, write
from data_prep.footprints import Box
from dinov2.data.sample import Sample
from dinov2.data.shards import ShardSet

PARTS = ("train", "val", "test")
DEGREE_KM = 111.195  # of latitude, on a sphere of 6371 km


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    add = parser.add_argument
    add("set", help="folder or URL of a shard set with footprints.parquet")
    add("--out", type=Path, required=True, help="folder of the sets train, val and test")
    add("--block-km", type=float, default=20.0, help="side of a block (%(default)s)")
    add("--gap-km", type=float, default=1.0, help="least distance between parts (%(default)s)")
    add("--fractions", type=float, nargs=3, default=(0.8, 0.1, 0.1), help="of the blocks (0.8 0.1 0.1)")
    add("--seed", type=int, default=0)
    add("--samples-per-shard", type=int, default=256, help="(%(default)s)")
    add("--compression", choices=["zstd"], help="of the arrays (none)")
    add("--workers", type=int, default=1, help="processes (%(default)s)")


@dataclass(frozen=True)
class Blocks:
    """Blocks of ground and the part that each belongs to."""

    side_km: float
    gap_km: float
    fractions: tuple[float, float, float]
    seed: int

    def part(self, lon: float, lat: float) -> str:
        """The part of the block around a point."""
        rows = math.ceil(180 * DEGREE_KM / self.side_km)
        row = min(rows - 1, int((lat + 90) * DEGREE_KM / self.side_km))
        centre = (row + 0.5) * self.side_km / DEGREE_KM - 90
        columns = max(1, round(360 * DEGREE_KM * math.cos(math.radians(centre)) / self.side_km))
        column = int((lon + 180) % 360 / 360 * columns)
        text = f"{self.seed} {row} {column}".encode()
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64 * sum(self.fractions)
        ends = (self.fractions[0], self.fractions[0] + self.fractions[1])
        return PARTS[sum(number >= end for end in ends)]

    def part_of(self, box: Box) -> str | None:
        """The part that a sample's box, with the gap around it, lies in; None where it touches several."""
        west, south, east, north = box
        high = self.gap_km / DEGREE_KM
        wide = high / max(1e-3, math.cos(math.radians(max(abs(south), abs(north)))))
        width = ((east - west) % 360 + 2 * wide) * math.cos(math.radians(min(abs(south), abs(north))))
        if max(width, north - south + 2 * high) * DEGREE_KM > self.side_km:
            raise ValueError(f"--block-km {self.side_km:g} is smaller than a sample with its --gap-km {self.gap_km:g}")
        found = {self.part(x, y) for x in (west - wide, east + wide) for y in (south - high, north + high)}
        return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=1)  # of this process
def opened(path: str) -> ShardSet:
    """The set that is split."""
    return ShardSet.open(path)


@dataclass(frozen=True)
class Copies:
    """Reads samples of the set, which then tell their part."""

    path: str
    part: str

    def __call__(self, place: tuple[int, int]) -> Sample:
        """Sample (shard, number within it)."""
        sample = opened(self.path).read(*place)
        return replace(sample, meta={**sample.meta, "split": self.part})


def split(args: argparse.Namespace) -> str:
    """Write the sets; counts as a sentence."""
    if min(args.fractions) < 0 or not sum(args.fractions) > 0 or args.block_km <= 0 or args.gap_km < 0:
        raise ValueError("--fractions and --gap-km must not be negative, --block-km must be positive")
    shards, table = opened(args.set), footprints.read(args.set)
    blocks = Blocks(args.block_km, args.gap_km, tuple(args.fractions), args.seed)
    places: dict[str, list[tuple[int, int]]] = {part: [] for part in PARTS}
    left_out: Counter[str] = Counter()
    following: Counter[int] = Counter()
    for shard, box in zip(table["shard"].to_pylist(), footprints.boxes(table), strict=True):
        place, part = (shard, following[shard]), blocks.part_of(box) if box else None
        following[shard] += 1
        if part:
            places[part].append(place)
        else:
            left_out["within --gap-km of another part" if box else "without a position"] += 1
    reasons = [f"{count} left out: {reason}" for reason, count in left_out.items()]
    if not any(places.values()):
        raise ValueError(f"{args.set}: no sample is left for any part: {'; '.join(reasons)}")
    info = shards.parts[0]
    said = []
    for part, own in places.items():
        if own:
            provenance = {"source": "split", "of": shards.digest, "part": part, **vars(blocks)}
            plan = Plan(own, Copies(args.set, part), shards.labels, provenance, info.licence)
            options = {name: getattr(args, name) for name in ("samples_per_shard", "compression", "workers")}
            write(plan, args.out / part, **options)
        said.append(f"{len(own)} {part}")
    return f"{args.out}: {'; '.join(said + reasons)}"
