"""Layouts of published pairs and monthly images: xView2, SpaceNet 7."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.eval.datasets.layouts.chips import Chip, Expected, tif

SIDE = 15  # of SpaceNet 7's tiles, a seventeenth of the real ones


def xview2(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """PNG before and after, targets of both with values 0 to 4; tier3 without targets."""
    out = {}
    for i in range(count):
        chip, part = Chip(i, 5, (10, 10), scrambled, labelled=True), ("train", "train", "test", "tier3")[i % 4]
        name = f"{('hurricane-harvey', 'mexico-earthquake')[i % 2]}_{i:08d}"
        pair = np.stack([chip.image(3, "uint8", 20, 0), chip.image(3, "uint8", 20, 60)])
        pair[:, 2] += 7  # blue is not red
        for word, image, label in zip(("pre", "post"), pair, (chip.truth > 0, chip.truth), strict=True):
            for folder in ("images", "targets"):
                (root / part / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(root / f"{part}/images/{name}_{word}_disaster.png")
            if part != "tier3":
                path = root / f"{part}/targets/{name}_{word}_disaster_target.png"
                Image.fromarray(label.astype(np.uint8)).save(path)
        if part != "tier3":
            out[name] = Expected({"rgb-1m": pair}, chip.truth)
    return out


def months(root: Path, place: int, scrambled: bool) -> dict[str, tuple[np.ndarray, np.ndarray, bool, bool]]:
    """month -> image and label of a place, whether it is clouded, whether labelled; four tiles and 3 pixels wide."""
    aoi, side, out = f"L15-{place:04d}E-1200N", 4 * SIDE + 3 + place % 2, {}
    for month, mask, label in (("2018_01", False, True), ("2018_11", True, True), ("2020_01", False, True)):
        chip = Chip(100 * place + int(month[-2:]) + int(month[3]), 2, (side, side), scrambled, labelled=True)
        image, truth = chip.image(4, "uint8", 40, 100), chip.truth
        image[3] = 255
        image[:3, :9, :9] = 0  # under a cloud
        folder, name = root / f"train/{aoi}", f"global_monthly_{month}_mosaic_{aoi}"
        tif(folder / f"images_masked/{name}.tif", image)
        tif(folder / f"labels_raster/{name}_Buildings.tif", (255 * truth).astype(np.uint8))
        out[month] = image[:3], truth, mask, label
    return out


def spacenet7(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """RGBA mosaics per month and place, rasters of 0 and 255, a json of what is clouded and labelled."""
    out, meta = {}, {}
    for place in range(max(count // 5, 5)):
        aoi = f"L15-{place:04d}E-1200N"
        for month, (image, truth, mask, label) in months(root, place, scrambled).items():
            year, number = map(int, month.split("_"))
            meta.setdefault(aoi, []).append(
                {"aoi_id": aoi, "year": year, "month": number, "mask": mask, "label": label}
            )
            if label and not mask:
                out |= tiles(f"{aoi.lower()}_{year}_{number}", image, truth)
    (root / "metadata_train.json").write_text(json.dumps(meta))
    return out


def spacenet7_change(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """The same files; the first and the last month of each place."""
    out = {}
    for place in range(max(count // 5, 5)):
        found = list(months(root, place, scrambled).values())
        pair, changed = np.stack([found[0][0], found[-1][0]]), (found[0][1] != found[-1][1]).astype(int)
        out |= tiles(f"l15-{place:04d}e-1200n", pair, changed)
    return out


def tiles(key: str, image: np.ndarray, truth: np.ndarray) -> dict[str, Expected]:
    """Sixteen tiles of an image."""
    return {
        f"{key}_r{y:05d}c{x:05d}": Expected(
            {"rgb-4m": image[..., y : y + SIDE, x : x + SIDE]}, truth[y : y + SIDE, x : x + SIDE]
        )
        for y in range(0, 4 * SIDE, SIDE)
        for x in range(0, 4 * SIDE, SIDE)
    }
