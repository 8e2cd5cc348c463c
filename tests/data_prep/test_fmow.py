import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from rasterio.io import MemoryFile

from data_prep.fmow import nested
from data_prep.fmow_sentinel import CATEGORIES
from data_prep.main import main
from dinov2.train import schema
from dinov2.train.trainer import train
from tests.data_prep.layouts import S2, prepared, tif, write

# place, image number, platform, RGB shape, multispectral shape, cloud cover, day
IMAGES = [
    ("airport_0", "0", "WORLDVIEW02", (120, 160), (30, 40), 5, "2016-02-04"),
    ("airport_0", "1", "QUICKBIRD02", (101, 99), (25, 25), 50, "2010-06-01"),
    ("multi-unit_residential_17", "3", "WORLDVIEW03_VNIR", (80, 80), (20, 20), 0, "2017-09-09"),
    ("zoo_4", "0", "GEOEYE01", (64, 64), (16, 16), 1, "2014-01-31"),
]
CORNER = {"airport_0": (9.0, 47.0), "multi-unit_residential_17": (-70.0, -30.0), "zoo_4": (2.0, 48.0)}
BANDS = {"WORLDVIEW02": 8, "WORLDVIEW03_VNIR": 8, "QUICKBIRD02": 4, "GEOEYE01": 4}
# place, image number, shape, day
CHIPS = [
    ("airport_0", "100", (12, 15), "2016-03-01"),
    ("airport_0", "101", (12, 15), "2019-01-01"),
    ("airport_0", "1", (10, 10), "2018-01-01"),
    ("zoo_4", "7", (5, 6), "2020-05-05"),
]


def numbers(*what: object, shape: tuple[int, ...], dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng([*repr(what).encode()]).integers(1, 250, shape).astype(dtype)


def about(place: str, image: str, platform: str, cloud: int, day: str, kind: str) -> dict:
    x, y = CORNER[place]
    corners = ((x, y), (x + 0.01, y), (x + 0.01, y - 0.01), (x, y - 0.01), (x, y))
    box = {"ID": 0, "box": [3, 4, 20, 10], "category": place.rsplit("_", 1)[0]}
    return {
        "img_filename": f"{place}_{image}_{kind}",
        "gsd": 0.5 if kind == "rgb" else 2.01,
        "cloud_cover": cloud,
        "timestamp": f"{day}T12:29:21Z",
        "sensor_platform_name": platform,
        "raw_location": f"POLYGON (({', '.join(f'{a} {b}' for a, b in corners)}))",
        "bounding_boxes": box if image == "0" else [box, box],  # the files have both forms
    }


def full(folder: Path, images=IMAGES, jpeg: bool = False) -> Path:
    for place, image, platform, rgb, ms, cloud, day in images:
        category = place.rsplit("_", 1)[0]
        for kind, shape in (("rgb", (3, *rgb)), ("ms", (BANDS[platform], *ms))):
            stem = folder / f"train/{category}/{place}/{place}_{image}_{kind}"
            pixels = numbers(place, image, kind, shape=shape, dtype=np.uint8 if kind == "rgb" else np.uint16)
            if jpeg and kind == "rgb":
                with MemoryFile() as memory:
                    size = {"count": 3, "height": rgb[0], "width": rgb[1], "dtype": "uint8"}
                    with memory.open(driver="JPEG", **size) as raster:
                        raster.write(pixels)
                    write(stem.with_suffix(".jpg"), memory.read())
            elif not jpeg:
                write(stem.with_suffix(".tif"), tif(pixels, crs=None))
            if not (jpeg and kind == "ms"):
                text = json.dumps(about(place, image, platform, cloud, day, kind))
                write(stem.with_suffix(".json"), text.encode())
    return folder


def sentinel(folder: Path) -> Path:
    lines = ["category,location_id,image_id,timestamp,polygon"]
    for place, image, shape, day in CHIPS:
        category, location = place.rsplit("_", 1)
        x, y = CORNER[place]
        polygon = f'"POLYGON (({x} {y}, {x + 0.01} {y}, {x + 0.01} {y - 0.01}, {x} {y}))"'
        lines.append(f"{category},{location},{image},{day}T10:00:00Z,{polygon}")
        data = tif(numbers(place, image, "s2", shape=(13, *shape)), crs=None)
        write(folder / f"train/{category}/{place}/{place}_{image}.tif", data)
    write(folder / "train.csv", "\n".join(lines).encode())
    return folder


pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def test_multispectral_and_rgb_of_every_platform(tmp_path):
    samples = prepared("fmow", full(tmp_path / "src"), tmp_path / "out", "--splits", "train", "--workers", "2")
    assert [s.key for s in samples] == [f"train_{place}_{image}" for place, image, *_ in IMAGES]
    sensors = {
        "WORLDVIEW02": "worldview2-184cm",
        "WORLDVIEW03_VNIR": "worldview3-124cm",
        "QUICKBIRD02": "quickbird2-244cm",
        "GEOEYE01": "geoeye1-165cm",
    }
    for sample, (place, image, platform, rgb, ms, cloud, day) in zip(samples, IMAGES, strict=True):
        key = sensors[platform]
        assert set(sample.images) == {"rgb-1m", key} and sample.specs[key].unit == "dn"
        assert sample.specs["rgb-1m"].bands == ("red", "green", "blue")
        assert sample.specs[key].bands[:3] == (
            ("blue", "green", "red") if BANDS[platform] == 4 else ("coastal", "blue", "green")
        )
        assert len(sample.specs[key].bands) == BANDS[platform]
        stored = numbers(place, image, "ms", shape=(BANDS[platform], *ms))
        fine = numbers(place, image, "rgb", shape=(3, *rgb), dtype=np.uint8)
        if image == "1":  # 101 x 99 and 25 x 25: the outer pixel of RGB is trimmed
            assert sample.images[key].shape == (4, 25, 24) and sample.images["rgb-1m"].shape == (3, 100, 96)
            assert np.array_equal(sample.images["rgb-1m"], fine[:, :100, 1:97])
            assert np.array_equal(sample.images[key], stored[:, :, :24])
        else:
            assert np.array_equal(sample.images[key], stored) and np.array_equal(sample.images["rgb-1m"], fine)
        assert CATEGORIES[sample.labels["category"]] == place.rsplit("_", 1)[0]
        assert sample.meta["boxes"][0]["box"] == [3, 4, 20, 10] and sample.meta["gsd_m"] == {"rgb-1m": 0.5, key: 2.01}
        x, y = CORNER[place]
        assert sample.footprint == (x, y - 0.01, x + 0.01, y) and sample.times[key] == [day]
        assert sample.meta["cloud"] == cloud


def test_sentinel_is_joined_by_place_and_time(tmp_path):
    src, other = full(tmp_path / "src"), sentinel(tmp_path / "sentinel")
    samples = prepared("fmow", src, tmp_path / "out", "--splits", "train", "--sentinel", str(other))
    dates = [s.times.get("sentinel2_l1c-10m") for s in samples]
    assert dates == [["2016-03-01"], ["2018-01-01"], None, ["2020-05-05"]]  # nearest; same number; none; the only one
    first = samples[0]
    want = numbers("airport_0", "100", "s2", shape=(13, 12, 15))
    spec, image = first.specs["sentinel2_l1c-10m"], first.images["sentinel2_l1c-10m"]
    assert spec.bands == S2 and (spec.unit, spec.scale, spec.nodata) == ("reflectance", 1e-4, 0)
    rows, columns = image.shape[1:]
    top, left = (12 - rows) // 2, (15 - columns) // 2
    assert np.array_equal(image, want[:, top : top + rows, left : left + columns]) and rows >= 10 and columns >= 12
    for sample in samples:
        shapes = [i.shape[1:] for i in sample.images.values()]
        low = min(shapes)
        assert all(h % low[0] == 0 and w % low[1] == 0 for h, w in shapes)


def test_sentinel_is_of_the_same_split(tmp_path):
    """Every split numbers its places from 0: airport_0 of val is another one."""
    src, other = full(tmp_path / "src", IMAGES[:1]), sentinel(tmp_path / "sentinel")
    shutil.copytree(src / "train", src / "val")
    write(other / "val.csv", b"category,location_id,image_id,timestamp\n")
    train, val = prepared("fmow", src, tmp_path / "out", "--sentinel", str(other))
    assert "sentinel2_l1c-10m" in train.images and val.meta["split"] == "val" and set(val.images) < set(train.images)


@pytest.mark.parametrize("name", ["src/{}/airport_0_0_rgb.tif", "sentinel/{}/airport_0_100.tif"])
def test_a_set_is_not_continued_from_other_pictures(tmp_path, name):
    src, other = full(tmp_path / "src", IMAGES[:1]), sentinel(tmp_path / "sentinel")
    words = ["--splits", "train", "--sentinel", str(other)]
    prepared("fmow", src, tmp_path / "out", *words)
    os.utime(tmp_path / name.format("train/airport/airport_0"), (0, 0))
    with pytest.raises(ValueError, match="was written with other settings .source files"):
        main(["fmow", "--src", str(src), "--out", str(tmp_path / "out"), *words])


def test_trimming_is_about_the_centre_and_small():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, columns = rng.integers(8, 60, 2)
        fine = (1, *(int(n * rng.uniform(3.5, 30)) for n in (rows, columns)))
        middle = (1, *(int(n * rng.uniform(1.5, 3.5)) for n in (rows, columns)))
        images = {"s2": np.zeros((1, rows, columns)), "ms": np.zeros(middle), "rgb": np.zeros(fine)}
        out = {key: image.shape for key, image in nested(images).items()}
        for axis in (1, 2):
            covered = {key: out[key][axis] / images[key].shape[axis] for key in images}
            for key in ("ms", "rgb"):
                assert out[key][axis] % out["s2"][axis] == 0
                ratio = images[key].shape[axis] / images["s2"].shape[axis]
                assert abs(covered[key] - covered["s2"]) <= 0.5 / ratio + 1e-9  # half of it at either edge


def test_sentinel_alone(tmp_path):
    samples = prepared("fmow_sentinel", sentinel(tmp_path / "src"), tmp_path / "out")
    assert [s.key for s in samples] == [f"train_{place}_{image}" for place, image, *_ in CHIPS]
    for sample, (place, image, shape, day) in zip(samples, CHIPS, strict=True):
        assert np.array_equal(sample.images["sentinel2_l1c-10m"], numbers(place, image, "s2", shape=(13, *shape)))
        assert sample.times == {"sentinel2_l1c-10m": [day]} and sample.meta["place"] == place
        assert sample.footprint[0] == CORNER[place][0] and sample.crs == "EPSG:4326"
    (one,) = prepared("fmow_sentinel", tmp_path / "src", tmp_path / "one", "--dates", "2017-01-01", "2018-12-31")
    assert one.key == "train_airport_0_1"


def test_rgb_as_jpeg_and_filters(tmp_path, capsys):
    src = full(tmp_path / "src", jpeg=True)
    samples = prepared(
        "fmow", src, tmp_path / "out", "--splits", "train", "--cloud", "10", "--bbox", "0", "40", "10", "50"
    )
    assert [s.key for s in samples] == ["train_airport_0_0", "train_zoo_4_0"]
    said = " ".join(capsys.readouterr().out.split())
    assert "1 skipped: cloudier than --cloud; 1 skipped: outside of --bbox" in said
    with MemoryFile((src / "train/zoo/zoo_4/zoo_4_0_rgb.jpg").read_bytes()) as memory, memory.open() as raster:
        assert np.array_equal(samples[1].images["rgb-1m"], raster.read())


def test_what_does_not_fit_is_counted_or_named(tmp_path, capsys):
    src = full(tmp_path / "src")
    write(src / "train/zoo/zoo_4/zoo_4_0_ms.tif", tif(np.ones((3, 16, 16), np.uint16), crs=None))
    assert len(prepared("fmow", src, tmp_path / "out", "--splits", "train")) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "1 skipped: with a number of bands that its platform does not have (3, not 4)" in said
    with pytest.raises(ValueError, match="has no <category>_<location>_<image>_rgb.json below train, val"):
        main(["fmow", "--src", str(tmp_path / "out"), "--out", "x"])
    other = sentinel(tmp_path / "sentinel")
    write(other / "train.csv", b"category,location_id,timestamp\n")
    with pytest.raises(ValueError, match="train.csv has no column image_id; it has category, location_id, timestamp"):
        main(["fmow_sentinel", "--src", str(other), "--out", "x"])
    with pytest.raises(ValueError, match="val.csv is missing: fetch the lists, or name other --splits"):
        main(["fmow_sentinel", "--src", str(other), "--out", "x", "--splits", "val"])


def test_a_pretraining_run(tmp_path):
    prepared(
        "fmow",
        full(tmp_path / "src", IMAGES * 1),
        tmp_path / "out",
        "--splits",
        "train",
        "--sentinel",
        str(sentinel(tmp_path / "s2")),
    )
    options = [f"data.shards=[{tmp_path / 'out'}]", "data.workers=0", "data.batch_size=4", "train.steps=3"]
    options += ["model.embed_dim=24", "model.depth=1", "model.num_heads=2", "model.attn_dim=24", "optim.warmup_steps=0"]
    assert train(schema.load(Path("configs/pretrain/realdata.yaml"), options), tmp_path / "run")
