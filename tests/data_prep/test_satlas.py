import json
from pathlib import Path

import numpy as np
import pytest
from rasterio.io import MemoryFile

from data_prep.main import main
from dinov2.data.shards import ShardSet
from tests.data_prep.layouts import prepared, write

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
SIZE = 32  # pixels of a Sentinel-2 tile; the published ones have 512
TILES = [(4300, 2900), (4301, 2900)]
SCENES = {"sentinel2": ["S2A_1", "S2B_2"], "sentinel1": ["2020-07"], "landsat": ["2019-05"]}
TIMES = {"S2A_1": "2020-08-01T10:00:00+00:00", "S2B_2": "2020-03-01T10:00:00+00:00",
         "2020-07": "2020-07-01T00:00:00+00:00", "2019-05": "2019-05-01T00:00:00+00:00"}  # fmt: skip
S2 = ("b05", "b06", "b07", "b08", "b11", "b12")


def sizes(product: str) -> dict[str, tuple[int, int]]:
    """Band -> channels and pixels."""
    if product == "sentinel2":
        return {"tci": (3, SIZE), **{b: (1, SIZE) for b in S2}}
    if product == "sentinel1":
        return {"vh": (1, SIZE), "vv": (1, SIZE)}
    odd = {"b8": SIZE, "b10": SIZE // 8, "b11": SIZE // 8}
    return {f"b{i}": (1, odd.get(f"b{i}", SIZE // 2)) for i in range(1, 12)}


def pixels(product: str, scene: str, band: str, tile: tuple[int, int]) -> np.ndarray:
    channels, size = sizes(product)[band]
    rng = np.random.default_rng([*f"{product}{scene}{band}".encode(), *tile])
    return rng.integers(1, 255, (channels, size, size)).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    shape = {"count": image.shape[0], "height": image.shape[1], "width": image.shape[2], "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(driver="PNG", **shape) as raster:
            raster.write(image)
        return memory.read()


@pytest.fixture
def src(tmp_path) -> Path:
    root, good = tmp_path / "src", []
    for product, scenes in SCENES.items():
        for scene in scenes:
            for tile in TILES if product == "sentinel2" else TILES[:1]:
                good.append([*tile, scene])
                for band in sizes(product):
                    name = f"{product}/{scene}/{band}/{tile[0]}_{tile[1]}.png"
                    write(root / name, png(pixels(product, scene, band, tile)))
    good.append([1, 1, "never fetched"])
    for name, value in (("good_images_lowres_all", good), ("image_times", TIMES), ("train_lowres", [TILES[1]])):
        write(root / f"metadata/{name}.json", json.dumps(value).encode())
    write(root / "static/4300_2900/land_cover.png", png(np.full((1, SIZE, SIZE), 7, np.uint8)))
    return root


def test_products_and_dates_of_a_tile(src, tmp_path):
    first, second = prepared("satlas", src, tmp_path / "out", "--workers", "2")
    assert set(first.images) == {"rgb-160m", "sentinel2_l1c-160m", "sentinel1_grd-160m", "landsat8_l1-320m",
                                 "landsat8_l1-160m", "landsat8_l1-1280m"}  # fmt: skip
    assert first.times["rgb-160m"] == ["2020-03-01", "2020-08-01"] and first.times["landsat8_l1-320m"] == ["2019-05-01"]
    for t, scene in enumerate(("S2B_2", "S2A_1")):
        assert np.array_equal(first.images["rgb-160m"][t], pixels("sentinel2", scene, "tci", TILES[0]))
        for i, band in enumerate(S2):
            want = pixels("sentinel2", scene, band, TILES[0])[0]
            assert np.array_equal(first.images["sentinel2_l1c-160m"][t, i], want)
    spec = first.specs["sentinel2_l1c-160m"]
    assert spec.bands == tuple(b.upper() for b in S2) and (spec.unit, spec.scale) == ("reflectance", 0.0032)
    assert first.specs["sentinel1_grd-160m"].bands == ("VH", "VV")
    assert first.specs["landsat8_l1-1280m"].bands == ("B10", "B11")
    assert np.array_equal(first.images["landsat8_l1-160m"][0, 0], pixels("landsat", "2019-05", "b8", TILES[0])[0])
    assert (first.labels["land_cover"] == 7).all() and (first.labels["tree_cover"] == 0).all()
    assert set(second.images) == {"rgb-160m", "sentinel2_l1c-160m"} and second.labels == {}
    assert second.footprint[0] == pytest.approx(first.footprint[2]) and first.crs == "EPSG:3857"
    assert ShardSet.open(tmp_path / "out").labels["tree_cover"]["unit"] == "percent"


def test_lists_products_and_dates(src, tmp_path):
    (one,) = prepared("satlas", src, tmp_path / "a", "--split", "train_lowres")
    assert one.key == "tile_4301_2900"
    words = ("--products", "sentinel2", "--dates", "2020-07-01", "2020-12-31", "--chip", "16")
    chips = prepared("satlas", src, tmp_path / "b", *words)
    assert len(chips) == 8 and chips[0].times == {"rgb-160m": ["2020-08-01"], "sentinel2_l1c-160m": ["2020-08-01"]}
    want = pixels("sentinel2", "S2A_1", "b08", TILES[0])[0, 16:, :16]
    assert np.array_equal(chips[2].images["sentinel2_l1c-160m"][0, 3], want)


@pytest.mark.parametrize("name", ["sentinel2/S2A_1/b05/4300_2900.png", "static/4300_2900/land_cover.png"])
def test_a_set_is_not_continued_from_other_pictures(src, tmp_path, name):
    prepared("satlas", src, tmp_path / "out")
    write(src / name, png(np.ones((1, SIZE, SIZE), np.uint8)))
    with pytest.raises(ValueError, match="was written with other settings .source files"):
        main(["satlas", "--src", str(src), "--out", str(tmp_path / "out")])


def test_what_is_missing_or_strange_is_named(src, tmp_path):
    words = ["satlas", "--src", str(src), "--out", str(tmp_path / "out")]
    write(src / "sentinel2/S2A_1/b05/4300_2900.png", png(np.ones((3, 8, 8), np.uint8)))
    with pytest.raises(ValueError, match="b05/4300_2900.png is 3 bands of uint8, not 1 of uint8"):
        main(words)
    with pytest.raises(ValueError, match="--products naip: known are sentinel2, sentinel1, landsat"):
        main([*words, "--products", "naip"])
    (src / "metadata/image_times.json").unlink()
    with pytest.raises(ValueError, match="image_times.json is missing: fetch and unpack satlas-dataset"):
        main(words)
