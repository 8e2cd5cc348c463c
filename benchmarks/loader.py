"""The stream beside other ways to feed the same chips to a model: decode and cut a random window of 96 pixels.

    python benchmarks/loader.py                       # about four minutes and 1 GB in the temporary folder
    pip install --no-deps --target DIR litdata lightning-utilities mosaicml-streaming 'transformers<5' \\
        'huggingface-hub<1' 'tokenizers<0.23' xxhash zstd Brotli python-snappy cramjam
    PYTHONPATH=DIR python benchmarks/loader.py        # with litdata and mosaicml-streaming, which are skipped otherwise

128 chips of 12 bands, 256 x 256 pixels, uint16, in the page cache; one thread. webdataset reads the same shards. Every
measurement has a process of its own, in turn, ROUNDS times; the table shows medians: samples per second of process time
(in one process), samples per second with two workers, bytes read per sample, and how many times more samples per second
of process time the stream gives. It checks the bytes it reads, as it does in training; of the others, only zlib's
sums within compressed files are checked by somebody. Exit code 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402

from benchmarks.layouts import BANDS, BATCH, CROP, READERS, stream  # noqa: E402
from dinov2.cli import run  # noqa: E402

ROUNDS, TAKEN = 3, 512  # samples per measurement
AIMS = {"webdataset": 2.0, "litdata": 1.0, "mosaicml-streaming": 1.0, "GeoTIFF, a file per chip": 10.0}
RESUME = 1.0  # seconds to the first batch, far into a run


def bytes_read() -> int:
    """Bytes that this process has had from read calls."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(name: str, folder: Path) -> dict[str, float]:
    """Rates of one reader; the first batches, which open files and start workers, are not counted."""
    torch.set_num_threads(1)
    read = READERS[name][3]
    batches = iter(read(folder, 0))
    for _ in range(4):
        window = next(batches)
        assert window.shape == (BATCH, len(BANDS), CROP, CROP) and window.dtype == torch.uint16
    cpu, before = time.process_time(), bytes_read()
    for _ in range(TAKEN // BATCH):
        next(batches)
    found = {"per_cpu_second": TAKEN / (time.process_time() - cpu), "bytes": (bytes_read() - before) / TAKEN}
    batches = iter(read(folder, 2))
    for _ in range(8):
        next(batches)
    begin = time.perf_counter()
    for _ in range(TAKEN // BATCH):
        next(batches)
    found["per_second"] = TAKEN / (time.perf_counter() - begin)
    if name == "this project":
        begin = time.perf_counter()
        next(stream(folder, 2).batches(start_step=10**9))
        found["resume"] = time.perf_counter() - begin
    return found


def main(argv: list[str]) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    only = p.parse_args(argv).only
    if only:
        print(json.dumps(measure(only[0], Path(only[1]))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(Path(temporary))
    return report(found)


def compare(root: Path) -> dict[str, list[dict[str, float]]]:
    """All rounds of every reader whose package is there."""
    names = []
    for name, (folder, package, write, _) in READERS.items():
        if package and find_spec(package) is None:
            print(f"{name}: not installed, skipped (see --help)")
            continue
        names.append(name)
        if not (root / folder).exists():
            (root / folder).mkdir()
            write(root / folder)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            command = [sys.executable, __file__, "--only", name, str(root / READERS[name][0])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def report(found: dict[str, list[dict[str, float]]]) -> int:
    """Print the table and the aims; the exit code."""
    own = found["this project"]
    print("| | samples/CPU s | samples/s, 2 workers | MB read | times more |\n|---|---|---|---|---|")
    code = 0
    for name, rounds in found.items():
        cpu, wall, size = (statistics.median(r[k] for r in rounds) for k in ("per_cpu_second", "per_second", "bytes"))
        ratio = statistics.median(a["per_cpu_second"] / b["per_cpu_second"] for a, b in zip(own, rounds, strict=True))
        print(f"| {name} | {cpu:.0f} | {wall:.0f} | {size / 1e6:.2f} | {ratio:.1f} |")
        if ratio < AIMS.get(name, 0):
            print(f"missed: {AIMS[name]:g} times {name}")
            code = 1
    resume = statistics.median(r["resume"] for r in own)
    print(f"first batch after {10**9 * BATCH:.0e} samples: {resume:.2f} s")
    return code or int(resume > RESUME)


if __name__ == "__main__":
    run(main)
