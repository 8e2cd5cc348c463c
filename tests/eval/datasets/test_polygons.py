import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.transform import from_origin

from eval.datasets import build_dataset
from eval.datasets.base import IGNORE

CORNER = 500000, 5000000  # of the first image; the second lies 320 m east


def square(x, y, side, corner=CORNER):
    """``side`` pixels of 10 m, its upper left corner at pixel (x, y)."""
    left, top = corner[0] + 10 * x, corner[1] - 10 * y
    return shapely.box(left, top - 10 * side, left + 10 * side, top)


SHAPES = [square(0, 0, 8), square(4, 4, 8), square(24, 0, 8), square(40, 8, 16), square(34, 26, 4)]
NAMES = ["maize", "wheat", "wheat", "maize", "unsure"]


def write(path, shapes=SHAPES, names=NAMES, crs="EPSG:32633", column="class"):
    wkb = shapely.to_wkb(np.array(shapes, object))
    pyogrio.raw.write(path, wkb, [np.array(names, object)], [column], geometry_type="Polygon", crs=crs)


@pytest.fixture
def root(tmp_path, tif):
    """Two images of 32 x 32 pixels side by side, and five squares in the first and second."""
    rng = np.random.default_rng(0)
    for i in range(2):
        image = rng.integers(1, 5000, (2, 32, 32)).astype(np.uint16)
        tif(tmp_path / f"images/t{i}.tif", image, corner=(CORNER[0] + 320 * i, CORNER[1]))
    write(tmp_path / "polygons.gpkg")
    return tmp_path


def options(root, **changes):
    layer = {"path": "images/{id}.tif", "sensor": "sentinel2_l2a", "gsd_m": 10, "bands": ["B04", "B08"]}
    given = {"layers": {"image": layer}, "classes": ["maize", "wheat"], "tile": 8, "split_by": "key"}
    target = {"path": "polygons.gpkg", "column": "class", "ignore": ["unsure"]}
    return {"name": "polygons", "root": str(root), **given, "target": target, **changes}


def maps(dataset):
    return {key: split.target(i) for split in dataset.splits.values() for i, key in enumerate(split.keys)}


def expected():
    """What anyone would draw by hand on the 32 x 64 pixels of both images."""
    truth = np.full((32, 64), IGNORE)
    truth[0:8, 0:8] = 0
    truth[4:12, 4:12] = 1  # later in the file: on top
    truth[0:8, 24:32] = 1
    truth[8:24, 40:56] = 0
    return truth


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "shp"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_drawn_as_by_hand_in_any_format_and_reference_system(root, suffix, crs):
    from rasterio.warp import transform

    shapes = SHAPES if crs == "EPSG:32633" else [
        shapely.transform(s, lambda p: np.stack(transform("EPSG:32633", crs, *p.T), 1)) for s in SHAPES
    ]  # fmt: skip
    write(root / f"p.{suffix}", shapes, crs=crs)
    target = {"path": f"p.{suffix}", "column": "class", "ignore": ["unsure"]}
    found, truth = maps(build_dataset(options(root, target=target))), expected()
    touched = 0
    for i in range(2):
        for y in range(0, 32, 8):
            for x in range(0, 32, 8):
                part = truth[y : y + 8, 32 * i + x : 32 * i + x + 8]
                key = f"t{i}_r{y:05d}c{x:05d}"
                if (part != IGNORE).any():
                    touched += 1
                    np.testing.assert_array_equal(found[key], part)
                else:
                    assert key not in found or (found[key] == IGNORE).all()
    assert touched == 9


def test_a_class_for_what_lies_outside(root):
    target = {"path": "polygons.gpkg", "column": "class", "codes": [["maize", "wheat", "unsure"], ["x"]]}
    dataset = build_dataset(options(root, classes=["field", "other"], target={**target, "background": "other"}))
    found = maps(dataset)
    assert len(found) == 32
    assert sum(int((m == 0).sum()) for m in found.values()) == int((expected() != IGNORE).sum()) + 16


def test_blocks_keep_neighbours_together(root):
    target = {
        "path": "polygons.gpkg",
        "column": "class",
        "codes": [["maize", "wheat", "unsure"], []],
        "background": "b",
    }
    given = options(root, classes=["a", "b"], target=target, split_by="block", block=160)
    dataset = build_dataset(given)
    transforms = {f"t{i}": from_origin(CORNER[0] + 320 * i, CORNER[1], 10, 10) for i in range(2)}
    blocks = {}
    for name, split in dataset.splits.items():
        for key in split.keys:
            image, rest = key.split("_r")
            row, column = map(int, rest.split("c"))
            x, y = transforms[image] @ (column + 4, row + 4)
            blocks.setdefault((x // 160, y // 160), set()).add(name)
    assert all(len(names) == 1 for names in blocks.values())
    assert len(blocks) == 8  # two rows, four columns
    assert set.union(*blocks.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"path": "none.gpkg", "column": "class"}}, r"the file .*none\.gpkg is missing"),
        ({"target": {"path": "polygons.gpkg", "column": "crop"}}, r"has no column 'crop'; it has class"),
        ({"target": {"path": "images/t0.tif", "column": "crop"}}, r"t0\.tif cannot be read"),
        ({"target": {"path": "far.gpkg", "column": "class"}}, r"no polygon of .*far\.gpkg touches an image"),
        ({"target": {"path": "polygons.gpkg", "column": "class", "background": "x"}}, "'x' is none of the classes"),
    ],
)
def test_bad_input(root, changes, message):
    write(root / "far.gpkg", [square(9999, 0, 4)], ["maize"])
    with pytest.raises(ValueError, match=message):
        build_dataset(options(root, **changes))


def test_an_unknown_class_is_named_when_its_tile_is_drawn(root):
    with pytest.raises(ValueError, match=r"polygons\.gpkg has a polygon whose class is 'unsure', which is no class"):
        maps(build_dataset(options(root, target={"path": "polygons.gpkg", "column": "class"})))


def test_images_without_a_place_cannot_carry_polygons(root, tif):
    tif(root / "images/t0.tif", np.ones((2, 32, 32), np.uint16), crs=None)
    with pytest.raises(ValueError, match="without a reference system"):
        build_dataset(options(root))
