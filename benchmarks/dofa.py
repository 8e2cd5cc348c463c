"""DOFA's filters generated once per sensor against generated for every batch.

    python benchmarks/dofa.py [--quick]

Time of the patch embedding and of the whole ViT-B/16 encoder on images of 224 pixels, in evaluation, on one thread,
measured in process time and in alternation. Target: one image is embedded at least half again as fast.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.patch_embed import alternate  # noqa: E402
from dinov2.cli import run  # noqa: E402
from dinov2.models.zoo import load_encoder  # noqa: E402
from dinov2.sensors import SENSORS  # noqa: E402

TARGET = 1.5  # of the embedding of one image
CASES = (("landsat8", 1), ("sentinel2_l2a", 1), ("sentinel2_l2a", 16), ("enmap", 1))  # sensor, images


def view(sensor: str, images: int) -> dict[str, Tensor]:
    """Noise in all bands of a sensor."""
    ids = torch.tensor(SENSORS[sensor].channel_ids())
    return {"imgs": torch.randn(images, len(ids), 224, 224), "chn_ids": ids.repeat(images, 1)}


def seconds(work: Callable[[], Tensor], before: Callable[[], None], calls: int) -> float:
    """Process time of ``work``, mean of ``calls``; ``before`` each of them is part of it."""
    start = time.process_time()
    for _ in range(calls):
        before()
        work()
    return (time.process_time() - start) / calls


@torch.no_grad()
def main(argv: list[str]) -> int:
    """Print the table; exit code 1 where the target is missed or the two ways differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, without the whole encoder")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    encoder = load_encoder("dofa", "random")
    embed: Any = encoder.patch_embed
    good = True

    def forget() -> None:
        embed._kept.clear()

    print(f"{'sensor':<14} {'bands':>5} {'images':>6} {'every batch ms':>15} {'once ms':>8} {'ratio':>6}")
    for sensor, images in CASES:
        x = view(sensor, images)
        wanted = embed(x)
        forget()
        good &= torch.equal(embed(x), wanted)
        for part, work in (("", lambda x=x: embed(x)), ("  encoder", lambda x=x: encoder(x))):
            if part and args.quick:
                continue
            calls = 1 if part else 3
            jobs = [lambda w=work, b=b, n=calls: seconds(w, b, n) for b in (forget, lambda: None)]
            every, once = alternate(jobs, 1 if args.quick else 3)
            met = bool(part) or images > 1 or every / once >= TARGET
            good &= met
            sizes = f"{part or sensor:<14} {x['imgs'].shape[1]:>5} {images:>6}"
            print(f"{sizes} {every * 1e3:>15.1f} {once * 1e3:>8.1f} {every / once:>5.1f}x{'' if met else '  missed'}")
    return 0 if good else 1


if __name__ == "__main__":
    run(main)
