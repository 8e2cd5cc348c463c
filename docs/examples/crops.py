"""An embedding map of a region from all its dates, and a crop map from it and a few labelled points.

    python docs/examples/crops.py --src $EOSSL_REALDATA/worldcereal/CUBE.nc --output runs/crops
    python docs/examples/crops.py --quick --output runs/quick_crops

``--src`` is a WorldCereal cube of monthly Sentinel-1 and -2 images. Labels of 500 points are read off the crop maps in
it, which are WorldCereal's own predictions, not what grew there. With ``--quick`` fields are made.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np  # noqa: E402
import rasterio  # noqa: E402
from rasterio.warp import transform  # noqa: E402

from data_prep.worldcereal import variables  # noqa: E402
from dinov2.cli import run  # noqa: E402
from dinov2.env import ROOT  # noqa: E402
from docs.examples.steps import PIXEL, options, step, write_tif  # noqa: E402

POINTS = 500
CROPS = {"WINTERCEREALS": "winter cereals", "MAIZE-MAIN": "maize", "TEMPORARYCROPS": "other crops"}  # the first counts
LEFT, TOP, SIDE, FIELD, BANDS = 600000.0, 5600000.0, 24, 6, ("B02", "B03", "B04", "B08")  # of the made fields


def made_fields(folder: Path) -> tuple[np.ndarray, rasterio.Affine, str]:
    """GeoTIFFs of ten dates of fields with one of two crops, and what :func:`labels_of` gives of them."""
    rng = np.random.default_rng(0)
    crop = np.kron(rng.integers(0, 2, (SIDE // FIELD,) * 2), np.ones((FIELD, FIELD), int))  # [H, W]
    for number in range(10):
        green = np.exp(-(((number - np.where(crop, 3, 6)) / 2) ** 2))[None]  # [1, H, W]: it peaks in May or August
        slope = np.array([-200, 200, -400, 2500])[:, None, None]
        image = 800 + slope * green + rng.normal(0, 60, (len(BANDS), SIDE, SIDE))
        clear = np.asarray(rng.random((1, SIDE, SIDE)) > 0.2, np.uint8)
        name = f"2021-{number + 2:02d}-15.tif"
        write_tif(folder / "bands" / name, image.clip(1).astype(np.uint16), LEFT, TOP, BANDS)
        write_tif(folder / "masks" / name, clear, LEFT, TOP)
    words = np.array(["late", "early"])[crop]
    return words, rasterio.Affine(PIXEL, 0, LEFT, 0, -PIXEL, TOP), "EPSG:32631"


def labels_of(cube: Path) -> tuple[np.ndarray, rasterio.Affine, str]:
    """A crop per pixel ``[H, W]`` ("none" where there is none) from a cube's maps, their transform and system."""
    layers, words = variables(cube), None
    for key, crop in reversed(CROPS.items()):
        with rasterio.open(next(path for name, path in layers.items() if f"_{key}_" in name)) as raster:
            found, place, crs = raster.read(1), raster.transform, raster.crs.to_string()
        words = np.full(found.shape, "none", "<U20") if words is None else words
        words[found == 100] = crop  # per cent
    return words, place, crs


def write_points(path: Path, words: np.ndarray, place: rasterio.Affine, crs: str) -> None:
    """``lon, lat, crop`` of random pixels."""
    chosen = np.random.default_rng(0).permutation(words.size)[:POINTS]
    rows, columns = np.unravel_index(chosen, words.shape)
    x, y = place * (columns + 0.5, rows + 0.5)
    lon, lat = transform(crs, "EPSG:4326", x, y)
    lines = [f"{a},{b},{crop}" for a, b, crop in zip(lon, lat, words[rows, columns], strict=True)]
    path.write_text("\n".join(["lon,lat,crop", *lines]) + "\n")


def main(argv: list[str]) -> None:
    """Entry point."""
    p = options(__doc__)
    p.add_argument("--src", type=Path, help="a WorldCereal cube (.nc)")
    p.add_argument("--steps", type=int, default=400, help="of pretraining (%(default)s)")
    args = p.parse_args(argv)
    out, src, steps, batch, block = args.output, args.src, args.steps, 256, 200
    bands, named = "B02,B03,B04,B05,B06,B07,B08,B11,B12", []
    if args.quick:
        src, steps, batch, block, bands = out / "stack", 10, 32, 60, ",".join(BANDS)
        labels, named = made_fields(src), ["--bands", bands, "--s2-offset", "none"]
    elif src is None:
        raise ValueError("give --src, a WorldCereal cube, or --quick")
    else:
        labels = labels_of(src)

    # 1. Tiles of all dates, and every second pixel of them as samples
    step("data_prep/main.py", "timeseries", "--src", src, *named, "--out", out / "tiles")
    step("data_prep/main.py", "pixels", "--src", out / "tiles", "--chip", 1, "--every", 2, "--out", out / "pixels")

    # 2. Pretraining: Barlow Twins on two subsets of the dates of every pixel
    config = ["--config-file", ROOT / "configs/pretrain/barlow_timeseries.yaml", "--output-dir", out / "run"]
    data = [f"data.shards=[{out / 'pixels'}]", "data.workers=0", f"data.batch_size={batch}"]
    step("train.py", *config, *data, f"series.optical_bands=[{bands}]", "series.dates=12", f"train.steps={steps}",
         "optim.warmup_steps=5")  # fmt: skip

    # 3. The embedding map and a picture of it
    step("eval/embed.py", "--model-obj", out / "run", "--input", out / "tiles", "--output", out / "maps",
         "--precision", "int8")  # fmt: skip
    embedding = out / "maps" / "embedding.tif"
    step("eval/embed.py", "quicklook", "--input", embedding, "--output", out / "embedding.png")

    # 4. Embeddings at labelled points: how well crops can be told by few of them, and a map by all
    write_points(out / "points.csv", *labels)
    table = out / "points.parquet"
    step("eval/embed.py", "points", "--input", embedding, "--points", out / "points.csv", "--output", table)
    learn = ["--features", table, "--label", "crop"]
    few = ["--fractions", 0.1, 1, "--block", block, "--seeds", 3]
    step("eval/pixels.py", *learn, "--learners", "linear", "knn", *few, "--output", out / "results")
    step("eval/pixels.py", "map", *learn, "--input", embedding, "--output", out / "crops.tif")


if __name__ == "__main__":
    run(main)
