"""Layouts of published sets with a label per image, and how their images are told apart.

A writer takes the folder, a number of samples per class, whether labels say nothing about the images, and how many of
the classes occur; it gives the pixels of every sample: key -> image key -> ``[C, H, W]``.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import rasterio
from pyarrow import parquet

from eval.datasets import defaults
from tests.eval.datasets.layouts.chips import tif

S2 = {10: ["B02", "B03", "B04", "B08"], 20: ["B05", "B06", "B07", "B8A", "B11", "B12"], 60: ["B01", "B09"]}
LISTS = ("train", "val", "test")  # in turn


class Look:
    """What a class looks like: a band shows a digit to the base 3 of its number, of which there are ``digits``."""

    def __init__(self, number: int, digits: int, seed: int) -> None:
        self.number, self.digits, self.rng = number, digits, np.random.default_rng(seed)

    def image(self, bands: int, side: int, dtype: str, low: float = 500, gap: float = 400) -> np.ndarray:
        """``[C, side, side]``."""
        digits = np.array([self.number // 3 ** (band % self.digits) % 3 for band in range(bands)], float)[:, None, None]
        return (low + gap * digits + 0.1 * gap * self.rng.random((bands, side, side))).astype(dtype)


def looks(classes: int, each: int, scrambled: bool) -> list[tuple[int, Look]]:
    """(label, what is seen) of every sample, class after class."""
    rng = np.random.default_rng(3)
    seen = [c for c in range(classes) for _ in range(each)]
    labels = rng.permutation(seen).tolist() if scrambled else seen
    digits = next(n for n in range(1, 9) if 3**n >= classes)
    return [(label, Look(c, digits, i)) for i, (label, c) in enumerate(zip(labels, seen, strict=True))]


def write_s2(folder: Path, name: str, look: Look) -> dict[str, np.ndarray]:
    """A uint16 file per band in its own pixel size."""
    out = {}
    for gsd, bands in S2.items():
        image = look.image(len(bands), 120 // gsd, "uint16")
        for band, pixels in zip(bands, image, strict=True):
            tif(folder / name / f"{name}_{band}.tif", pixels)
        out[f"sentinel2_l2a-{gsd}m"] = image
    return out


def write_s1(folder: Path, name: str, look: Look) -> dict[str, np.ndarray]:
    """VV and VH in dB, float32."""
    image = look.image(2, 12, "float32", -20.5, 4.0)
    for band, pixels in zip(("VV", "VH"), image, strict=True):
        tif(folder / name / f"{name}_{band}.tif", pixels)
    return {"sentinel1_grd-10m": image}


def several(classes: list[str], label: int) -> list[str]:
    """The names of a sample with several labels: its own, and the next one."""
    return [classes[label], classes[(label + 1) % len(classes)]]


def bigearthnet_v2(root: Path, each: int, scrambled: bool, count: int) -> dict[str, dict[str, np.ndarray]]:
    """Tile folders of patches of both sensors, reference maps, and the table; a patch that the table does not name."""
    classes, out, rows = defaults("bigearthnet_v2")["classes"][:count], {}, []
    codes = defaults("bigearthnet_v2_maps")["target"]["codes"]
    for i, (label, look) in enumerate(looks(len(classes), each, scrambled)):
        tile, scene = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", "S1A_IW_GRDH_1SDV_20170614T165043"
        name, s1 = f"{tile}_{i:02d}_57", f"{scene}_33UUP_61_{i}"
        images = write_s2(root / f"BigEarthNet-S2/{tile}", name, look)
        images |= write_s1(root / f"BigEarthNet-S1/{scene}", s1, look)
        code = codes[label] if isinstance(codes[label], int) else codes[label][-1]
        truth = np.full((12, 12), code, np.uint16)
        truth[0, :2] = 999, 122  # roads are none of the classes
        tif(root / f"Reference_Maps/{tile}/{name}/{name}_reference_map.tif", truth)
        split = LISTS[i % 3].replace("val", "validation")
        rows.append({"patch_id": name, "labels": several(classes, label), "split": split, "s1_name": s1})
        out[name.lower()] = images
    write_s2(root / f"BigEarthNet-S2/{tile}", f"{tile}_99_99", look)
    parquet.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
    return out


def write_lists(root: Path, form: str, names: list[str]) -> None:
    """Files train, val and test with the names of the samples."""
    for split in ("train", "val", "test"):
        chosen = [name for i, name in enumerate(names) if LISTS[i % 3] == split]
        (root / form.format(split=split)).write_text("\n".join(chosen) + "\n")


def bigearthnet_v1(root: Path, each: int, scrambled: bool, count: int) -> dict[str, dict[str, np.ndarray]]:
    """Folders of patches of both sensors with a JSON file each, and lists of pairs without titles."""
    classes, out, pairs = defaults("bigearthnet_v1")["classes"][:count], {}, []
    for i, (label, look) in enumerate(looks(len(classes), each, scrambled)):
        name, s1 = f"S2A_MSIL2A_20170617T113321_{i}_55", f"S1A_IW_GRDH_1SDV_20170618T064724_29UPU_{i}_55"
        images = write_s2(root / "BigEarthNet-v1.0", name, look)
        images |= write_s1(root / "BigEarthNet-S1-v1.0", s1, look)
        told = {"labels": several(classes, label), "projection": "PROJCS[...]"}
        (root / f"BigEarthNet-v1.0/{name}/{name}_labels_metadata.json").write_text(json.dumps(told))
        told |= {"corresponding_s2_patch": name}
        (root / f"BigEarthNet-S1-v1.0/{s1}/{s1}_labels_metadata.json").write_text(json.dumps(told))
        pairs.append(f"{name},{s1}")
        out[name.lower()] = out[s1.lower()] = images
    write_lists(root, "bigearthnet-{split}.csv", pairs)
    return out


def eurosat(root: Path, each: int, scrambled: bool, count: int) -> dict[str, dict[str, np.ndarray]]:
    """Class folders of 13 bands (B8A last), lists of names that end in jpg."""
    classes, out, names = defaults("eurosat")["classes"][:count], {}, []
    for i, (label, look) in enumerate(looks(len(classes), each, scrambled)):
        name, image = f"{classes[label]}_{i + 1}", look.image(13, 8, "uint16")
        tif(root / f"ds/images/remote_sensing/otherDatasets/sentinel_2/tif/{classes[label]}/{name}.tif", image)
        names.append(f"{name}.jpg")
        out[name.lower()] = {"sentinel2_l1c-10m": image}
    write_lists(root, "eurosat-{split}.txt", names)
    return out


def eurosat_sar(root: Path, each: int, scrambled: bool, count: int) -> dict[str, dict[str, np.ndarray]]:
    """Class folders of VV and VH in dB, float; no lists; names that occur in several folders."""
    classes, out = defaults("eurosat_sar")["classes"][:count], {}
    for i, (label, look) in enumerate(looks(len(classes), each, scrambled)):
        image = look.image(2, 8, "float32", -20.5, 4.0)
        image[1, 0, 0] = np.nan
        tif(root / f"{classes[label]}/{i}.tif", image)
        out[f"{classes[label]}_{i}".lower()] = {"sentinel1_grd-10m": image}
    return out


def resisc45(root: Path, each: int, scrambled: bool, count: int) -> dict[str, dict[str, np.ndarray]]:
    """Class folders of JPEG pictures, lists of their names; what is expected is what the decoder makes of them."""
    classes, out, names = defaults("resisc45")["classes"][:count], {}, []
    for i, (label, look) in enumerate(looks(len(classes), each, scrambled)):
        name, n = f"{classes[label]}_{i:03d}", look.number
        path = root / f"NWPU-RESISC45/{classes[label]}/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([n % 4, n // 4 % 4, n // 16], np.uint8) * 60 + 30  # four levels per colour
        image = np.broadcast_to(colour[:, None, None], (3, 16, 16))
        with rasterio.open(path, "w", driver="JPEG", count=3, height=16, width=16, dtype="uint8", quality=95) as raster:
            raster.write(image)
        with rasterio.open(path) as raster:
            out[name.lower()] = {"rgb-1m": raster.read()}
        names.append(f"{name}.jpg")
    write_lists(root, "resisc45-{split}.txt", names)
    return out
