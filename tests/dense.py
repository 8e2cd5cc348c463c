"""Evaluation datasets in memory, of every kind; each is easy to learn from a pixel's value."""

from __future__ import annotations

import numpy as np
import torch

from dinov2.data.sample import ImageSpec, Sample
from eval.datasets import EvalDataset, Split
from eval.datasets.base import IGNORE

SPEC = ImageSpec("sentinel2_l2a", 10, ("B02", "B03", "B04"), "uint16", "reflectance", 1e-4, 0.0, None)
COUNTS = {"train": 12, "val": 5, "test": 5}


def scene(rng: np.random.Generator, size: tuple[int, int], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 8 x 8 pixels of three brightnesses: an image ``[T, 3, H, W]``, its classes ``[H, W]``."""
    blocks = rng.integers(3, size=(-(-size[0] // 8), -(-size[1] // 8)))
    classes = np.kron(blocks, np.ones((8, 8), np.int64))[: size[0], : size[1]]
    image = 1000 + 1000 * classes + rng.integers(-50, 50, (frames, 3, *size))
    return image.astype(np.uint16), classes


class World:
    """Scenes of a split and what is to be predicted of them; loader processes can pickle it."""

    def __init__(self, kind, count, *, seed, size=(16, 16), frames=1, pair=False, sizes=None, dates=True):
        rng = np.random.default_rng(seed)
        self.kind, self.frames, self.pair, self.dates, self.prefix = kind, frames, pair, dates, f"s{seed}"
        self.sizes = sizes or [size] * count
        self.scenes = [scene(rng, s, frames) for s in self.sizes]
        if pair:  # the second image is darkened where something changed
            for image, classes in self.scenes:
                changed = np.kron(rng.integers(2, size=(2, 2)), np.ones((8, 8), np.int64))
                image[1] = image[0] - 800 * changed
                classes[:] = changed

    def sample(self, i: int) -> Sample:
        image = self.scenes[i][0]
        count = self.frames if self.frames == 1 or self.pair else 1 + (i + self.frames - 1) % self.frames
        pixels = image[:count] if self.frames > 1 else image[0]
        times = {SPEC.key: [f"2020-{m + 1:02d}-01" for m in range(count)]} if self.dates and self.frames > 1 else {}
        return Sample(f"{self.prefix}-{i:03d}", {SPEC.key: pixels}, {SPEC.key: SPEC}, times=times)

    def target(self, i: int) -> np.ndarray:
        classes = self.scenes[i][1]
        if self.kind == "regression":
            values = (10.0 * classes).astype(np.float32)
            values[0, 0] = np.nan
            return values
        out = classes.copy()
        out[0, 0] = IGNORE
        return out

    def labels(self, per_image: str) -> torch.Tensor:
        shares = np.stack([np.bincount(c.ravel(), minlength=3) / c.size for _, c in self.scenes])
        if per_image == "multilabel":
            return torch.from_numpy(shares > 0.3)
        if per_image == "regression":
            return torch.from_numpy(shares @ [0.0, 10.0, 20.0]).float()
        return torch.from_numpy(shares.argmax(1))


def dataset(kind: str = "segmentation", *, dense: bool = True, counts=None, **options) -> EvalDataset:
    """A dataset; ``dense``: a target per pixel."""
    splits, frames, pair = {}, options.get("frames", 1), options.get("pair", False)
    for seed, (name, count) in enumerate((counts or COUNTS).items()):
        world = World(kind, count, seed=seed, **options)
        keys = [f"s{seed}-{i:03d}" for i in range(count)]
        labels, target = (None, world.target) if dense else (world.labels(kind), None)
        splits[name] = Split(keys, labels, world.sample, target)
    classes = ("value",) if kind == "regression" else ("same", "changed") if pair else ("dark", "middle", "bright")
    return EvalDataset(
        "blocks", classes, splits, (SPEC,), None, None, "d" * 12, kind=kind, unit="m", frames=frames, pair=pair
    )
