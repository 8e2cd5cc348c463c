"""Maps of what a model sees in rasters of any size: GeoTIFFs in, a cloud-optimised GeoTIFF each out.

    python eval/predict.py --model-obj RUN --input scene.tif --output maps/
    python eval/predict.py --model-obj RUN --input 'scenes/*.tif' --output maps/ --bands B02,B03,B04 --probabilities
    python eval/predict.py --model-obj RUN --input stack.tif --output maps/ --bands 0 1 2 --dates 2021-05-01 2021-07-01
    python eval/predict.py --features --model-obj ENCODER --sensor sentinel2_l2a --input scene.tif --output maps/
    python eval/predict.py mosaic --input 'maps/*_pred.tif' --output mosaic.tif
    python eval/predict.py areas --input mosaic.tif --output areas.csv --reference fields.gpkg --column crop

RUN is a finished decoder evaluation, one of its seed-N.safetensors, or a released fine-tuned model
(prithvi_burn_scars@FILE, prithvi_sen1floods11@FILE, prithvi_crops@FILE). Of ``scene.tif`` come ``scene_pred.tif``
(classes as int16, -1 where nothing was observed; values as float32, NaN there), ``scene_pred.png`` to look at, and on
request ``scene_prob.tif``. With ``--features`` ENCODER is anything that eval/main.py evaluates, and the map
``scene_embedding.tif``. Maps that are done are kept. A file that fails is listed at the end; the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from glob import glob
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

import torch  # noqa: E402

from data_prep.parallel import each  # noqa: E402
from dinov2 import cli, distributed, env  # noqa: E402
from dinov2.config import fingerprint  # noqa: E402
from eval.finetuned import finetuned, is_finetuned  # noqa: E402
from eval.map_areas import areas  # noqa: E402
from eval.map_mosaic import mosaic  # noqa: E402
from eval.scene_encoder import encoder_on  # noqa: E402
from eval.scene_layers import Extras  # noqa: E402
from eval.scene_maps import SUFFIXES, Job, cell_of, make  # noqa: E402
from eval.scenes import Given  # noqa: E402
from eval.series.precision import STORAGE  # noqa: E402
from eval.trained import Trained, join_to_dict, load_trained, only_file  # noqa: E402

RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg")


def rasters(inputs: Sequence[str]) -> list[Path]:
    """The files that files, folders and globs name, but for maps; ValueError where two would get the same map."""
    found: list[Path] = []
    for text in inputs:
        folder = Path(text).is_dir()
        here = sorted(Path(text).glob("[!.]*")) if folder else map(Path, sorted(glob(text)) or [text])
        some = [p for p in here if not folder or p.suffix.lower() in RASTERS]
        some = [p for p in some if len(some) == 1 or not p.stem.endswith(SUFFIXES)]
        if not some:
            raise ValueError(f"--input {text} holds no raster ({', '.join(RASTERS)})")
        found += some
    by_stem = {p.stem: p for p in reversed(found)}
    twin = next((p for p in found if by_stem[p.stem] != p), None)
    if twin:
        raise ValueError(f"{by_stem[twin.stem]} and {twin} would become the same map: rename one")
    return list(by_stem.values())[::-1]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--model-obj", "--model_obj", required=True, help="a finished decoder evaluation or its file; see --features")
    add("--input", nargs="+", required=True, help="rasters, folders, globs")
    add("--output", "--output-dir", "--output_dir", type=Path, required=True, help="folder for the maps")
    add("--bands", nargs="+", help="the model's bands in its order: numbers in the file, from 0, or their names there")
    add("--dates", nargs="+", default=[], help="ISO dates of a series")
    add("--unit", help="of the file's numbers, where training had another: reflectance, db, linear_power ...")
    add("--scale", type=float, help="unit = number * scale + offset (the file's tags, else as in training)")
    add("--offset", type=float, help="see --scale")
    add("--nodata", type=float, help="number that is no observation, beside those that the file declares")
    add("--confidence", action="store_true", help="a second band: the probability of the class, in 1/10000")
    add("--probabilities", action="store_true", help="<stem>_prob.tif: confidence and every class, in 1/10000")
    add("--features", action="store_true", help="embeddings by an encoder, in place of classes")
    add("--sensor", nargs="+", help="of --features: whose images these are, as sentinel2_l2a or sentinel2_l2a:B02,B03")
    add(
        "--statistics",
        type=Path,
        help="of --features: shard set whose statistics serve where the encoder has none",
    )
    add("--precision", choices=STORAGE, default="float32", help="of --features (%(default)s)")
    add("--tile", type=int, help="pixels per side that the model sees at once (size of its training images)")
    add("--overlap", type=int, help="pixels that neighbouring tiles share (a quarter of a tile)")
    add("--batch", type=int, default=8, help="tiles in a pass (%(default)s)")
    add("--workers", type=int, default=1, help="files at the same time, each by a process (%(default)s)")
    add("--device", help="cpu, cuda:0 ... (a GPU where there is one)")
    return p


@lru_cache(maxsize=1)
def job_of(argv: tuple[str, ...]) -> Job:
    """The command line as a job, made once per process; ValueError for options that cannot be."""
    args = parser().parse_args(argv)
    device = distributed.device_named(args.device) if args.device else distributed.device()
    trained, digest = load(args, device)
    joined, side = trained.joined, trained.side
    seen = side if joined.size else joined.window or side  # as much ground as in training
    tile = seen if args.tile is None else args.tile
    shared = tile - joined.stride if joined.stride and tile == joined.window else tile // 4
    overlap = shared if args.overlap is None else args.overlap
    if tile < 1 or not 0 <= overlap < tile or args.batch < 1:
        raise ValueError(f"--tile {tile} --overlap {overlap} --batch {args.batch}: 0 <= overlap < tile, batch > 0")
    cell = cell_of(trained, device)
    if tile % cell or tile - overlap < cell:
        raise ValueError(
            f"--tile {tile} --overlap {overlap}: tiles must be whole cells of {cell}, one of them not shared"
        )
    bands = tuple(filter(None, re.split(r"[\s,\[\]]+", " ".join(args.bands)))) if args.bands else None
    for text in args.dates:
        try:
            date.fromisoformat(text[:10])
        except ValueError as error:
            raise ValueError(f"--dates {text}: write dates as 2021-05-01 ({error})") from error
    given = Given(bands, args.unit, args.scale, args.offset, args.nodata, tuple(args.dates))
    extras = Extras(args.confidence, args.probabilities, args.precision)
    return Job(trained, digest, given, tile, overlap, cell, args.batch, extras, args.output, device)


def load(args: argparse.Namespace, device: torch.device) -> tuple[Trained, str]:
    """What predicts, and what identifies it; ValueError for what does not go together."""
    if args.features:
        if not args.sensor or args.confidence or args.probabilities:
            raise ValueError("--features takes --sensor and neither --confidence nor --probabilities")
        trained = encoder_on(args.model_obj, args.sensor, args.statistics, device)
        return trained, fingerprint([trained.model.digest, join_to_dict(trained.joined)])  # bands, statistics
    if args.sensor or args.statistics or args.precision != "float32":
        raise ValueError("--sensor, --statistics and --precision go with --features")
    if is_finetuned(args.model_obj):
        trained = finetuned(args.model_obj, device)
        return trained, trained.model.digest
    file = only_file(Path(args.model_obj))
    trained = load_trained(file, device)
    if not trained.dense:
        raise ValueError(f"{file} predicts one {trained.kind} per image; maps need a model trained on maps")
    if (args.confidence or args.probabilities) and trained.kind != "segmentation":
        option = "--confidence" if args.confidence else "--probabilities"
        raise ValueError(f"{option}: {file} predicts values, which have none")
    return trained, hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def attempt(shared: tuple[tuple[str, ...], list[Path]], number: int) -> tuple[str, str]:
    """Predict one file: "done", "kept" or "failed", and why."""
    argv, paths = shared
    try:
        return ("done" if make(job_of(argv), paths[number]) else "kept"), ""
    except cli.USER_ERRORS as error:
        return "failed", cli.one_line(error)


COMMANDS = {"mosaic": mosaic, "areas": areas}


def main(argv: list[str]) -> int:
    """Entry point; 1 if a file failed."""
    env.load()
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    args = parser().parse_args(argv)
    job_of(tuple(argv))  # what is wrong with it is wrong for every file
    paths, failed = rasters(args.input), {}
    for number, (word, why) in each(attempt, (tuple(argv), paths), range(len(paths)), args.workers):
        print(f"{paths[number]}: {word}", flush=True)
        if why:
            failed[paths[number]] = why
    for path, why in failed.items():
        print(f"FAILED {path}: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
