"""One optimiser step of every objective: part by part, or as a whole on any device; DINO beside its plain formulation.

    python benchmarks/step.py                 # the six objectives, then DINO beside plain DINO: about two minutes
    python benchmarks/step.py --only dino     # one of simclr, moco, byol, barlow, mae, dino, plain
    python benchmarks/step.py --device cuda --attention sdpa xformers --compile      # rows of the table of whole steps

By part: process time on one thread, ViT-S/14, B = 2 images. Whole steps: wall time of the trainer's own step on one
batch, without the loader, in the number format that train.precision=auto chooses. Every measurement has a process of
its own, so that peaks of memory are its own. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.plain_dino import NOW, ROWS, B, dino_steps, peak_mib, prototype_loss  # noqa: E402
from benchmarks.timeline import Timeline  # noqa: E402
from dinov2.cli import run  # noqa: E402
from dinov2.data.sample import ImageSpec, Sample  # noqa: E402
from dinov2.data.shards import write_shards  # noqa: E402
from dinov2.data.views import render  # noqa: E402
from dinov2.train.build import Parts, build  # noqa: E402
from dinov2.train.flops import finish, peak_flops, sample_flops  # noqa: E402
from dinov2.train.monitor import peak_bytes  # noqa: E402
from dinov2.train.optim import clip_gradients  # noqa: E402
from dinov2.train.trainer import step  # noqa: E402
from tests.tiny import schema, write_config  # noqa: E402

NAMES = ("simclr", "moco", "byol", "barlow", "mae", "dino")
PARTS = ("data", "embed", "blocks", "heads", "losses", "optimiser", "EMA")
SIZED = {"dino": {"centering": "sinkhorn"}, "mae": {"size": 224, "decoder_dim": 512, "decoder_depth": 8}}
CLIP = 3.0
FASTER, SMALLER = 3.0, 5.0  # targets: times in CPU, times in memory of the prototype loss


def samples(count: int) -> Iterator[Sample]:
    """Chips of ten bands, 264 pixels at 10 m."""
    fine, coarse = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
    rng = np.random.default_rng(0)
    for i in range(count):
        images, specs = {}, {}
        for gsd, bands in ((10, fine), (20, coarse)):
            spec = ImageSpec("sentinel2_l2a", gsd, bands, "uint16", "reflectance", 1e-4, 0.0, 0)
            images[spec.key] = rng.integers(500, 4000, (len(bands), 2640 // gsd, 2640 // gsd)).astype(np.uint16)
            specs[spec.key] = spec
        yield Sample(f"s{i}", images, specs)


@contextmanager
def parts_of(name: str, model: str, batch: int, **train: bool) -> Iterator[Parts]:
    """A run of the objective ``name`` on chips made for it."""
    raw = {
        "data": {"batch_size": batch, "workers": 0},
        "model": {"arch": model},
        "objective": {"name": name, **SIZED.get(name, {})},
        "train": {"steps": 1000, **train},
    }
    with tempfile.TemporaryDirectory() as folder:
        write_shards(samples(2 * batch), folder)
        raw["data"]["shards"] = [folder]
        yield build(schema.load(write_config(Path(folder) / "step.yaml", raw)))


def by_part(name: str, steps: int = 2) -> dict[str, float]:
    """Seconds by part, GFLOP and peak memory of an objective's step, data included; the last of ``steps`` counts."""
    with parts_of(name, "vit_small", B) as parts:
        objective, batches = parts.objective, parts.stream.batches(0)
        timeline = Timeline()
        timeline.watch(parts_by_module(objective))
        before = peak_mib()
        for _ in range(steps):
            timeline.seconds.clear()
            with timeline.during("data"):
                batch = render(next(batches), "cpu")
            terms = objective(batch, NOW)
            terms["loss"].backward()
            with timeline.during("optimiser"):
                clip_gradients(objective.named_parameters(), CLIP)
                parts.optimizer.step()
                parts.optimizer.zero_grad(set_to_none=True)
            with timeline.during("EMA"):
                objective.after_step(NOW)
        return {**timeline.seconds, "GFLOP": B * (sample_flops(objective) or 0) / 1e9, "MiB": peak_mib() - before}


def parts_by_module(objective: nn.Module) -> dict[nn.Module, str]:
    """What the time of a module counts for; the time of all others counts for the losses."""
    found: dict[nn.Module, str] = {}
    for name, module in objective.named_modules():
        last = name.split(".")[-1]
        if last == "patch_embed":
            found[module] = "embed"
        elif name.split(".")[-2:-1] in (["blocks"], ["decoder_blocks"]):
            found[module] = "blocks" if "decoder" not in name else "heads"
        elif last in ("projector", "predictor", "mlp") and "blocks" not in name or last == "head":
            found[module] = "heads"
    return found


def whole(name: str, model: str, batch: int, compiled: bool, steps: int) -> dict[str, float]:
    """Seconds of a step, its operations, utilisation of the device (MFU) and peak memory in GiB.

    The first steps, which compile and choose kernels, do not count.
    """
    with parts_of(name, model, batch, compile=compiled) as parts:
        again = itertools.repeat(next(parts.stream.batches(0)))
        for at in range(3 + steps):
            if at == 3:
                begin = time.perf_counter()
            finish(step(parts, again, NOW, CLIP).terms["loss"])
        seconds = (time.perf_counter() - begin) / steps
        flops = batch * (sample_flops(parts.objective) or 0)
        peak = peak_flops(parts.device, parts.precision.dtype)
        memory = peak_bytes(parts.device) / 2**30
        return {"seconds": seconds, "TFLOP": flops / 1e12, "MFU": flops / seconds / peak, "GiB": memory}


JOBS = {job.__name__: job for job in (by_part, whole, dino_steps, prototype_loss)}


def apart(job: str, environment: dict[str, str] | None = None, **options: str | int | bool) -> dict[str, float]:
    """The job's numbers, from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--job", job, json.dumps(options)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {}))
    return json.loads(done.stdout.splitlines()[-1])


def table_by_part(names: list[str]) -> None:
    """Milliseconds of every part, a row for each objective."""
    print("ms       " + "".join(f"{part:>10}" for part in (*PARTS, "all", "GFLOP", "MiB")))
    for name in names:
        row = apart("by_part", name=name)
        times = [row.get(part, 0.0) * 1e3 for part in PARTS]
        print(f"{name:9}" + "".join(f"{x:>10.0f}" for x in (*times, sum(times), row["GFLOP"], row["MiB"])), flush=True)


def table_of_whole_steps(args: argparse.Namespace, names: list[str]) -> None:
    """Markdown rows: every model, objective and attention kernel, eager and, if asked for, compiled."""
    print("| model | objective | attention | compiled | B | ms | images/s | TFLOP | MFU | GiB |")
    print("|" + "---|" * 10)
    for model, name, kernel in itertools.product(args.models, names, args.attention):
        environment = {"EOSSL_ATTENTION": kernel} | ({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {})
        for compiled in (False, True)[: 1 + args.compile]:
            sizes = {"name": name, "model": model, "batch": args.batch, "compiled": compiled, "steps": args.steps}
            row = apart("whole", environment, **sizes)
            said = f"| {model} | {name} | {kernel} | {'yes' if compiled else 'no'} | {args.batch} "
            said += f"| {row['seconds'] * 1e3:.1f} | {args.batch / row['seconds']:.1f} | {row['TFLOP']:.3g} "
            print(said + f"| {row['MFU']:.0%} | {row['GiB']:.2f} |", flush=True)


def side_by_side() -> bool:
    """DINO beside plain DINO: whether all targets are met."""
    new, old = (apart("dino_steps", plain=plain) for plain in (False, True))
    small, large = (apart("prototype_loss", plain=plain) for plain in (False, True))
    same = max(abs(new[k] - old[k]) / abs(old[k]) for k in new if k.startswith("loss"))
    ratio, memory = old["seconds"] / new["seconds"], large["MiB"] / small["MiB"]
    print(f"DINO step, 2 x 224 (9 bands) + 4 x 98 (3 bands): {new['seconds']:.2f} s, plain {old['seconds']:.2f} s: "
          f"{ratio:.1f}x (target {FASTER:g}x); losses of two steps differ by {same:.1e}")  # fmt: skip
    print(f"prototype loss of {ROWS} rows, 65,536 prototypes: {small['MiB']:.0f} MiB, plain {large['MiB']:.0f} MiB: "
          f"{memory:.1f}x (target {SMALLER:g}x)")  # fmt: skip
    return ratio >= FASTER and memory >= SMALLER and same < 1e-4


def main(argv: list[str]) -> int:
    """Print the tables; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*NAMES, "plain"], help="one objective, or DINO beside plain DINO")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="whole steps on this device, instead of parts")
    parser.add_argument("--models", nargs="+", default=["vit_small", "vit_base", "vit_large"], help="of whole steps")
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="kernels: sdpa, xformers")
    parser.add_argument("--compile", action="store_true", help="also with compiled blocks")
    parser.add_argument("--batch", type=int, default=64, help="images of a whole step (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="whole steps that are timed (%(default)s)")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.job:
        print(json.dumps(JOBS[args.job[0]](**json.loads(args.job[1]))))
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that torch can use")
    names = [name for name in NAMES if args.only in (None, name)]
    if args.device:
        table_of_whole_steps(args, names)
        return 0
    if names:
        table_by_part(names)
    return 0 if args.only not in (None, "plain") or side_by_side() else 1


if __name__ == "__main__":
    run(main)
