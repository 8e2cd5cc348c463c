"""How random the order of the stream is, beside a full permutation.

    python benchmarks/order.py      # a few seconds

256 shards of 100 samples; half of the variance of a sample's value lies between shards (a shard is a region). For the
order as stored, a full permutation, and the stream with several numbers of lanes: the largest correlation of samples 1
to 16 apart, the variance of the mean of 256 samples (1: as if drawn independently), and how often samples up to 8 apart
are of one shard, times 256 (1: as often as in a full permutation). Means over EPOCHS epochs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402

from dinov2.cli import run  # noqa: E402
from dinov2.data.order import LANES, Order  # noqa: E402

SHARDS, SAMPLES, BATCH, EPOCHS = 256, 100, 256, 5


def figures(sequence: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The three figures of one epoch; ``sequence`` are numbers of samples in the order in which they come."""
    x, shard = value[sequence], sequence // SAMPLES
    correlation = max(abs((x[k:] * x[:-k]).mean()) for k in range(1, 17))
    variance = x.reshape(-1, BATCH).mean(1).var() * BATCH
    together = np.mean([(shard[k:] == shard[:-k]).mean() for k in range(1, 9)]) * SHARDS
    return np.array([correlation, variance, together])


def main(argv: list[str]) -> None:
    """Entry point."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    rng, count = np.random.default_rng(0), SHARDS * SAMPLES
    value = np.repeat(rng.normal(size=SHARDS), SAMPLES) + rng.normal(size=count)
    value = (value - value.mean()) / value.std()
    rows = {"as stored": [np.arange(count)], "full permutation": [rng.permutation(count) for _ in range(EPOCHS)]}
    for lanes in (LANES, 192, 48, 12, 3, 1):
        order = Order(np.full(SHARDS, SAMPLES), 0, lanes)
        addresses = [order.addresses(np.arange(count) + epoch * count) for epoch in range(EPOCHS)]
        rows[f"{lanes} lanes"] = [a[:, 1] * SAMPLES + a[:, 2] for a in addresses]
    print("| | correlation | variance of means | same shard |\n|---|---|---|---|")
    for name, sequences in rows.items():
        correlation, variance, together = np.mean([figures(s, value) for s in sequences], axis=0)
        print(f"| {name} | {correlation:.3f} | {variance:.2f} | {together:.1f} |")


if __name__ == "__main__":
    run(main)
