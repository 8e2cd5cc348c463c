"""The same chips in seven layouts, and how each is read: what benchmarks/loader.py measures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import torch
import webdataset
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.utils.data import DataLoader, Dataset

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet, write_shards
from dinov2.data.stream import Stream

CHIPS, PIXELS, CROP, BATCH = 128, 256, 96, 16
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
SPEC = ImageSpec("sentinel2_l2a", 10, BANDS, "uint16", "reflectance", 1e-4, nodata=0)


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


# ---- each writes its files (write) and yields batches of windows for ever, or for long enough (read)


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
    """The whole file is decoded, then cut, as everywhere here."""

    def read(n: int, draw: int) -> torch.Tensor:
        with rasterio.open(folder / f"{n}.tif") as file:
            return cut(file.read(), draw)

    return DataLoader(Listed(read), BATCH, num_workers=workers)


def read_tif_window(folder: Path, workers: int) -> Iterable[Any]:
    """Only the strips that the window touches are decoded."""

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
    "GeoTIFF, a file per chip, windowed": ("tif", None, write_tif, read_tif_window),
    "GeoTIFF, a file per band, windowed": ("bands", None, write_bands, read_bands),
    "HDF5 gzip (MMEarth)": ("hdf5", None, write_hdf5, read_hdf5),
    "parquet (MajorTOM), windowed": ("parquet", None, write_parquet, read_parquet),
}
