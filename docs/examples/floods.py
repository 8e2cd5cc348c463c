"""A flood map: an encoder pretrained on a scene, fine-tuned on labels of most of it, and the map of all of it.

    python docs/examples/floods.py --src $EOSSL_REALDATA/sen1floods11 --output runs/floods
    python docs/examples/floods.py --quick --output runs/quick_floods

``--src`` holds Sen1Floods11 chips as S2/*_S2Hand.tif and Labels/*_LabelHand.tif. Squares of them are held out: the
table scores these, beside the same encoder without pretraining. With ``--quick`` it is land cover of a made world.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dinov2.cli import run  # noqa: E402
from dinov2.env import ROOT  # noqa: E402
from docs.examples.steps import options, sandbox_tifs, step  # noqa: E402

BANDS = ["B02", "B03", "B04", "B08"]  # of the made world
FLOODS = {
    "name": "sen1floods11", "images": ["sentinel2_l1c"], "tile": 64, "train": None, "val": 0.2, "test": 0.2,
    "layers": {"s2": {"path": "S2/{id}_S2Hand.tif"}}, "target": {"path": "Labels/{id}_LabelHand.tif"},
    "split_by": "block", "block": 0.0115,
}  # fmt: skip
COVER = {
    "name": "files", "classes": ["water", "forest", "meadow", "crop", "bare", "built"],
    "layers": {"s2": {"path": "images/{id}.tif", "sensor": "sentinel2_l2a", "gsd_m": 10, "bands": BANDS}},
    "target": {"path": "masks/{id}.tif", "ignore": [255]},
}  # fmt: skip
TASK = {"name": "decoder", "decoder": "fcn", "decoder_options": {"channels": 64}, "train": "finetune"}


def main(argv: list[str]) -> None:
    """Entry point."""
    p = options(__doc__)
    p.add_argument("--src", type=Path, help="folder of Sen1Floods11 chips")
    p.add_argument("--steps", type=int, default=200, help="of pretraining (%(default)s)")
    p.add_argument("--epochs", type=int, default=12, help="of fine-tuning (%(default)s)")
    args = p.parse_args(argv)
    out, src, dataset, steps, epochs = args.output, args.src, FLOODS, args.steps, args.epochs
    images, numbers = "S2", ["--sensor", "sentinel2_l1c", "--baseline-offset", "none", "--chip", 64]
    if args.quick:
        src, dataset, steps, epochs = out, COVER, 2, 1
        images, numbers = "images", ["--sensor", "sentinel2_l2a", "--bands", ",".join(BANDS), "--chip", 32]
        numbers += ["--date", "2021-06-01"]
        sandbox_tifs(out, 6)
    elif src is None:
        raise ValueError("give --src, a folder of Sen1Floods11 chips, or --quick")

    # 1. Pretraining on the images alone
    step("data_prep/main.py", "folder", "--src", src / images, *numbers, "--out", out / "chips")
    config = ["--config-file", ROOT / "configs/pretrain/quick_check.yaml", "--output-dir", out / "run"]
    step("train.py", *config, f"data.shards=[{out / 'chips'}]", f"train.steps={steps}", "data.workers=0")

    # 2. Fine-tuning with a decoder, with and without it, tested on squares that neither has seen the labels of
    task = TASK | {"epochs": epochs, "learning_rates": [1e-3], "crop": "random", "crop_size": 32}
    about = {"dataset": dataset | {"root": str(src)}, "task": task, "model": {"size": "tile"}}
    (out / "map.yaml").write_text(yaml.safe_dump(about))
    models = f"{out / 'run'};random:{out / 'run'}"
    step("eval/main.py", "--model-obj", models, "--config-obj", out / "map.yaml", "--output-dir", out / "eval")

    # 3. The map of everything, with a picture beside it
    trained = out / "eval" / "run" / "map"
    step("eval/predict.py", "--model-obj", trained, "--input", src / images, "--output", out / "maps")


if __name__ == "__main__":
    run(main)
