"""What the examples share: a command line that is shown and run, and small worlds for ``--quick``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from dinov2.data.shards import ShardSet

PIXEL = 10.0  # metres


def step(script: str, *words: object) -> None:
    """Show and run a command of this project, in this process; ValueError where it does not end with 0."""
    command = [str(word) for word in words]
    print(f"\n$ python {script} {shlex.join(command)}", flush=True)
    code = import_module(script.removesuffix(".py").replace("/", ".")).main(command)
    if code:
        raise ValueError(f"python {script} ended with exit code {code}")


def options(text: str | None) -> argparse.ArgumentParser:
    """Options of every example."""
    p = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="on a small made world, in seconds: nothing is learnt")
    p.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    return p


def write_tif(path: Path, image: np.ndarray, left: float, top: float, bands: Sequence[str] = ()) -> None:
    """A GeoTIFF of ``image [C, H, W]`` with 10 m pixels in UTM zone 31 N; ``bands`` are their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    profile = dict(driver="GTiff", count=count, height=height, width=width, dtype=image.dtype, crs="EPSG:32631",
                   transform=Affine(PIXEL, 0, left, 0, -PIXEL, top))  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
        file.descriptions = tuple(bands) or (None,) * count


def sandbox_tifs(folder: Path, count: int) -> None:
    """``images/KEY.tif`` (four bands of Sentinel-2) and ``masks/KEY.tif`` (land cover) of the procedural world."""
    step("data_prep/main.py", "sandbox", "--out", folder / "shards", "--samples", count, "--sensors", "sentinel2_l2a")
    shards = ShardSet.open([folder / "shards"])
    for sample in (shards.read(shard, i) for shard, number in enumerate(shards.counts) for i in range(number)):
        assert sample.footprint
        left, _, _, top = sample.footprint
        spec = sample.specs["sentinel2_l2a-10m"]
        write_tif(folder / "images" / f"{sample.key}.tif", sample.images[spec.key], left, top, spec.bands)
        write_tif(folder / "masks" / f"{sample.key}.tif", sample.labels["landcover"][None], left, top)
