"""From GeoTIFFs to embeddings: a folder of images, an encoder pretrained on them without a label, a map of each.

python docs/examples/geotiffs.py --src my_tiles/ --sensor sentinel2_l2a --output runs/mine
python docs/examples/geotiffs.py --quick --output runs/quick_geotiffs
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dinov2.cli import run  # noqa: E402
from dinov2.env import ROOT  # noqa: E402
from docs.examples.steps import options, sandbox_tifs, step  # noqa: E402


def main(argv: list[str]) -> None:
    """Entry point."""
    p = options(__doc__)
    p.add_argument("--src", type=Path, help="folder of GeoTIFFs; with --quick they are made")
    p.add_argument("--sensor", default="sentinel2_l2a", help="a name of configs/sensors (%(default)s)")
    p.add_argument("--bands", help="of the files, in their order (all of the sensor): B02,B03,...")
    p.add_argument("--date", default="2021-06-01", help="of the images, where their tags do not say so (%(default)s)")
    p.add_argument("--steps", type=int, default=100, help="of pretraining (%(default)s)")
    args = p.parse_args(argv)
    src, out, bands, steps, batch = args.src, args.output, args.bands, args.steps, 64
    if args.quick:
        src, bands, steps, batch = out / "images", "B02,B03,B04,B08", 2, 16
        sandbox_tifs(out, 4)
    elif src is None:
        raise ValueError("give --src, a folder of GeoTIFFs, or --quick")

    # 1. Samples of 32 pixels, checked, with their bands, units and statistics
    files = ["--src", src, "--sensor", args.sensor, *(["--bands", bands] if bands else [])]
    step("data_prep/main.py", "folder", *files, "--date", args.date, "--chip", 32, "--out", out / "chips")
    step("data_prep/main.py", "stats", out / "chips")

    # 2. Pretraining: SimCLR on two views of every chip
    config = ["--config-file", ROOT / "configs/pretrain/quick_check.yaml", "--output-dir", out / "run"]
    data = [f"data.shards=[{out / 'chips'}]", "data.workers=0", f"data.batch_size={batch}"]
    step("train.py", *config, *data, f"train.steps={steps}")

    # 3. An embedding of every patch of every image, with a picture beside it
    maps = ["--model-obj", out / "run", "--sensor", args.sensor, "--input", src, "--output", out / "maps"]
    step("eval/predict.py", "--features", *maps, "--precision", "int8")


if __name__ == "__main__":
    run(main)
