"""Layouts of published series: PASTIS-R, multi-temporal crops, BioMassters, South Sudan, DynamicEarthNet, MTBS."""

import json
from pathlib import Path

import numpy as np

from tests.eval.datasets.layouts.chips import Chip, Expected, npy, tif


def pastis_r(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """Series of 7 and more dates of int16 (with -10000) and float16, maps [3, H, W], dates in a geojson."""
    out, features = {}, []
    for i in range(count):
        chip, name, number = Chip(i, 19, (8, 8), scrambled), str(10000 + i), 7 + i % 3
        s2 = np.stack([chip.image(10, "int16") for _ in range(number)])
        s2[3, :, 1, 1] = -10000
        s1 = np.stack([chip.image(3, "float16", -20, 3) for _ in range(number + 2)])
        npy(root / f"DATA_S2/S2_{name}.npy", s2)
        npy(root / f"DATA_S1A/S1A_{name}.npy", s1)
        npy(root / f"DATA_S1D/S1D_{name}.npy", s1[1:])
        label = chip.stored(range(19), 19)
        npy(root / f"ANNOTATIONS/TARGET_{name}.npy", np.stack([label, label * 0 + 7, label * 0 + 9]))
        days = {track: [20180917 + t for t in range(n)] for track, n in (("S2", number), ("S1A", number + 2))}
        dates = {f"dates-{track}": {str(t): day for t, day in enumerate(found)} for track, found in days.items()}
        dates["dates-S1A"] = json.dumps(dates["dates-S1A"])  # some copies hold text
        features.append({"properties": {"ID_PATCH": int(name), "Fold": 1 + i % 5, "TILE": "t30uxv"} | dates})
        chosen = {key: np.linspace(0, n - 1, 6).round().astype(int) for key, n in (("s2", number), ("s1", number + 2))}
        out[name] = Expected(
            {"sentinel2_l2a-10m": s2[chosen["s2"]], "sentinel1_grd-10m": s1[chosen["s1"], :2]},
            chip.truth,
            {"sentinel2_l2a-10m": [f"2018-09-{17 + t}" for t in chosen["s2"]]},
        )
    (root / "metadata.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return out


def multitemporal_crop(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """Chips of int16 with all bands of a date together, -9999 and 9999 in them; two folders, lists, a csv of dates."""
    out, lists, rows = {}, {"training": [], "validation": []}, ["chip_id,first_img_date,middle_img_date,last_img_date"]
    for i in range(count):
        chip, name, split = (
            Chip(i, 13, (9, 9), scrambled),
            f"chip_{i:03d}_{i + 1:03d}",
            ("training", "validation")[i % 2],
        )
        stack = np.concatenate([chip.image(6, "int16") + 5 * date for date in range(3)])
        stack[7, 2, 3], stack[8, 2, 3] = -9999, 9999
        tif(root / f"{split}_chips/{name}_merged.tif", stack)
        tif(root / f"{split}_chips/{name}.mask.tif", chip.stored(range(1, 14), 0, "int16"))
        lists[split].append(name)
        rows.append(f"{name},2022-03-01,2022-06-0{1 + i % 9},2022-09-01")
        expected = np.where(stack == 9999, -9999, stack).reshape(3, 6, 9, 9)
        days = ["2022-03-01", f"2022-06-0{1 + i % 9}", "2022-09-01"]
        out[name] = Expected({"hls_s30-30m": expected}, chip.truth, {"hls_s30-30m": days})
    for split, names in lists.items():
        (root / f"{split}_data.txt").write_text("\n".join(names) + "\n")
    (root / "chips_df.csv").write_text("\n".join(rows))
    return out


def biomassters(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """Files of twelve months, dB as floats with -9999, uint16 with months missing; tonnes per hectare with NaN."""
    out = {}
    for i in range(count):
        chip, name, part = Chip(i, 27, (6, 6), scrambled), f"{i:04x}a0e8", ("train", "test")[i % 3 == 2]
        images = {"S1": [], "S2": []}
        for month in range(12):
            radar = chip.image(4, "float32", -19.7, 3)
            radar[2:, 1, 2] = -9999
            optical = chip.image(11, "uint16")
            missing = month in (0, 3 + i % 4)
            tif(root / f"{part}_features/{name}_S1_{month:02d}.tif", radar)
            if not missing:
                tif(root / f"{part}_features/{name}_S2_{month:02d}.tif", optical)
            images["S1"].append(radar)
            images["S2"].append(optical[:10] * (not missing))
        # what a band shows is a digit of the number: biomass is linear in three of them
        value = np.where(
            chip.truth < 0, np.nan, 10.5 * sum((chip.truth // 3**d % 3) * w for d, w in enumerate((1, 4, 2)))
        )
        tif(root / f"{part}_agbm/{name}_agbm.tif", value.astype(np.float32))
        out[name] = Expected(
            {"sentinel1_grd-10m": np.stack(images["S1"]), "sentinel2_l2a-10m": np.stack(images["S2"])},
            value.astype(np.float32),
            {"sentinel1_grd-10m": [f"{2019 + (m > 3)}-{(m + 8) % 12 + 1:02d}-01" for m in range(12)]},
        )
    return out


def crop_type_mapping_ss(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """Arrays [C, H, W, T] of three sensors in an npz, numbers of six digits, a json of dates per sensor, a csv."""
    out, rows = {}, ["id,partition"]
    for i in range(count):
        chip, name, number = Chip(i, 4, (8, 8), scrambled), f"southsudan_{7 * i:06d}", 6 + i % 4
        s2 = np.stack([chip.image(10, "uint16") for _ in range(number)], -1)
        s1 = np.stack([chip.image(3, "float64", -20, 3) for _ in range(number + 3)], -1)
        planet = np.repeat(np.repeat(s2[:4, ..., :1].clip(1) + np.arange(7, dtype=np.uint16), 3, 1), 3, 2)  # 3 m
        planet[:, 0:3, 0:3], planet[:, 3, 3] = 0, 0  # nothing of a cell, and of a part of one
        label = chip.stored(range(1, 5), 0, "int64")
        label[0, 1], chip.truth[0, 1] = 9, -1  # a crop that is none of the four
        for folder, arrays in (
            ("npy", {"s1": s1, "s2": s2, "planet": planet}),
            ("truth", {"truth": label}),
        ):
            (root / folder).mkdir(exist_ok=True)
            np.savez(root / f"{folder}/{name}.npz", **arrays)
        days = [f"2017-03-{t + 1:02d}" for t in range(number)]
        (root / "s2").mkdir(exist_ok=True)
        (root / f"s2/s2_{name}.json").write_text(json.dumps({"dates": days}))
        rows.append(f"{7 * i},{(0, 0, 0, 1, 2)[i % 5]}")
        chosen = np.linspace(0, number - 1, 6).round().astype(int)
        radar = np.linspace(0, number + 2, 6).round().astype(int)
        out[f"{7 * i}"] = Expected(
            {
                "sentinel2_l2a-10m": s2[..., chosen].transpose(3, 0, 1, 2),
                "sentinel1_grd-10m": s1[..., radar].transpose(3, 0, 1, 2)[:, :2],
            },
            chip.truth,
            {"sentinel2_l2a-10m": [days[t] for t in chosen]},
        )
    (root / "list_eval_partition.csv").write_text("\n".join(rows))
    return out


def dynamic_earthnet(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """uint16 images of every day (here: of some), maps with a band of 0 and 255 per class, snow among them."""
    out = {}
    for i in range(count):
        chip, aoi, month = Chip(i, 6, (8, 8), scrambled), f"{1311 + i // 2}_3077_13", f"{1 + i % 2:02d}"
        series = {day: chip.image(4, "uint16") for day in ("01", "02", "05", "10", "15", "20", "25", "28")}
        for day, image in series.items():
            tif(root / f"planet/10N/10N-122W-40N-L3H-SR/{aoi}/PF-SR/2018-{month}-{day}.tif", image)
        label = 255 * (chip.truth == np.arange(7)[:, None, None]).astype(np.uint8)
        label[6, 0, 0] = 255
        raster = f"labels/{aoi}_10N/Labels/Raster/10N-122W-40N-L3H-SR"
        tif(root / f"{raster}/10N-122W-40N-L3H-SR-2018_{month}_01.tif", label)
        days = ("01", "05", "10", "15", "20", "25")
        out[f"{aoi}_2018_{month}"] = Expected(
            {"planetscope-3m": np.stack([series[day] for day in days])},
            chip.truth,
            {"planetscope-3m": [f"2018-{month}-{day}" for day in days]},
        )
    return out


def mtbs(root: Path, count: int, scrambled: bool) -> dict[str, Expected]:
    """Four dates per fire as floats in folders of regions, sides that exceed the tile, maps of 0 to 6."""
    out = {}
    for i in range(count):
        chip, region = Chip(i, 6, (9, 10), scrambled), ("Sierra_Nevada_Mountain_Range", "Snake_River_Plain")[i % 2]
        days = ["20190612", "20190801", "20190920", "20200615"]
        series = {day: chip.image(6, "float32", 0.04, 0.02) for day in days}
        for day, image in series.items():
            tif(root / f"mtbs_fires/data/{region}/images/fire_{i}_{day}.tif", image)
        tif(root / f"mtbs_fires/data/{region}/labels/fire_{i}.tif", chip.stored(range(6), 6))
        out[f"{region.lower()}_fire_{i}_r00000c00000"] = Expected(
            {"sentinel2_l2a-20m": np.stack([series[day][:, :8, :8] for day in days[:3]])},
            chip.truth[:8, :8],
            {"sentinel2_l2a-20m": ["2019-06-12", "2019-08-01", "2019-09-20"]},
        )
    return out
