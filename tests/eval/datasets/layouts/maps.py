"""Layouts of published maps of one date: MADOS, AI4SmallFarms, Five-Billion-Pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.eval.datasets.layouts.chips import Chip, Expected, tif

TILE = 6  # of Five-Billion-Pixels, instead of 512
MADOS = {10: ([492], [559, 560], [665], [833]), 60: ([442, 443],)}
MADOS[20] = ([704], [739, 740], [780, 783], [864, 865], [1610, 1614], [2186, 2202])


def mados(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """A float file per band in folders of its pixel size, named after the satellite's wavelengths; crops 1 and 11."""
    out, lists = {}, {"train": [], "val": [], "test": []}
    for i in range(count):
        chip, scene, crop = Chip(i, 15, (12, 12), scrambled), i // 3, (1, 11, 2)[i % 3]
        images = {}
        for gsd, bands in MADOS.items():
            image = chip.image(len(bands), "float32", 0.02, 0.01, every=gsd // 10)
            image[0, 1, 0] = np.nan
            for names, pixels in zip(bands, image, strict=True):
                tif(
                    root / f"Scene_{scene}/{gsd}/Scene_{scene}_L2R_rhorc_{names[scene % len(names)]}_{crop}.tif", pixels
                )
            images[f"sentinel2_l2a-{gsd}m"] = image
        for kind in ("cl", "conf", "rep"):
            label = chip.stored(range(1, 16), 0, "float32") if kind == "cl" else np.ones((12, 12), np.float32)
            tif(root / f"Scene_{scene}/10/Scene_{scene}_L2R_{kind}_{crop}.tif", label)
        out[f"scene_{scene}_{crop}"] = Expected(images, chip.truth)
        lists[("train", "val", "test")[i % 5 % 3]].append(f"Scene_{scene}_{crop}")
    (root / "splits").mkdir()
    for split, names in lists.items():
        (root / f"splits/{split}_X.txt").write_text("\n".join(names) + "\n")
    return out


def ai4smallfarms(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """Float images with NaN and masks of 0 and 255 in folders; tiles of several sizes whose names recur."""
    out = {}
    for i in range(count):
        part = ("train", "train", "validate", "test")[i % 4]
        chip = Chip(i, 2, (9 + i % 3, 11), scrambled, labelled=True)
        image = chip.image(4, "float32")
        image[1, 2, 3] = np.nan
        tif(root / f"{part}/images/{i // 4}.tif", image)
        tif(root / f"{part}/masks/{i // 4}.tif", chip.stored((0, 255), 0))
        out[f"{part}_{i // 4}"] = Expected({"sentinel2_l2a-10m": np.nan_to_num(image)}, chip.truth)
    return out


def five_billion_pixels(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """Scenes of uint16 and PNG maps of 0 to 24 whose sides are no multiple of the tiles'."""
    out = {}
    (root / "Annotation__index").mkdir()
    for i in range(count):
        chip, name = Chip(i, 24, (13, 14), scrambled), f"GF2_PMS{1 + i % 2}__L1A{i:010d}-MSS{1 + i % 2}"
        image = chip.image(4, "uint16")
        tif(root / f"Image_16bit_BGRNir/{name}.tiff", image)
        Image.fromarray(chip.stored(range(1, 25), 0)).save(root / f"Annotation__index/{name}_24label.png")
        for y, x in ((0, 0), (0, TILE), (TILE, 0), (TILE, TILE)):
            inside = (..., slice(y, y + TILE), slice(x, x + TILE))
            out[f"{name.lower()}_r{y:05d}c{x:05d}"] = Expected({"gaofen2-4m": image[inside]}, chip.truth[inside])
    return out
