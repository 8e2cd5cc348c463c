"""Indexing a folder of half a million samples: the first time, and from the listing that was kept.

    python benchmarks/datasets.py [--samples 500000]

No pixel is read for it: names, sizes, and one header. Process time, which other work on the machine does not change.
Target: under 10 s the first time, under 1 s from the kept listing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import rasterio  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402

from dinov2.cli import run  # noqa: E402
from eval.datasets import build_dataset  # noqa: E402

SAMPLES = 500_000
CLASSES = 50


def write(folder: Path, samples: int) -> None:
    """Class folders of rasters: one real file, all others names of it."""
    first = folder / "first.tif"
    shape = {"count": 3, "height": 4, "width": 4, "dtype": "uint8"}
    with rasterio.open(first, "w", driver="GTiff", transform=from_origin(0, 0, 1, 1), **shape) as raster:
        raster.write(np.zeros((3, 4, 4), np.uint8))
    old = time.time() - 60  # a folder that has just changed is not kept
    for c in range(CLASSES):
        (folder / f"class{c:02d}").mkdir()
        for i in range(c, samples, CLASSES):
            (folder / f"class{c:02d}" / f"image_{i:07d}.tif").symlink_to(first)
        os.utime(folder / f"class{c:02d}", (old, old))
    os.utime(folder, (old, old))


def main(argv: list[str]) -> int:
    """Print the seconds of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="how many (%(default)s)")
    samples = parser.parse_args(argv).samples
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        (data := Path(name) / "data").mkdir()
        write(data, samples)
        layers = {"rgb": {"path": "{label}/{id}.tif", "sensor": "rgb", "gsd_m": 1}}
        options = {"name": "files", "root": str(data), "layers": layers, "kind": "classification", "label": "label"}
        seconds = []
        for _ in range(2):
            start = time.process_time()
            dataset = build_dataset(options)
            seconds.append(time.process_time() - start)
            assert sum(map(len, dataset.splits.values())) == samples
    first, again = seconds
    print(
        f"{samples} samples: {first:.2f} s the first time, {again:.2f} s from the kept listing ({first / again:.1f}x)"
    )
    return 0


if __name__ == "__main__":
    run(main)
