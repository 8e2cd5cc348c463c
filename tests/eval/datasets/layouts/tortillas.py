"""The sets of GEO-Bench-2: tortillas of samples that are tortillas of rasters or HDF5 files, with their tables."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import rasterio
from pyarrow import parquet
from rasterio.transform import from_origin

from eval.datasets import defaults
from tests.eval.datasets.layouts.chips import Chip, Expected
from tests.eval.datasets.layouts.labelled import looks

FOLDS = ("train", "train", "train", "validation", "test")
MONTHS = ["September", "October", "November", "December", "January", "February", "March", "April", "May", "June",
          "July", "August"]  # fmt: skip
LEVELS = {"uint16": (500, 400), "uint8": (40, 30), "float32": (0.05, 0.05)}  # of images: lowest, step
Files = dict[str, tuple[str, bytes]]  # id -> format, content


def cook(rows: list[dict[str, Any]], files: Files, magic: bytes = b"#y") -> bytes:
    """A tortilla: a head of 200 bytes, the files, a parquet table with a row for each."""
    ends = np.cumsum([200] + [len(content) for _, content in files.values()]).tolist()
    places = zip(files.items(), ends, rows, strict=False)
    told = [
        {"tortilla:id": name, "tortilla:file_format": form, "tortilla:offset": at, "tortilla:length": len(content)}
        | row
        for (name, (form, content)), at, row in places
    ]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(told), sink, compression="zstd", use_dictionary=False)
    table = sink.getvalue().to_pybytes()
    numbers = (ends[-1], len(table), 1)
    head = magic + b"".join(number.to_bytes(8, "little") for number in numbers)
    return head.ljust(200, b"\0") + b"".join(content for _, content in files.values()) + table


def raster(array: np.ndarray) -> tuple[str, bytes]:
    """A GeoTIFF of ``[C, H, W]`` or ``[H, W]``."""
    array = array if array.ndim == 3 else array[None]
    size = dict(zip(("count", "height", "width"), array.shape, strict=True))
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 10, 10)}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", dtype=array.dtype, compress="zstd", **size, **place) as opened:
            opened.write(array)
        return "GTiff", memory.read()


def hdf5(array: np.ndarray) -> tuple[str, bytes]:
    """An HDF5 file with the array ``data``."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["data"] = array
    return "HDF5", memory.getvalue()


def serve(root: Path, name: str, samples: list[tuple[dict[str, Any], Files]]) -> None:
    """Samples in two parts, the second one a file that also describes the set."""
    split = max(len(samples) // 2, 1)
    for part, (chosen, magic) in enumerate(((samples[:split], b"#y"), (samples[split:], b"WX"))):
        first = split * part
        rows = [{"tortilla:data_split": FOLDS[(first + i) % 5], "stac:crs": "EPSG:32633"} | own
                for i, (own, _) in enumerate(chosen)]  # fmt: skip
        inner = {
            f"sample_{first + i}": ("TORTILLA", cook([dict(row)] * len(files), files))
            for i, (row, (_, files)) in enumerate(zip(rows, chosen, strict=True))
        }
        (root / f"geobench_{name}.{part:04d}.part.tortilla").write_bytes(cook(rows, inner, magic))


Made = tuple[dict[str, Any], Files, dict[str, np.ndarray]]  # columns of a sample, its files, what is shown of them


def burn_scars(chip: Chip, i: int) -> Made:
    """Reflectance as floats, NaN and 9999 in it; a map of 0, 1 and -1."""
    image = chip.image(6, "float32", *LEVELS["float32"])
    image[0, 2, 2], image[1, 2, 3] = np.nan, 9999
    files = {"image": raster(image), "label": raster(chip.stored(range(2), -1, "int16"))}
    shown = np.where(np.isnan(image) | (image == 9999), np.float32(-9999), image)
    return {"tile": "T10SEH"}, files, {"hls_s30-30m": shown}


def cloudsen12(chip: Chip, i: int) -> Made:
    """Fourteen bands, of which twelve are Sentinel-2's, under ids that nobody states."""
    image = chip.image(14, "uint16", *LEVELS["uint16"])
    files = {"s2l2a": raster(image), "target": raster(chip.stored(range(4), 0))}
    return {}, files, {"sentinel2_l2a-10m": image[:12]}


def flair2(chip: Chip, i: int) -> Made:
    """Five bands of 8 bits; classes from 1, of which those from 13 on are one."""
    image = chip.image(5, "uint8", *LEVELS["uint8"])
    codes = [*range(1, 13), 13 + i % 7]
    files = {"aerial": raster(image), "mask": raster(chip.stored(codes, 0))}
    return {"zone": "Z1"}, files, {"naip-20cm": image[:4]}


def fotw(chip: Chip, i: int) -> Made:
    """Two dates, instances and classes 0 to 2, 3 where it is unknown."""
    dates = np.stack([chip.image(4, "uint16", *LEVELS["uint16"]) for _ in range(2)])
    mask = chip.stored(range(3), 3)
    files = {"win_a": raster(dates[0]), "win_b": raster(dates[1]), "instance": raster(mask * 9)}
    return {"country": "rwanda"}, files | {"semantic_3class": raster(mask)}, {"sentinel2_l2a-10m": dates}


def kuro_siwo(chip: Chip, i: int) -> Made:
    """Two dates before and one after in linear power, elevation, classes 0 to 2, 3 where there is none."""
    dates = np.stack([chip.image(2, "float32", *LEVELS["float32"]) for _ in range(3)])
    names = ("pre_event_1", "pre_event_2", "post_event")
    files = {name: raster(date) for name, date in zip(names, dates, strict=True)}
    files |= {"dem": raster(chip.image(1, "float32")), "mask": raster(chip.stored(range(3), 3))}
    return {"flood_date": "2021-01-02"}, files | {"invalid_data": files["mask"]}, {"sentinel1_grd-10m": dates}


def pastis(chip: Chip, i: int) -> Made:
    """Series of 7 and more dates as HDF5, maps [3, H, W]."""
    number = 7 + i % 3
    s2 = np.stack([chip.image(10, "int16", 500, 400) for _ in range(number)])
    s2[3, :, 1, 1] = -10000
    s1 = np.stack([chip.image(3, "float16", -20, 3) for _ in range(number + 2)])
    label = chip.stored(range(19), 19)
    maps = {"semantic": hdf5(np.stack([label, label * 0 + 7, label * 0 + 9])), "instance": hdf5(label)}
    files = {"s2": hdf5(s2), "s1a": hdf5(s1), "s1d": hdf5(s1[1:])} | maps
    chosen, radar = (np.linspace(0, n - 1, 6).round().astype(int) for n in (number, number + 2))
    shown = {"sentinel2_l2a-10m": s2[chosen], "sentinel1_grd-10m": s1[radar, :2]}
    return {"dates": [20180917 + t for t in range(number)]}, files, shown


def dynamic_earthnet(chip: Chip, i: int) -> Made:
    """An image of every day of a month, one of both Sentinels, classes 0 to 6."""
    days = np.stack([chip.image(4, "uint16", *LEVELS["uint16"]) for _ in range(28)])
    files = {f"planet_{day}": raster(image) for day, image in enumerate(days)}
    files |= {name: raster(days[0]) for name in ("s1", "s2")} | {"label": raster(chip.stored(range(7), 0))}
    own = {"original_id": f"1311_3077_13_10N-122W_10N_2018-{1 + i % 12:02d}"}
    return own, files, {"planetscope-3m": days[[0, 4, 9, 14, 19, 24]]}


def biomassters(chip: Chip, i: int) -> Made:
    """Twelve months, fewer of Sentinel-2, under ids that begin with a chip's; tonnes per hectare with NaN."""
    files, radar, optical = {}, [], []
    for month, name in enumerate(MONTHS):
        radar.append(chip.image(4, "float32", -19.7, 3))
        optical.append(chip.image(11, "uint16", *LEVELS["uint16"]) * (month != 3 + i % 4))
        files[f"{i:04x}a0e8_S1_{name}"] = raster(radar[-1])
        if month != 3 + i % 4:
            files[f"{i:04x}a0e8_S2_{name}"] = raster(optical[-1])
    digits = sum((chip.truth // 3**d % 3) * weight for d, weight in enumerate((1, 4, 2)))
    chip.truth = np.where(chip.truth < 0, np.nan, 10.5 * digits).astype(np.float32)
    files[f"{i:04x}a0e8_AGBM"] = raster(chip.truth)
    return {}, files, {"sentinel1_grd-10m": np.stack(radar), "sentinel2_l2a-10m": np.stack(optical)[:, :10]}


def spacenet2(chip: Chip, i: int) -> Made:
    """Eight bands, a panchromatic image, buildings and their numbers."""
    image = chip.image(8, "uint16", *LEVELS["uint16"])
    mask = raster(chip.stored(range(2), 0))
    files = {"ps-ms": raster(image), "pan": raster(image[:1]), "semantic_mask": mask, "instance_mask": mask}
    return {"area": "Paris"}, files, {"worldview3-30cm": image}


def spacenet7(chip: Chip, i: int) -> Made:
    """Red, green, blue and alpha, under ids that nobody states."""
    image = chip.image(4, "uint8", *LEVELS["uint8"])
    return {}, {"images": raster(image), "mask": raster(chip.stored(range(2), 0))}, {"rgb-4m": image[:3]}


UNLABELLED = (burn_scars, fotw, kuro_siwo, pastis, biomassters)  # those whose maps may have pixels without a label
MAPS = {made.__name__: made for made in (*UNLABELLED, cloudsen12, flair2, dynamic_earthnet, spacenet2, spacenet7)}


def of_maps(name: str) -> Callable[[Path, int, bool], dict[str, Expected]]:
    """A writer of a set with a map per sample: ``(root, count, scrambled)`` gives what is expected of every sample."""

    def write(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
        classes = 27 if name == "biomassters" else len(defaults(f"geobench2_{name}")["classes"])
        samples, out = [], {}
        for i in range(count):
            chip = Chip(i, classes, (8, 8), scrambled, labelled=MAPS[name] not in UNLABELLED)
            own, files, images = MAPS[name](chip, i)
            samples.append((own, files))
            out[f"sample_{i}"] = Expected(images, chip.truth)
        serve(root, name, samples)
        return out

    return write


LABELLED = {  # files of a sample: image key, bands, dtype; the column of labels
    "benv2": ({"s1": ("sentinel1_grd-10m", 2, "float32"), "s2": ("sentinel2_l2a-10m", 12, "uint16")}, "labels"),
    "treesatai": ({"aerial": ("naip-20cm", 4, "uint8"), "s1": ("", 3, "float32"),
                   "s2": ("sentinel2_l2a-10m", 12, "uint16")}, "species_labels"),
    "so2sat": ({"s1": ("", 2, "float32"), "s2": ("sentinel2_l2a-10m", 10, "float32")}, "labels"),
    "forestnet": ({"image": ("landsat8-15m", 6, "uint8")}, "labels"),
}  # fmt: skip


def of_labels(name: str) -> Callable[[Path, int, bool, int], dict[str, dict[str, np.ndarray]]]:
    """A writer of a set with labels per sample, as those of :mod:`tests.eval.datasets.layouts.labelled`."""

    def write(root: Path, each: int, scrambled: bool, count: int) -> dict[str, dict[str, np.ndarray]]:
        options, (stored, column) = defaults(f"geobench2_{name}"), LABELLED[name]
        samples, out = [], {}
        made = looks(count, each, scrambled)
        for i, n in enumerate(np.random.default_rng(0).permutation(len(made))):
            label, look = made[n]
            images = {kind: look.image(bands, 8, dtype, *LEVELS[dtype]) for kind, (_, bands, dtype) in stored.items()}
            names = [options["classes"][c] for c in sorted({label, (label + 1) % count})]
            own = {column: names if options["kind"] == "multilabel" else options["classes"][label]}
            samples.append((own, {kind: raster(image) for kind, image in images.items()}))
            out[f"sample_{i}"] = {key: images[kind] for kind, (key, _, _) in stored.items() if key}
        serve(root, name, samples)
        return out

    return write
