"""How much of a hidden patch its eight neighbours tell in the sandbox world: what a masked autoencoder could learn.

    python benchmarks/mae_bound.py --shards data/quickstart/train --val data/quickstart/val

Linear (ridge) regression of an 8 x 8 patch of 48-pixel crops, standardised as MAE's targets are, from the 24 x 24
pixels around it in three bands; R2 on the validation chips, by band and by the scale of the crops.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from dinov2.cli import run  # noqa: E402
from dinov2.data.batch import ViewSpec  # noqa: E402
from dinov2.data.shards import ShardSet  # noqa: E402
from dinov2.data.stats import Normalisation  # noqa: E402
from dinov2.data.views import Augment, draw, render_sample  # noqa: E402
from dinov2.models.mae import normalised  # noqa: E402

BANDS = (664, 827, 1613)  # nm: red, near and short-wave infrared
SCALES = ((0.3, 1.0), (0.6, 1.0), (1.0, 1.0))
REPEATS = 2  # crops of a chip
RIDGES = (30.0, 300.0, 3000.0)


def windows(shards: ShardSet, norm: Normalisation, scale: tuple[float, float]) -> Tensor:
    """Windows of 3 x 3 patches in crops of Sentinel-2, double ``[N, 3 bands, 24, 24]``."""
    keys = {key for key in shards.images if key.startswith("sentinel2")}
    view, untouched = ViewSpec("image", 1, 48, scale, (13, 13)), Augment(jitter_probability=0, speckle_looks=0)
    places = [(k, j) for k, count in enumerate(shards.counts) for j in range(int(count))]
    rng, found = np.random.default_rng(0), []
    for position, (shard, number) in enumerate(places):
        sample = shards.read(shard, number, images=keys)
        for repeat in range(REPEATS):
            crop = render_sample(draw(sample, [view], untouched, norm, (0, repeat, position)))["image"]
            channels = [crop["chn_ids"][0].tolist().index(band) for band in BANDS]
            top, left = 8 * rng.integers(4, size=2)
            found.append(crop["imgs"][0, channels, top : top + 24, left : left + 24])
    return torch.stack(found).double()


def split(window: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised surroundings and a constant ``[N, 3 * 512 + 1]``, standardised patches amid them ``[N, 3, 64]``."""
    centre = torch.zeros(24, 24, dtype=torch.bool)
    centre[8:16, 8:16] = True
    around = normalised(window[:, :, ~centre]).flatten(1)  # [N, 3 * 512]
    return torch.cat([around, around.new_ones(len(around), 1)], 1), normalised(window[:, :, centre])


def main(argv: list[str]) -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="to fit on")
    parser.add_argument("--val", required=True, help="to measure on; the best of three ridges counts")
    args = parser.parse_args(argv)
    train, val = ShardSet.open(args.shards), ShardSet.open(args.val)
    norm = Normalisation.from_stats(train.stats)
    print(f"| scale of crops | {' | '.join(f'{band} nm' for band in BANDS)} |\n|{'---|' * (1 + len(BANDS))}")
    for scale in SCALES:
        (x, y), (x_val, y_val) = (split(windows(shards, norm, scale)) for shards in (train, val))
        gram, target = x.T @ x, x.T @ y.flatten(1)
        weights = [torch.linalg.solve(gram + ridge * torch.eye(len(gram)).double(), target) for ridge in RIDGES]
        errors = torch.stack([(y_val - (x_val @ w).view_as(y_val)).square().mean((0, 2)) for w in weights])  # [3, 3]
        explained = 1 - errors[errors.mean(1).argmin()] / y_val.square().mean((0, 2))
        print(f"| {scale[0]:g} to {scale[1]:g} | {' | '.join(f'{r2:.2f}' for r2 in explained.tolist())} |")
    return 0


if __name__ == "__main__":
    run(main)
