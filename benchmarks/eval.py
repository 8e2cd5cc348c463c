"""What an evaluation saves: features made once, several heads per pass of the encoder, windows in batches.

    python benchmarks/eval.py [--quick]

Frozen encoders on images in memory, float32 on one thread, each way beside the plain one in the same process, in
process time. Both ways must give the same numbers (of cells the same scores). Targets: a linear and a kNN cell at 50
epochs 25 times faster than with features made anew in every epoch; a UPerNet cell whose maps are kept 1.3 times.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from dinov2.cli import run  # noqa: E402
from dinov2.data.sample import ImageSpec, Sample  # noqa: E402
from eval.datasets import EvalDataset, Split  # noqa: E402
from eval.encoders import load_model  # noqa: E402
from eval.features import Trial, extract  # noqa: E402
from eval.knn import knn  # noqa: E402
from eval.probe import ProbeData, linear  # noqa: E402
from eval.scoring import score, states_of  # noqa: E402
from eval.tasks.decoder import Options, decoder  # noqa: E402
from eval.tasks.encoding import Store  # noqa: E402
from eval.tasks.heads import Wanted  # noqa: E402
from eval.tiling import slide  # noqa: E402

SPEC = ImageSpec("sentinel2_l2a", 10, ("B02", "B03", "B04", "B08"), "uint16", "reflectance", 1e-4)
TARGETS = {"linear + kNN": 25.0, "UPerNet": 1.3}
CPU = torch.device("cpu")
Way = Callable[[], Any]  # does the work; what it returns must not depend on the way


def dataset(counts: tuple[int, int, int], side: int, dense: bool) -> EvalDataset:
    """Noise on blocks of three brightnesses: their map, or the brightness of the whole image."""
    splits = {}
    for seed, (name, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        rng = np.random.default_rng(seed)
        classes = rng.integers(3, size=(count, side // 8, side // 8) if dense else (count, 1, 1))
        maps = np.kron(classes, np.ones((1, 8, 8) if dense else (1, side, side), np.int64))
        images = (1000 + 500 * maps[:, None] + rng.integers(-400, 400, (count, 4, side, side))).astype(np.uint16)
        keys = [f"{name}-{i}" for i in range(count)]

        def read(i: int, images: np.ndarray = images, keys: list[str] = keys) -> Sample:
            return Sample(keys[i], {SPEC.key: images[i]}, {SPEC.key: SPEC})

        def target(i: int, maps: np.ndarray = maps) -> np.ndarray:
            return maps[i]

        splits[name] = Split(keys, None, read, target) if dense else Split(keys, classes.ravel().tolist(), read)
    kind = "segmentation" if dense else "classification"
    return EvalDataset("blocks", ("dark", "middle", "bright"), splits, (SPEC,), None, None, "0", kind=kind)


def probes(epochs: int, images: int) -> tuple[Way, Way]:
    """A linear and a kNN cell of one model: one pass over all images, and one per epoch of the training images."""
    trial = Trial.of(load_model("random:vit_small?patch_size=8&img_size=64"), dataset((images, 16, 16), 64, False), CPU)
    splits = trial.dataset.splits

    def cells(pooled: dict[str, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        data = ProbeData(**pooled, train_labels=splits["train"].labels, val_labels=splits["val"].labels, classes=3)
        predicted = linear(data, 0, epochs=epochs).logits, knn(data, 0, k=5).logits
        return tuple(next(iter(logits)).argmax(1) for logits in predicted)

    def once() -> Any:
        return cells(extract(trial))

    def every_epoch() -> Any:
        alone = dataclasses.replace(trial.dataset, splits={"train": splits["train"]})
        for _ in range(epochs - 1):  # the last epoch's pass and those over validation and test are in `once`
            extract(dataclasses.replace(trial, dataset=alone))
        return cells(extract(trial)), cells(extract(trial))[1]  # kNN has a pass of its own

    return once, lambda: every_epoch()[0]


def heads(rates: int, images: int) -> tuple[Way, Way]:
    """A linear decoder on random crops at several learning rates: all heads per pass, and one after the other."""
    trial = Trial.of(load_model("random:vit_small?patch_size=8&img_size=64"), dataset((images, 8, 8), 96, True), CPU)
    grid = tuple(1e-4 * 2**i for i in range(rates))

    def cell(rates: tuple[float, ...]) -> float:
        options = Options(
            decoder="linear", crop="random", crop_size=64, epochs=5, learning_rates=rates, evaluate_every=5
        )
        (outcome,) = decoder(trial, Store(1 << 30), [Wanted(0, range(images))], options)
        return outcome.chosen["val_miou"]

    return lambda: cell(grid), lambda: max(cell((rate,)) for rate in grid)


def upernet(epochs: int, images: int) -> tuple[Way, Way]:
    """A UPerNet cell with the maps of all splits kept, and made again in every epoch and at every validation."""
    model = load_model("random:vit_base?patch_size=8&img_size=64")
    trial = Trial.of(model, dataset((images, images, images), 64, True), CPU, batch_size=8)
    small = {"channels": 64}

    def cell(store: Store) -> float:
        options = Options(decoder="upernet", decoder_options=small, epochs=epochs, evaluate_every=1)
        (outcome,) = decoder(trial, store, [Wanted(0, range(images))], options)
        return score("segmentation", states_of(trial.dataset, "test", outcome.logits), 3)["value"]

    return lambda: cell(Store(1 << 32)), lambda: cell(Store(0))


def windows(side: int) -> tuple[Way, Way]:
    """An image in windows of 32 pixels: 32 windows at once, and one by one."""
    model = load_model("random:vit_tiny?patch_size=8&img_size=32")
    ids, image = torch.tensor([[493, 559, 664, 827]]), torch.randn(1, 4, side, side)

    @torch.no_grad()
    def predict(batch: int) -> Tensor:
        def maps(tiles: Tensor, which: Tensor) -> Tensor:
            last = model.maps({"imgs": tiles, "chn_ids": ids.expand(len(tiles), -1)})[-1]
            return last.mean(1, keepdim=True).repeat_interleave(8, 2).repeat_interleave(8, 3)

        return slide(maps, image, 32, batch=batch)

    return lambda: predict(32), lambda: predict(1)


def same(a: Any, b: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=1e-4)


def main(argv: list[str]) -> int:
    """Print the table; exit code 1 where a target is missed or the two ways differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and epochs, without targets")
    quick = parser.parse_args(argv).quick
    torch.set_num_threads(1)
    cases = {
        "linear + kNN": probes(5 if quick else 50, 8 if quick else 64),
        "6 heads": heads(2 if quick else 6, 8 if quick else 24),
        "UPerNet": upernet(2 if quick else 10, 8),
        "windows": windows(128 if quick else 512),
    }
    good = True
    print(f"{'':<14} {'plain s':>8} {'ours s':>8} {'ratio':>7}")
    for name, ways in cases.items():
        seconds, results = [], []
        for way in reversed(ways):  # the plain one first
            start = time.process_time()
            results.append(way())
            seconds.append(time.process_time() - start)
        plain, ours = seconds
        ratio, missed = plain / ours, "" if quick or plain / ours >= TARGETS.get(name, 0) else "  missed"
        missed += "" if same(*results) else "  differs"
        good &= not missed
        print(f"{name:<14} {plain:>8.2f} {ours:>8.2f} {ratio:>6.1f}x{missed}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    run(main)
