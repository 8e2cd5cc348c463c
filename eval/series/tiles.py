"""One queue of tiles over all devices: every worker takes the next tile when it is done with one."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dinov2.cli import USER_ERRORS, one_line
from dinov2.data.series_tiles import Tile, fingerprint, open_tile
from dinov2.distributed import device_named
from dinov2.files import atomic, write_atomic
from eval.series.encode import embed
from eval.series.models import load_model
from eval.series.precision import reconstruction, to_store

AT_ONCE = 65536  # pixels of a tile that are worked on at a time


@dataclass(frozen=True)
class Job:
    """What is done to every tile; two jobs with equal digests give the same bytes."""

    model: str
    digest: str
    precision: str
    compute: str
    batch: int | None
    dims: int  # first dimensions that are kept
    out: Path = field(compare=False)

    def part(self, tile: Path, kind: str = "values") -> Path:
        """File of a tile's result: ``values``, ``scales`` or ``report``."""
        return self.out / "parts" / f"{tile.name}.{kind}.{'json' if kind == 'report' else 'npy'}"

    def parts_digest(self, tiles: Sequence[Path]) -> str:
        """Identifies the results of these tiles."""
        return hashlib.sha256(b"".join(self.part(tile, "report").read_bytes() for tile in tiles)).hexdigest()[:12]

    def done(self, tile: Path) -> bool:
        """Whether the result is complete (its report is written last) and of this very tile: names repeat."""
        path = self.part(tile, "report")
        return path.is_file() and json.loads(path.read_text()).get("tile") == fingerprint(tile)


class Result(NamedTuple):
    """A tile that is done, or why not."""

    tile: Path
    error: str | None


def devices_of(text: str) -> list[str]:
    """``cuda:0,cpu:20`` -> one entry per worker: the GPU number 0 and twenty CPU processes."""
    found: list[str] = []
    for part in text.split(","):
        kind, _, number = part.strip().partition(":")
        if kind not in ("cuda", "cpu") or (number and not number.isdigit()):
            raise ValueError(f"--devices {text!r}: write cuda:INDEX and cpu:PROCESSES joined by commas")
        found += [f"cuda:{number or 0}"] if kind == "cuda" else ["cpu"] * int(number or 1)
    if not found:
        raise ValueError(f"--devices {text!r} names no worker")
    return found


class Worker:
    """A process' device, the model on it, and a log file."""

    def __init__(self, job: Job, number: int, device: str) -> None:
        self.job, self.device = job, torch.device(device)
        torch.set_num_threads(1)  # the workers are the parallelism, and one thread always rounds alike
        path = job.out / "logs" / f"worker-{number}-{device.replace(':', '')}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.log = logging.getLogger(str(path))
        self.log.setLevel(logging.INFO)
        self.log.addHandler(logging.FileHandler(path))
        self.log.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.model = load_model(job.model)
        self.model.encoder.to(self.device)
        self.log.info("%s on %s, process %d", job.model, device, os.getpid())

    def work(self, folder: Path) -> Result:
        """Embed one tile; what a user can cause is a sentence, not an end."""
        begin = time.perf_counter()
        try:
            report = self.embed(open_tile(folder))
        except USER_ERRORS as error:
            self.log.exception("%s failed", folder.name)
            return Result(folder, one_line(error))
        seconds = time.perf_counter() - begin
        self.log.info("%s: %d pixels, %.0f per second", folder.name, report["pixels"], report["pixels"] / seconds)
        return Result(folder, None)

    def embed(self, tile: Tile) -> Mapping[str, float]:
        """Embed a tile block by block into its parts."""
        job, (height, width) = self.job, tile.shape
        self.model.check_source(tile)
        made_of, inside = fingerprint(tile.folder), tile.inside()  # before the numbers are read
        rows = max(1, AT_ONCE // width)
        total: Counter[str] = Counter()
        blocks: dict[str, list[np.ndarray]] = {}
        for first in range(0, height, rows):
            last = min(first + rows, height)
            x = embed(
                self.model, tile.block(first, last), self.device, str(tile.folder),
                batch=job.batch, compute=job.compute,
            )[:, : job.dims]  # fmt: skip
            x[~inside[first:last].ravel()] = np.nan
            total.update(reconstruction(x, job.precision))
            for kind, array in to_store(x, job.precision).items():
                blocks.setdefault(kind, []).append(array.reshape(last - first, width, *array.shape[1:]))
        if not total["pixels"]:
            raise ValueError(f"{tile.folder}: no pixel of the region was ever observed (no clear date)")
        job.part(tile.folder).parent.mkdir(parents=True, exist_ok=True)
        job.part(tile.folder, "report").unlink(missing_ok=True)  # an older one would vouch for half of these
        for kind, parts in blocks.items():
            with atomic(job.part(tile.folder, kind)) as file:
                np.save(file, np.concatenate(parts))
        write_atomic(job.part(tile.folder, "report"), json.dumps({"tile": made_of, "total": total}))
        return total


_worker: Worker | None = None  # of a process of the pool


def start(job: Job, devices: Queue[tuple[int, str]]) -> None:
    """Make this process a worker."""
    global _worker
    _worker = Worker(job, *devices.get())


def work(folder: Path) -> Result:
    """One tile, by this process' worker."""
    assert _worker is not None
    return _worker.work(folder)


def claim(job: Job) -> None:
    """Make the output folder this job's; ValueError where it holds results of another model or precision."""
    path = job.out / "job.json"
    mine = {k: v for k, v in asdict(job).items() if k not in ("out", "model")}
    if path.is_file() and (other := json.loads(path.read_text())) != mine:
        differing = ", ".join(f"{k} {other.get(k)} -> {v}" for k, v in mine.items() if other.get(k) != v)
        raise ValueError(f"{job.out} holds results of another job ({differing}): choose another --output or remove it")
    write_atomic(path, json.dumps(mine))


def embed_tiles(job: Job, tiles: Sequence[Path], devices: Sequence[str]) -> list[Result]:
    """Embed the tiles that are not done; the results of all that were tried. ValueError for a device not here."""
    for name in devices:
        device_named(name)
    claim(job)
    todo = [tile for tile in tiles if not job.done(tile)]
    results: list[Result] = []
    for result in each(job, todo, devices[: len(todo)]):
        results.append(result)
        print(f"[{len(results)}/{len(todo)}] {result.tile.name}: {result.error or 'done'}", flush=True)
    return results


def each(job: Job, todo: Sequence[Path], devices: Sequence[str]) -> Iterator[Result]:
    """The results as they get ready; a single worker is this process."""
    if len(devices) == 1:
        yield from map(Worker(job, 0, devices[0]).work, todo)
    if len(devices) <= 1:
        return
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for pair in enumerate(devices):
        queue.put(pair)
    with ProcessPoolExecutor(len(devices), context, start, (job, queue)) as pool:
        futures = [pool.submit(work, tile) for tile in todo]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
