"""A raster of 20,000 x 20,000 pixels and six bands, predicted in part: memory, time per megapixel, time of the whole.

    python benchmarks/predict.py [--rows 640 1216 1792 2368] [--rounds 1]

The first rows of the raster at its full width, each number of them by a process of its own on one thread: a tiny vision
transformer with a linear decoder, tiles of 256 pixels that overlap by 64, classes and confidence. By default each has
three rows of tiles more than the one before. Times are process times, which other work on the machine makes longer: of
several rounds the least counts. Targets: less than 2 GB, and a time per megapixel that does not grow with the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import rasterio  # noqa: E402
import torch  # noqa: E402
from affine import Affine  # noqa: E402

from dinov2.cli import run  # noqa: E402
from dinov2.data.sample import ImageSpec, Sample  # noqa: E402
from eval.datasets import EvalDataset, Split  # noqa: E402
from eval.encoders import load_model  # noqa: E402
from eval.features import Trial  # noqa: E402
from eval.tasks.decoder import Options, decoder  # noqa: E402
from eval.tasks.encoding import Store  # noqa: E402
from eval.tasks.heads import Wanted  # noqa: E402
from eval.trained import Trained  # noqa: E402

BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")
SPEC = ImageSpec("sentinel2_l2a", 10, BANDS, "uint16", "reflectance", 1e-4)
SIDE, PIECE, TILE = 20_000, 2_000, 256
ENCODER = f"random:vit_tiny?patch_size=16&img_size={TILE}&embed_dim=64&depth=2&num_heads=2&attn_dim=64&attn_heads=2"
MODEL, TARGET = "seed-0.safetensors", 2e9  # bytes


def scene(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 50 pixels of three brightnesses, an image ``[6, side, side]`` and their map ``[side, side]``."""
    rng = np.random.default_rng(seed)
    classes = np.kron(rng.integers(3, size=(-(-side // 50),) * 2), np.ones((50, 50), np.int64))[:side, :side]
    return (1000 + 500 * classes + rng.integers(-200, 200, (6, side, side))).astype(np.uint16), classes


def train(folder: Path) -> Path:
    """A model that has learnt a little, as an evaluation leaves it."""
    splits = {}
    for name, seeds in {"train": range(4), "val": [4], "test": [5]}.items():
        scenes = {f"{name}-{s}": scene(s, TILE) for s in seeds}
        keys = list(scenes)

        def read(i: int, keys: list[str] = keys, scenes: dict = scenes) -> Sample:
            return Sample(keys[i], {SPEC.key: scenes[keys[i]][0]}, {SPEC.key: SPEC})

        def target(i: int, keys: list[str] = keys, scenes: dict = scenes) -> np.ndarray:
            return scenes[keys[i]][1]

        splits[name] = Split(keys, None, read, target)
    data = EvalDataset("blocks", ("dark", "middle", "bright"), splits, (SPEC,), None, None, "0", kind="segmentation")
    trial = Trial.of(load_model(ENCODER), data, torch.device("cpu"))
    (outcome,) = decoder(trial, Store(1 << 30), [Wanted(0, range(4))], Options(decoder="linear", epochs=2))
    assert outcome.trained
    Trained.of(trial, *outcome.trained, False, (ENCODER, 0)).save(folder / MODEL)
    return folder / MODEL


def raster(folder: Path, rows: int) -> Path:
    """The first rows: a virtual raster that repeats one piece of 2,000 x 2,000 pixels."""
    piece = folder / "piece.tif"
    if not piece.exists():
        profile = dict(driver="GTiff", width=PIECE, height=PIECE, count=6, dtype="uint16", tiled=True, compress="lzw")
        place = dict(crs="EPSG:32633", transform=Affine(10, 0, 300_000, 0, -10, 5_800_000))
        with rasterio.open(piece, "w", **profile, **place) as file:
            file.write(scene(6, PIECE)[0])
    pieces = [(x, y, min(PIECE, rows - y)) for y in range(0, rows, PIECE) for x in range(0, SIDE, PIECE)]
    lines = [f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{rows}"><SRS>EPSG:32633</SRS>']
    lines.append("<GeoTransform>300000, 10, 0, 5800000, 0, -10</GeoTransform>")
    for band, name in enumerate(BANDS, 1):
        lines.append(f'<VRTRasterBand dataType="UInt16" band="{band}"><Description>{name}</Description>')
        for x, y, height in pieces:
            box = f'xSize="{PIECE}" ySize="{height}"/>'
            lines.append(f'<SimpleSource><SourceFilename relativeToVRT="1">{piece.name}</SourceFilename>')
            lines.append(f"<SourceBand>{band}</SourceBand>")
            lines.append(f'<SrcRect xOff="0" yOff="0" {box}<DstRect xOff="{x}" yOff="{y}" {box}</SimpleSource>')
        lines.append("</VRTRasterBand>")
    path = folder / f"rows{rows}.vrt"
    path.write_text("\n".join([*lines, "</VRTDataset>"]))
    return path


def measure(model: Path, source: Path, out: Path) -> tuple[float, int]:
    """Seconds of process time and peak bytes of a prediction."""
    command = [sys.executable, str(ROOT / "eval" / "predict.py"), "--model-obj", str(model), "--confidence"]
    command += ["--input", str(source), "--output", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main(argv: list[str]) -> int:
    """Print a row for each number of rows; 1 where memory exceeds the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[640, 1216, 1792, 2368], help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="the least time of so many counts (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = train(folder)
        found: dict[int, list[tuple[float, int]]] = {rows: [] for rows in args.rows}
        for i in range(args.rounds):
            for rows, runs in found.items():
                runs.append(measure(model, raster(folder, rows), folder / str(i)))
    best = {rows: min(seconds for seconds, _ in runs) for rows, runs in sorted(found.items())}
    peak = {rows: max(used for _, used in runs) for rows, runs in found.items()}
    print("| rows | megapixels | s | s per further megapixel | peak MiB |\n|---|---|---|---|---|")
    before = None
    for rows, seconds in best.items():
        each = "" if before is None else f"{per_megapixel(best, before, rows):.2f}"  # the first has the start in it
        print(f"| {rows} | {SIDE * rows / 1e6:.1f} | {seconds:.0f} | {each} | {peak[rows] / 2**20:.0f} |")
        before = rows
    overall = per_megapixel(best, min(best), max(best))
    print(f"\nfrom the first line to the last {overall:.2f} s; the whole: {overall * SIDE**2 / 1e6 / 60:.0f} min")
    return int(max(peak.values()) > TARGET)


def per_megapixel(seconds: dict[int, float], first: int, last: int) -> float:
    """Seconds that each megapixel between two numbers of rows takes."""
    return (seconds[last] - seconds[first]) / (SIDE * (last - first) / 1e6)


if __name__ == "__main__":
    run(main)
