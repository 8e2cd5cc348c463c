"""What pretraining takes from 8 to 512 GPUs: memory, traffic, time, checkpoints; by arithmetic, and its measured parts.

    python benchmarks/scaling.py                      # the tables of docs/scaling.md, in seconds
    python benchmarks/scaling.py --index data/majortom   # an index (no shards) of a set like MajorTOM, 23 TB

The tables are computed by dinov2.train.plan from configs/pretrain/majortom_512.yaml with other encoders and ranks. A
checkpoint is written, read and exported for real, replicated on one process, and its bytes are held against the plan's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import torch  # noqa: E402

from dinov2 import cli  # noqa: E402
from dinov2.data.sample import ImageSpec  # noqa: E402
from dinov2.data.shards.index import stats_to_json, write_index  # noqa: E402
from dinov2.data.stats import BandStats  # noqa: E402
from dinov2.train import checkpoint, schema  # noqa: E402
from dinov2.train.build import build_objective  # noqa: E402
from dinov2.train.optim import build_optimizer, moments  # noqa: E402
from dinov2.train.plan import Plan, plan  # noqa: E402

CONFIG = ROOT / "configs" / "pretrain" / "majortom_512.yaml"
SHARDS, SAMPLES, BYTES = 100_000, 360, 230_000_000  # 36 million chips of 264 pixels, 23 TB
ENCODERS = {"vit_small": 64, "vit_base": 64, "vit_large": 24, "vit_giant2": 6}  # samples per GPU
RANKS = (8, 64, 512)
GIB = 2**30


def synthetic_index(folder: Path, shards: int = SHARDS) -> None:
    """The index of a set of MajorTOM's size; there are no shards."""
    fine = ImageSpec("sentinel2_l2a", 10, ("B02", "B03", "B04", "B08"), "uint16", "reflectance", 1e-4, 0.0, 0)
    coarse = ImageSpec("sentinel2_l2a", 20, ("B05", "B06", "B07", "B8A", "B11", "B12"), "uint16", "reflectance", 1e-4)
    names = [(spec.sensor, band) for spec in (fine, coarse) for band in spec.bands]
    stats = {name: BandStats("reflectance", 10**12, 0.2, 1e10, 0.0, 1.6) for name in names}
    row = {"samples": SAMPLES, "bytes": BYTES, "sidecar_bytes": 40_000, "images": [fine.key, coarse.key]}
    place = {"crs": None, "bounds": None, "combinations": {f"{fine.key} {coarse.key}": SAMPLES}}
    rows = [{"name": f"shard-{n:06d}.tar", "sha256": f"{n:064x}", **row, **place} for n in range(shards)]
    info = {"images": {spec.key: spec.to_dict() for spec in (fine, coarse)}, "stats": stats_to_json(stats)}
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder, rows, {**info, "labels": {}, "provenance": {"source": "synthetic"}, "licence": "none"})


def plans() -> Iterator[tuple[str, str, Plan]]:
    """Encoder, mode and plan of every line of the table."""
    for arch, share in ENCODERS.items():
        for ranks in RANKS:
            for mode in ("ddp", "fsdp"):
                swiglu = ["model.ffn=swiglu"] if arch == "vit_giant2" else []
                batch = f"data.batch_size={share * ranks}"
                cfg = schema.load(CONFIG, [f"model.arch={arch}", f"train.parallel={mode}", batch, *swiglu])
                with torch.device("meta"):
                    objective = build_objective(cfg)
                yield arch, mode, plan(cfg, ranks, objective, SHARDS * SAMPLES, BYTES / SAMPLES)


def print_tables() -> None:
    """Memory and traffic per GPU, speed and what is read."""
    columns = "encoder | GPUs | mode | state, GiB | activations, GiB | traffic per step, GiB | compute, s | traffic, s"
    print(f"| {columns} | images/s | read, GB/s | checkpoint, GiB |\n|{'---|' * 11}")
    for arch, mode, p in plans():
        memory = [p.state_bytes / GIB, p.activation_bytes / GIB, p.traffic_bytes_per_step / GIB]
        seconds = [p.compute_seconds_per_step, p.traffic_seconds_per_step]
        numbers = [f"{x:.2f}" for x in memory] + [f"{x:.3f}" for x in seconds]
        rates = [
            f"{p.images_per_second:,.0f}",
            f"{p.read_bytes_per_second / 1e9:.2f}",
            f"{p.checkpoint_bytes / GIB:.1f}",
        ]
        print("| " + " | ".join([arch, str(p.ranks), mode, *numbers, *rates]) + " |")


def timed(function, *args) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function(*args)
    return time.perf_counter() - begin


def print_checkpoint(arch: str = "vit_small") -> None:
    """A real checkpoint of one process: bytes, and seconds to write, to copy before an asynchronous write, to read."""
    cfg = schema.load(CONFIG, [f"model.arch={arch}"])
    objective = build_objective(cfg)
    optimizer = build_optimizer(objective, {**cfg.optim, "lr": 1e-4})
    state = {f"objective.{k}": v for k, v in objective.state_dict().items()}
    state |= {f"optimizer.{k}": v for k, v in moments(optimizer).items()}
    teacher = next(name for name, module in objective.named_modules() if module is objective.export())
    with tempfile.TemporaryDirectory() as folder:
        with checkpoint.Saver(Path(folder), 1, 0, asynchronous=False) as saver:
            write = timed(saver.save, 1, state, {})
        saved = checkpoint.latest(Path(folder))
        assert saved is not None
        size = sum(p.stat().st_size for p in saved.iterdir())
        whole, encoder = timed(checkpoint.read, saved), timed(checkpoint.read, saved, f"objective.{teacher}.")
        with checkpoint.Saver(Path(folder), 1, 0, asynchronous=True) as saver:
            copy = timed(saver.save, 2, state, {})
    planned = 12 * sum(p.numel() for p in objective.parameters() if p.requires_grad)
    planned += 4 * sum(p.numel() for p in objective.parameters() if not p.requires_grad)
    print(
        f"\ncheckpoint of {arch}: {size / GIB:.2f} GiB, planned {planned / GIB:.2f}; write {write:.1f} s, of which the"
    )
    print(f"run waits {copy:.1f} s where it is asynchronous; read whole {whole:.1f} s, encoder alone {encoder:.1f} s")


def main(argv: list[str]) -> None:
    """Entry point."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--index", type=Path, metavar="FOLDER", help="write a synthetic index of 23 TB, then stop")
    args = p.parse_args(argv)
    if args.index:
        synthetic_index(args.index)
        return
    print_tables()
    print_checkpoint()


if __name__ == "__main__":
    cli.run(main)
