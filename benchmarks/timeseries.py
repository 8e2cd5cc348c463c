"""Pixel series: preparing and embedding in groups beside one pixel at a time, the share of the machine's matrix rate
that embedding reaches, and memory and time per megapixel of a region.

    python benchmarks/timeseries.py             # about five minutes
    python benchmarks/timeseries.py --quick

One thread, process time, in alternation. The other form is how BTFM v1.0 feeds its encoder, restated: a loop over the
tile filters its pixels; for each the valid dates are found, 40 of each sensor drawn (with repetition where there are
fewer), standardised and given the day of the year; batches are of 256, as there. Encoders see 40 dates of each sensor
in both forms.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import rasterio  # noqa: E402
import torch  # noqa: E402
from affine import Affine  # noqa: E402

from dinov2.cli import run  # noqa: E402
from dinov2.data.sample import ImageSpec  # noqa: E402
from dinov2.data.series import Observed, observe  # noqa: E402
from dinov2.data.series_tiles import Layer, Tile, name_of, open_tile, write_tile  # noqa: E402
from dinov2.models.export import save_export  # noqa: E402
from dinov2.models.timeseries import SeriesEncoder  # noqa: E402
from dinov2.models.zoo.tessera import INPUTS, RELEASES  # noqa: E402
from eval.series.encode import BATCH, batches, embed, groups  # noqa: E402
from eval.series.models import SeriesModel, published  # noqa: E402
from eval.series.tiles import Job, Worker  # noqa: E402
from tests.tiny_series import CRS  # noqa: E402

DATES = {"bands": 70, "sar_ascending": 30, "sar_descending": 30}  # of a year
CLEAR = 0.35
DRAWN = 40  # dates of each sensor in the original
LOOP_BATCH = 256  # of the original on a CPU
ENCODERS = {"tiny": (32, 1, 8), "small": (128, 4, 32), "BTFM v1.0": (512, 8, 128)}  # width, depth, dimensions
PEAK_H200 = 989e12  # dense bf16 operations per second, as published
AIM = 0.4  # share of it that is assumed
TILE_110 = 10980**2  # pixels of a Sentinel-2 tile

SPECS = {
    "bands": ImageSpec("sentinel2_l2a", 10, tuple(INPUTS["s2"][1:]), "uint16", "reflectance", 1e-4, 0.0, 0),
    **{
        f"sar_{orbit}": ImageSpec("sentinel1_rtc", 10, (f"VV_{orbit}", f"VH_{orbit}"), "int16", "db", 0.01, 0.0, -32768)
        for orbit in ("ascending", "descending")
    },
}


def year(name: str) -> tuple[str, ...]:
    """Dates of a layer, spread over a year."""
    return tuple(str(np.datetime64("2021-01-01") + int(d)) for d in np.linspace(0, 364, DATES[name]))


def arrays(side: int) -> dict[str, np.ndarray]:
    """A tile's arrays, as noisy as the real ones are cloudy."""
    rng = np.random.default_rng(0)
    out = {"bands": rng.integers(1, 6000, (DATES["bands"], side, side, 10), np.uint16)}
    out["masks"] = (rng.random((DATES["bands"], side, side)) < CLEAR).astype(np.uint8)
    for name in ("sar_ascending", "sar_descending"):
        out[name] = rng.integers(-2500, -500, (DATES[name], side, side, 2), np.int16)
    return out


def observed(cube: dict[str, np.ndarray]) -> list[Observed]:
    """The arrays as an open tile gives them."""
    flat = {n: x.reshape(len(x), -1, x.shape[-1]) for n, x in cube.items() if n != "masks"}
    clear = cube["masks"].reshape(len(cube["masks"]), -1) == 1
    return [Observed(x, SPECS[n], year(n), clear if n == "bands" else None) for n, x in flat.items()]


def model_of(width: int, depth: int, dim: int, **options: Any) -> SeriesModel:
    """An encoder with random weights and published statistics."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": dim, "width": width, "depth": depth, "num_heads": 4}
    encoder = SeriesEncoder(inputs=INPUTS, **sizes | options).eval()
    return SeriesModel("random", "random", encoder, published(RELEASES["btfm_v1"].normalisation))


def grouped(model: SeriesModel, images: list[Observed]) -> int:
    """All batches of the grouped form, not encoded; their number."""
    pixels = images[0].stored.shape[1]
    tracks = {n: observe(images, w, pixels, model.normalisation, "") for n, w in model.encoder.inputs.items()}
    return sum(1 for _ in batches(model.encoder, tracks, BATCH["cpu"]))


class OnePixel(torch.utils.data.Dataset):
    """The original data path: pixels are filtered in a loop over the tile, then sampled one by one."""

    def __init__(self, cube: dict[str, np.ndarray]) -> None:
        self.cube, self.draw = cube, np.random.default_rng(0)
        self.sar = np.concatenate([cube["sar_ascending"], cube["sar_descending"]])  # [T, h, w, 2]
        self.days = {n: np.array([d.timetuple().tm_yday for d in map(date.fromisoformat, year(n))]) for n in DATES}
        self.sar_days = np.concatenate([self.days["sar_ascending"], self.days["sar_descending"]])
        side = cube["masks"].shape[1:]
        self.pixels = [(i, j) for i in range(side[0]) for j in range(side[1]) if self.usable(i, j)]

    def usable(self, i: int, j: int) -> bool:
        """Whether a pixel has any optical number and a date of each sensor."""
        sar = (self.sar[:, i, j] != SPECS["sar_ascending"].nodata).any(1)
        return bool(self.cube["bands"][:, i, j].any() and self.cube["masks"][:, i, j].sum() and sar.sum())

    def __len__(self) -> int:
        return len(self.pixels)

    def series(self, numbers: np.ndarray, days: np.ndarray, valid: np.ndarray, spec: ImageSpec) -> np.ndarray:
        """``DRAWN`` of the valid dates, standardised, the day of the year behind the bands ``[DRAWN, C + 1]``."""
        chosen = np.sort(self.draw.choice(np.flatnonzero(valid), DRAWN, replace=valid.sum() < DRAWN))
        table = RELEASES["btfm_v1"].normalisation[spec.sensor]
        mean, std = np.array([table[band] for band in spec.bands], np.float32).T
        x = (numbers[chosen].astype(np.float32) * spec.scale + spec.offset - mean) / (std + 1e-9)
        return np.concatenate([x, days[chosen, None]], 1).astype(np.float32)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        i, j = self.pixels[number]
        optical = self.cube["bands"][:, i, j], self.days["bands"], self.cube["masks"][:, i, j] != 0
        sar = self.sar[:, i, j]
        radar = sar, self.sar_days, (sar != SPECS["sar_ascending"].nodata).any(1)
        return self.series(*optical, SPECS["bands"]), self.series(*radar, SPECS["sar_ascending"])


@torch.inference_mode()
def loop(model: SeriesModel, cube: dict[str, np.ndarray], encode: bool) -> None:
    """The original formulation over a tile."""
    for s2, s1 in torch.utils.data.DataLoader(OnePixel(cube), LOOP_BATCH):
        if encode:
            model.encoder({"s2": s2[..., :-1], "s2_days": s2[..., -1], "s1": s1[..., :-1], "s1_days": s1[..., -1]})


def seconds(do: Callable[[], object]) -> float:
    """Process time."""
    begin = time.process_time()
    do()
    return time.process_time() - begin


def alternated(a: Callable[[], object], b: Callable[[], object], times: int) -> tuple[float, float]:
    """The least process time of each."""
    pairs = [(seconds(a), seconds(b)) for _ in range(times)]
    return min(p[0] for p in pairs), min(p[1] for p in pairs)


def flops(encoder: SeriesEncoder, dates: dict[str, int]) -> int:
    """Multiply-adds x 2 of one pixel with so many dates per branch: embedding, blocks, GRU, fusion."""
    c = encoder.config
    w, total = c["width"], 0
    for name, t in dates.items():
        bands = len(c["inputs"][name]) - 1
        block = 4 * w * w + 2 * w * c["hidden"] + 2 * t * w
        total += t * (bands * w + w * w + c["depth"] * block + 6 * w * w)
        total += w * c["embed_dim"]
    return 2 * total


def gemm_rate() -> float:
    """Operations per second of a large float32 product on this thread, the best of five."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(seconds(lambda: a @ a) for _ in range(5))


def embedding_work(model: SeriesModel, images: list[Observed]) -> float:
    """Operations that embedding the tile takes, pixels padded to their bins included, filled-up batches not."""
    pixels = images[0].stored.shape[1]
    tracks = [observe(images, w, pixels, model.normalisation, "") for w in model.encoder.inputs.values()]
    found = groups(tracks, model.encoder.bins)
    return sum(len(m) * flops(model.encoder, dict(zip(("s2", "s1"), sizes, strict=True))) for m, sizes in found)


def speed(side: int, times: int) -> None:
    """Preparing, and preparing and embedding with three sizes of encoder on fewer and fewer pixels."""
    cube, small = arrays(side), model_of(32, 1, 16)
    images, pixels = observed(cube), side * side
    ours, theirs = alternated(lambda: grouped(small, images), lambda: loop(small, cube, False), times)
    print(f"prepare: {pixels / ours:,.0f} pixels/s, one by one {pixels / theirs:,.0f}: {theirs / ours:.1f} times")
    for (name, (width, depth, dim)), part in zip(ENCODERS.items(), (side // 2, side // 4, 16), strict=True):
        cube = {layer: array[:, :part, :part].copy() for layer, array in cube.items()}
        images, pixels = observed(cube), part * part
        options = {"hidden": 4096, "num_heads": 8} if width == 512 else {}  # as published
        model = model_of(width, depth, dim, bins=(DRAWN,), padding="repeat", days="raw", **options)  # as BTFM v1.0
        group = partial(embed, model, images, torch.device("cpu"), "")
        ours, theirs = alternated(group, partial(loop, model, cube, True), times)
        half, rate, work = seconds(partial(group, compute="bf16")), gemm_rate(), embedding_work(model, images)
        print(
            f"{name}, {work / pixels / 1e6:.1f} MFLOP per pixel: {pixels / ours:,.0f} pixels/s, one by one "
            f"{pixels / theirs:,.0f}: {theirs / ours:.2f} times; {work / ours / rate:.0%} of {rate / 1e9:.0f} GFLOP/s; "
            f"in bf16 {pixels / half:,.0f} pixels/s, {ours / half:.2f} times"
        )
    with torch.device("meta"):
        work = flops(RELEASES["btfm_v1"].build(), {"s2": DRAWN, "s1": DRAWN}) * TILE_110
    hours = work / PEAK_H200 / AIM / 3600
    print(f"BTFM v1.0, 110 x 110 km: {work:.2e} operations, {hours:.1f} h at {AIM:.0%} of an H200's peak")


def region(side: int, tiles: int) -> None:
    """Memory and time of tiles one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        cube, root = arrays(side), Path(folder)
        model = model_of(16, 1, 8)
        save_export(root / "e.safetensors", model.encoder, normalisation=model.normalisation.to_dict(), info={})
        job = Job(str(root / "e.safetensors"), "", "int8", "float32", None, 8, root / "out")
        worker, base = Worker(job, 0, "cpu"), 0
        for number in range(tiles):
            corners = (side * number, 0, side * (number + 1), side)
            place = (10.0, 0.0, 6e5 + 10 * side * number, 0.0, -10.0, 5.6e6)
            layers = {n: Layer(SPECS[n], year(n)) for n in DATES}
            tile = Tile(root / name_of(corners), corners, CRS, place, layers, {})
            write_tile(tile, cube)
            profile = dict(driver="GTiff", count=1, dtype="uint8", crs=CRS, transform=Affine(*place))
            with rasterio.open(tile.folder / "roi.tiff", "w", height=side, width=side, **profile) as file:
                file.write(np.ones((1, side, side), np.uint8))
            base = base or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            spent = seconds(partial(worker.embed, open_tile(tile.folder)))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"tile {number}: {spent / side**2 * 1e6:.0f} s per megapixel, {(peak - base) / 1024:.0f} MiB more")
        hours = spent / side**2 * TILE_110 / 3600
        print(f"10,980 x 10,980 pixels on one such thread: {hours:.1f} h with this tiny encoder")


def main(argv: list[str]) -> None:
    """Entry point."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="smaller and once")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    region(64 if args.quick else 256, 2 if args.quick else 4)  # first: the memory of the other would hide its own
    speed(48 if args.quick else 128, 1 if args.quick else 2)


if __name__ == "__main__":
    run(main)
