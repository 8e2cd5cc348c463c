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
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import rasterio  # noqa: E402
import torch  # noqa: E402
import webdataset  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402
from rasterio.windows import Window  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from dinov2.cli import run  # noqa: E402
from dinov2.data.sample import ImageSpec, Sample  # noqa: E402
from dinov2.data.shards import ShardSet, write_shards  # noqa: E402
from dinov2.data.stream import Stream  # noqa: E402

CHIPS, PIXELS, CROP, BATCH = 128, 256, 96, 16
ROUNDS, TAKEN = 3, 512  # samples per measurement
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
SPEC = ImageSpec("sentinel2_l2a", 10, BANDS, "uint16", "reflectance", 1e-4, nodata=0)
AIMS = {"webdataset": 2.0, "litdata": 1.0, "mosaicml-streaming": 1.0, "GeoTIFF, a file per chip": 10.0}
RESUME = 1.0  # seconds to the first batch, far into a run


@cache
def chip(number: int) -> np.ndarray:
    """A scene that is smooth but for noise, ``[12, 256, 256]``."""
    rng = np.random.default_rng(number)
    coarse = rng.normal(2000, 600, (len(BANDS), PIXELS // 16, PIXELS // 16)).repeat(16, 1).repeat(16, 2)
    return (coarse + rng.normal(0, 40, (len(BANDS), PIXELS, PIXELS))).clip(1, 10000).astype(np.uint16)


def corner(number: int) -> tuple[int, int]:
    """Where the window of the n-th draw begins."""
    return divmod(number * 7919 % (PIXELS - CROP) ** 2, PIXELS - CROP)


def cut(pixels: np.ndarray, number: int) -> torch.Tensor:
    """A copy of the window, ``[12, 96, 96]``."""
    y, x = corner(number)
    return torch.from_numpy(np.array(pixels[..., y : y + CROP, x : x + CROP]))


def windows(chips: list[Any]) -> torch.Tensor:
    """A batch of windows from arrays, or from records that hold them."""
    arrays = [np.asarray(c["pixels"] if isinstance(c, dict) else c) for c in chips]
    return torch.stack([cut(a, int(a[0, 0, 0])) for a in arrays])


class Listed(Dataset):
    """``read(number of the chip, number of the draw)`` as a dataset."""

    def __init__(self, read: Callable[[int, int], torch.Tensor]) -> None:
        self.read = read

    def __len__(self) -> int:
        return CHIPS * 8

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.read(number * 97 % CHIPS, number)


# ---- what is measured: each writes its files (write) and yields batches of windows (read)


def write_ours(folder: Path) -> None:
    """Shards, which webdataset reads too."""
    chips = (Sample(f"chip{n:04d}", {SPEC.key: chip(n)}, {SPEC.key: SPEC}) for n in range(CHIPS))
    write_shards(chips, folder, samples_per_shard=16)


def stream(folder: Path, workers: int) -> Stream:
    """The stream that training uses, with a window in place of views."""
    return Stream(
        ShardSet.open(folder),
        draw=lambda sample, key: cut(sample.images[SPEC.key], key[2]),
        collate=torch.stack,  # type: ignore[arg-type]
        batch_size=BATCH,
        seed=0,
        workers=workers,
    )


def read_ours(folder: Path, workers: int) -> Iterable[Any]:
    """This project."""
    return stream(folder, workers).batches()


def read_webdataset(folder: Path, workers: int) -> Iterable[Any]:
    """The shards in their order without a shuffle buffer, which costs nothing but memory."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    member = f"{SPEC.key}.npy"
    chips = webdataset.WebDataset(urls, shardshuffle=False).repeat().decode()
    windows = chips.map(lambda s: cut(s[member], int(s["__key__"][4:]))).batched(BATCH, collation_fn=torch.stack)
    return DataLoader(windows, batch_size=None, num_workers=workers)


def write_litdata(folder: Path) -> None:
    """Its chunks, by its own writer."""
    import litdata

    litdata.optimize(chip, list(range(CHIPS)), str(folder), num_workers=1, chunk_bytes="32MB", verbose=False)


def read_litdata(folder: Path, workers: int) -> Iterable[Any]:
    """Shuffled chunks."""
    import litdata

    chips = litdata.StreamingDataset(str(folder), shuffle=True)
    return _again(litdata.StreamingDataLoader(chips, batch_size=BATCH, num_workers=workers, collate_fn=windows))


def import_streaming() -> Any:
    """mosaicml-streaming; it imports torchvision for data sets of pictures, which nobody needs here."""
    if find_spec("torchvision") is None:
        names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
        sys.modules.update({name: module_from_spec(ModuleSpec(name, None)) for name in names})
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    import streaming

    return streaming


def write_mosaic(folder: Path) -> None:
    """Its shards, by its own writer."""
    shape = ",".join(map(str, (len(BANDS), PIXELS, PIXELS)))
    columns = {"pixels": f"ndarray:uint16:{shape}"}
    with import_streaming().MDSWriter(out=str(folder), columns=columns, size_limit="32mb") as out:
        for n in range(CHIPS):
            out.write({"pixels": chip(n)})


def read_mosaic(folder: Path, workers: int) -> Iterable[Any]:
    """Shuffled shards."""
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()

    chips = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return _again(DataLoader(chips, BATCH, num_workers=workers, collate_fn=windows))


def _again(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _profile(bands: int) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "width": PIXELS,
        "height": PIXELS,
        "count": bands,
        "dtype": "uint16",
        "compress": "deflate",
        "transform": from_origin(0, 0, 10, 10),
    }


def _window(number: int) -> Window:
    y, x = corner(number)
    return Window(x, y, CROP, CROP)


def write_tif(folder: Path) -> None:
    """A file with all bands per chip."""
    for n in range(CHIPS):
        with rasterio.open(folder / f"{n}.tif", "w", **_profile(len(BANDS)), interleave="band") as file:
            file.write(chip(n))


def read_tif(folder: Path, workers: int) -> Iterable[Any]:
    """Windowed: only the strips that the window touches are decoded."""

    def read(n: int, draw: int) -> torch.Tensor:
        with rasterio.open(folder / f"{n}.tif") as file:
            return torch.from_numpy(file.read(window=_window(draw)))

    return DataLoader(Listed(read), BATCH, num_workers=workers)


def write_bands(folder: Path) -> None:
    """A file per band and chip, as BigEarthNet and MajorTOM's extracted cells have them."""
    for n in range(CHIPS):
        for name, band in zip(BANDS, chip(n), strict=True):
            with rasterio.open(folder / f"{n}_{name}.tif", "w", **_profile(1)) as file:
                file.write(band, 1)


def read_bands(folder: Path, workers: int) -> Iterable[Any]:
    """Windowed."""

    def read(n: int, draw: int) -> torch.Tensor:
        planes = []
        for name in BANDS:
            with rasterio.open(folder / f"{n}_{name}.tif") as file:
                planes.append(file.read(1, window=_window(draw)))
        return torch.from_numpy(np.stack(planes))

    return DataLoader(Listed(read), BATCH, num_workers=workers)


def write_hdf5(folder: Path) -> None:
    """MMEarth's layout: one data set per sensor, compressed chip by chip."""
    with h5py.File(folder / "data.h5", "w") as file:
        shape = (len(BANDS), PIXELS, PIXELS)
        out = file.create_dataset("sentinel2", (CHIPS, *shape), "uint16", chunks=(1, *shape), compression="gzip")
        for n in range(CHIPS):
            out[n] = chip(n)


def read_hdf5(folder: Path, workers: int) -> Iterable[Any]:
    """One open file per process."""
    files: list[h5py.File] = []

    def read(n: int, draw: int) -> torch.Tensor:
        if not files:
            files.append(h5py.File(folder / "data.h5"))
        return cut(files[0]["sentinel2"][n], draw)

    return DataLoader(Listed(read), BATCH, num_workers=workers)


def write_parquet(folder: Path) -> None:
    """MajorTOM's layout: a row group per chip, a column per band with the bytes of a GeoTIFF."""
    schema = pa.schema([(name, pa.binary()) for name in BANDS])
    with pq.ParquetWriter(folder / "part_00001.parquet", schema) as out:
        for n in range(CHIPS):
            row = {}
            for name, band in zip(BANDS, chip(n), strict=True):
                with rasterio.MemoryFile() as memory:
                    with memory.open(**_profile(1)) as file:
                        file.write(band, 1)
                    row[name] = [memory.read()]
            out.write_table(pa.table(row, schema))


def read_parquet(folder: Path, workers: int) -> Iterable[Any]:
    """Row group by row group, windowed within each GeoTIFF."""
    files: list[pq.ParquetFile] = []

    def read(n: int, draw: int) -> torch.Tensor:
        if not files:
            files.append(pq.ParquetFile(folder / "part_00001.parquet"))
        row, planes = files[0].read_row_group(n), []
        for name in BANDS:
            with rasterio.MemoryFile(row[name][0].as_py()) as memory, memory.open() as file:
                planes.append(file.read(1, window=_window(draw)))
        return torch.from_numpy(np.stack(planes))

    return DataLoader(Listed(read), BATCH, num_workers=workers)


READERS: dict[str, tuple[str, str | None, Callable[[Path], None], Callable[[Path, int], Iterable[Any]]]] = {
    # name: folder, package that may be absent, write, read
    "this project": ("shards", None, write_ours, read_ours),
    "webdataset": ("shards", None, write_ours, read_webdataset),
    "litdata": ("litdata", "litdata", write_litdata, read_litdata),
    "mosaicml-streaming": ("mosaic", "streaming", write_mosaic, read_mosaic),
    "GeoTIFF, a file per chip": ("tif", None, write_tif, read_tif),
    "GeoTIFF, a file per band": ("bands", None, write_bands, read_bands),
    "HDF5 gzip (MMEarth)": ("hdf5", None, write_hdf5, read_hdf5),
    "parquet (MajorTOM)": ("parquet", None, write_parquet, read_parquet),
}


# ---- measuring


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
