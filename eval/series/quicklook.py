"""``eval/embed.py quicklook``: an embedding map as a picture, its three principal components as colours."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio

from eval.series.mosaic import EmbeddingMap

MOST = 1024  # pixels per side that the components are computed from
TAILS = (2, 98)  # percentiles that become black and full colour


def components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[D]`` and the first three principal axes ``[D, 3]`` of ``x [N, D]``; each axis' largest entry positive."""
    mean = x.mean(0)
    axes = np.linalg.eigh(np.cov(x - mean, rowvar=False))[1][:, ::-1][:, :3]
    return mean, axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])


def quicklook(argv: list[str]) -> int:
    """Three bands of 0..255 on the map's grid (0: no observation): principal components, 2 to 98 % stretched."""
    p = argparse.ArgumentParser(prog="eval/embed.py quicklook", description=quicklook.__doc__)
    p.add_argument("--input", type=Path, required=True, help="embedding map; of codes, with <name>_scale.tif beside it")
    p.add_argument("--output", type=Path, required=True, help="GeoTIFF, or .png")
    args = p.parse_args(argv)
    seen = write_quicklook(args.input, args.output)
    print(f"{args.output}: principal components of {seen} pixels as red, green and blue")
    return 0


def write_quicklook(path: Path, output: Path) -> int:
    """The picture of an embedding map; how many pixels its components come from."""
    with EmbeddingMap(path) as source:
        file = source.file
        if file.count < 3:
            raise ValueError(f"{path} has {file.count} bands; a picture needs three")
        step = max(1, -(-max(file.shape) // MOST))
        small = source.read(size=(-(-file.height // step), -(-file.width // step)))
        seen = ~np.isnan(small[..., 0])
        if seen.sum() < 2:
            raise ValueError(f"{path} has no pixel with an embedding")
        mean, axes = components(small[seen].astype(np.float64))
        low, high = np.percentile((small[seen] - mean) @ axes, TAILS, axis=0)  # [3] each
        profile = dict(driver="PNG" if output.suffix == ".png" else "GTiff", count=3, dtype="uint8", nodata=0,
                       crs=file.crs, transform=file.transform, height=file.height, width=file.width)  # fmt: skip
        output.parent.mkdir(parents=True, exist_ok=True)
        picture = np.zeros((3, *file.shape), np.uint8)
        for window in source.windows():
            share = ((source.read(window) - mean) @ axes - low) / np.where(high > low, high - low, 1)
            colour = np.where(np.isnan(share), 0, 1 + np.clip(share, 0, 1) * 254)
            picture[:, *window.toslices()] = np.moveaxis(colour, 2, 0).round()
        with rasterio.open(output, "w", **profile) as look:
            look.write(picture)
    return int(seen.sum())
