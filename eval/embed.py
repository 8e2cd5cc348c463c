"""Embedding maps of pixel time series: tile folders in, a cloud-optimised GeoTIFF out.

    python eval/embed.py --model-obj runs/barlow_timeseries --input tiles/ --output maps/ --precision int8
    python eval/embed.py stitch --input representations/ --tiles retiled_d_pixel/ --reference area.tif --output map.tif
    python eval/embed.py points --input maps/embedding.tif --points fields.gpkg --output fields.parquet
    python eval/embed.py quicklook --input maps/embedding.tif --output look.tif
    python eval/embed.py series --model-obj runs/barlow_timeseries --input data/worldcereal --output labelled.parquet

The first form resumes where it was stopped. A tile that fails is listed at the end, the others are kept, and the exit
code is 1. ``--devices cuda:0,cpu:20`` is one queue for a GPU and twenty processes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

import numpy as np  # noqa: E402

from dinov2 import __version__, cli, env  # noqa: E402
from dinov2.data.series_tiles import open_tile, tile_folders  # noqa: E402
from eval.geotiff import tags_of  # noqa: E402
from eval.series import mosaic  # noqa: E402
from eval.series.encode import BATCH, COMPUTE  # noqa: E402
from eval.series.models import load_model  # noqa: E402
from eval.series.precision import STORAGE  # noqa: E402
from eval.series.quicklook import quicklook  # noqa: E402
from eval.series.stitch import stitch  # noqa: E402
from eval.series.tables import points, series  # noqa: E402
from eval.series.tiles import Job, devices_of, embed_tiles  # noqa: E402

MAP = "embedding.tif"


def parser() -> argparse.ArgumentParser:
    """The command line of the first form."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--model-obj", "--model_obj", required=True, help="a run, random:RUN, or btfm_v1@FILE and other released ones")
    add("--input", type=Path, required=True, help="folder of tile folders, or one of them")
    add("--output", type=Path, required=True, help=f"folder for {MAP}, parts and logs")
    add("--precision", choices=STORAGE, default="float32", help="(%(default)s)")
    add("--compute", choices=COMPUTE, default="float32", help="number type of matrix products (%(default)s)")
    add("--dims", type=int, help="first dimensions to keep; all by default")
    add("--devices", default="cpu:1", help="workers: cuda:INDEX and cpu:PROCESSES with commas (%(default)s)")
    defaults = ", ".join(f"{size} on {kind}" for kind, size in BATCH.items())
    add("--batch-pixels", type=int, help=f"pixels in a pass; part of the result's last bits ({defaults})")
    return p


def embed_region(argv: list[str]) -> int:
    """The first form; 1 if a tile failed."""
    args = parser().parse_args(argv)
    if args.batch_pixels is not None and args.batch_pixels < 1:
        raise ValueError(f"--batch-pixels {args.batch_pixels} must be at least 1")
    model, folders = load_model(args.model_obj), tile_folders(args.input)
    dims = model.encoder.embed_dim if args.dims is None else args.dims
    if not 0 < dims <= model.encoder.embed_dim:
        raise ValueError(f"--dims {dims}: {model.name} has {model.encoder.embed_dim} dimensions")
    job = Job(args.model_obj, model.digest, args.precision, args.compute, args.batch_pixels, dims, args.output)
    failed = [r for r in embed_tiles(job, folders, devices_of(args.devices)) if r.error]
    for result in failed:
        print(f"FAILED {result.tile.name}: {result.error}", file=sys.stderr)
    done = [folder for folder in folders if job.done(folder)]
    if done:
        path = args.output / MAP
        assemble(job, done, path, model.name)
        print(f"{path}: {len(done)} of {len(folders)} tiles; {accuracy(job, done)}")
    return 1 if failed else 0


def assemble(job: Job, folders: list[Path], path: Path, name: str) -> None:
    """The map of all tiles that are done; written again only where there are more of them, or other ones."""
    tags = {"model": name, "model_digest": job.digest, "compute": job.compute, "software": f"eo-ssl {__version__}"}
    tags |= {"tiles": str(len(folders)), "parts_digest": job.parts_digest(folders)}
    if path.is_file() and tags_of(path).items() >= tags.items():
        return
    tiles = [open_tile(folder) for folder in folders]
    grid = mosaic.region_of(tiles)
    dates = sorted({d for tile in tiles for layer in tile.layers.values() for d in layer.dates})
    tags |= {"first_date": dates[0], "last_date": dates[-1], "sources": json.dumps(tiles[0].provenance)}
    pieces = {}
    for kind in ("values", "scales") if job.precision == "int8" else ("values",):
        arrays = [np.load(job.part(folder, kind), mmap_mode="r") for folder in folders]
        pieces[kind] = [mosaic.piece_of(tile, grid, array) for tile, array in zip(tiles, arrays, strict=True)]
    mosaic.write_embedding(path, pieces["values"], pieces.get("scales", []), grid, job.precision, tags)


def accuracy(job: Job, folders: list[Path]) -> str:
    """How far the stored embeddings are from those computed, over all tiles."""
    totals = [json.loads(job.part(folder, "report").read_text())["total"] for folder in folders]
    total = {key: sum(one[key] for one in totals) for key in totals[0]}
    error = (total["error"] / max(total["power"], 1e-30)) ** 0.5
    return (
        f"{total['pixels']:.0f} pixels as {job.precision}, relative error {error:.2e}, "
        f"mean cosine {total['cosine'] / total['pixels']:.6f}"
    )


COMMANDS = {"stitch": stitch, "points": points, "quicklook": quicklook, "series": series}


def main(argv: list[str]) -> int:
    """Entry point."""
    env.load()
    command = COMMANDS.get(argv[0]) if argv else None
    return command(argv[1:]) if command else embed_region(argv)


if __name__ == "__main__":
    cli.run(main)
