"""Mosaics of maps, and tables of their areas."""

import csv

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, reproject

from eval.geotiff import class_tags
from eval.maps import palette
from eval.predict import main
from tests.scenes import read

NAMES = ("water", "wood", "field")
CORNER = Affine(10, 0, 500_000, 0, -10, 5_800_000)


def write(path, classes, transform=CORNER, crs="EPSG:32633", names=NAMES, dtype="int16", nodata=-1):
    """A map as prediction leaves it."""
    size = dict(zip(("height", "width"), classes.shape, strict=True))
    given = dict(driver="GTiff", count=1, dtype=dtype, nodata=nodata, crs=crs, transform=transform)
    with rasterio.open(path, "w", **size, **given) as file:
        file.write(classes.astype(dtype), 1)
        file.descriptions = ("class",)
        file.update_tags(**class_tags(names, palette(len(names))))
    return path


def region(height=60, width=80):
    blocks = np.random.default_rng(0).integers(3, size=(-(-height // 5), -(-width // 5)))
    return np.kron(blocks, np.ones((5, 5), int))[:height, :width]


def part(path, whole, top, left, height, width, **options):
    return write(
        path, whole[top : top + height, left : left + width], CORNER @ Affine.translation(left, top), **options
    )


def test_parts_on_one_grid_become_the_whole(tmp_path):
    whole = region()
    holes = whole.copy()
    holes[10:20, 30:40] = -1
    part(tmp_path / "b_pred.tif", holes, 5, 20, 40, 60)
    part(tmp_path / "a_pred.tif", whole, 0, 0, 30, 35)
    part(tmp_path / "c_pred.tif", whole, 40, 0, 20, 50)
    assert main(["mosaic", "--input", str(tmp_path / "*_pred.tif"), "--output", str(tmp_path / "m.tif")]) == 0
    found = read(tmp_path / "m.tif")[0]
    covered = np.full((60, 80), False)
    covered[5:45, 20:], covered[:30, :35], covered[40:, :50] = True, True, True
    covered[10:20, 35:40] = False  # a hole that no other map fills
    np.testing.assert_array_equal(found, np.where(covered, whole, -1))
    with rasterio.open(tmp_path / "m.tif") as file:
        assert (file.crs, file.transform, file.nodata) == (rasterio.CRS.from_epsg(32633), CORNER, -1)
        assert file.tags()["class_1"] == "wood" and len(file.colormap(1)) == 3
    assert (tmp_path / "m.png").is_file()


def test_a_mosaic_among_its_maps_is_made_anew(tmp_path):
    command = ["mosaic", "--input", str(tmp_path / "*_pred.tif"), "--output", str(tmp_path / "all_pred.tif")]
    for turn in (region(), 1 - region().clip(0, 1)):
        part(tmp_path / "b_pred.tif", turn, 0, 0, 60, 80)
        assert main(command) == 0
        np.testing.assert_array_equal(read(tmp_path / "all_pred.tif")[0], turn)
    (tmp_path / "b_pred.tif").unlink()
    with pytest.raises(ValueError, match="--input names no map beside --output"):
        main(command)


def test_where_maps_overlap_the_first_counts_and_another_reference_system_is_brought_along(tmp_path):
    whole = region(100, 100)
    first = part(tmp_path / "first.tif", whole * 0, 0, 0, 20, 100)
    there = Affine(1e-4, 0, 14.9995, 0, -1e-4, 52.3495)
    degrees = np.full((120, 160), -1, np.int16)
    how = dict(src_transform=CORNER, src_crs="EPSG:32633", dst_transform=there, dst_crs="EPSG:4326")
    reproject(whole.astype(np.int16), degrees, **how, src_nodata=-1, dst_nodata=-1, resampling=Resampling.nearest)
    other = write(tmp_path / "other.tif", degrees, there, "EPSG:4326")
    assert main(["mosaic", "--input", str(first), str(other), "--output", str(tmp_path / "m.tif")]) == 0
    with rasterio.open(tmp_path / "m.tif") as file:
        inverse = ~file.transform @ CORNER
        row, column = round(inverse.f), round(inverse.c)
        found = file.read(1)[row : row + 100, column : column + 100]
    assert (found[:20] == 0).all()
    seen = found[20:] >= 0
    assert seen.mean() > 0.9 and (found[20:] == whole[20:])[seen].mean() > 0.8  # twice the nearest neighbour


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(names=("water", "wood", "road")), "is a map of another model than"),
        (dict(dtype="float32", nodata=np.nan), "is a map of another model than"),
        (dict(crs=None), "has no reference system: it cannot be a part of a mosaic"),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_maps_that_do_not_belong_together(other, message, tmp_path):
    paths = [write(tmp_path / "a.tif", region()), write(tmp_path / "b.tif", region(), **other)]
    with pytest.raises(ValueError, match=message):
        main(["mosaic", "--input", *map(str, paths), "--output", str(tmp_path / "m.tif")])


def table(path):
    with path.open() as file:
        return {line["class"]: line for line in csv.DictReader(file)}


def test_areas_and_scores_by_hand(tmp_path):
    classes = np.zeros((20, 30), int)
    classes[:, 10:], classes[:, 25:], classes[18:] = 1, 2, -1
    maps = write(tmp_path / "a_pred.tif", classes)

    def square(left, top, right, bottom):
        (west, north), (east, south) = CORNER @ (left, top), CORNER @ (right, bottom)
        return shapely.box(west, south, east, north)

    shapes = np.array([square(0, 0, 5, 4), square(8, 10, 14, 20)], object)  # 20 pixels; 6 columns, 8 seen rows
    fields = [np.array(["water", "wood"], object)]
    polygons = tmp_path / "p.gpkg"
    pyogrio.raw.write(polygons, shapely.to_wkb(shapes), fields, ["kind"], geometry_type="Polygon", crs="EPSG:32633")
    out = tmp_path / "t" / "areas.csv"
    given = ["areas", "--input", str(maps), "--output", str(out)]
    assert main([*given, "--reference", str(polygons), "--column", "kind"]) == 0
    rows = table(out)
    assert [int(rows[name]["pixels"]) for name in (*NAMES, "all")] == [180, 270, 90, 540]
    assert [float(rows[name]["hectares"]) for name in (*NAMES, "all")] == pytest.approx([1.8, 2.7, 0.9, 5.4])
    # wood's polygon lies with 2 of 6 columns on water: of 20 + 16 pixels called water 20 are, of 48 of wood 32 found
    assert [int(rows[name]["reference_pixels"]) for name in (*NAMES, "all")] == [20, 48, 0, 68]
    assert float(rows["water"]["precision"]) == pytest.approx(20 / 36, abs=1e-4)
    assert float(rows["wood"]["recall"]) == pytest.approx(32 / 48, abs=1e-4)
    assert float(rows["wood"]["iou"]) == pytest.approx(32 / 48, abs=1e-4)
    assert float(rows["all"]["overall_accuracy"]) == pytest.approx(52 / 68, abs=1e-4)
    assert main([*given, "--input", str(maps), str(tmp_path / "a_*.tif")]) == 0  # named twice, counted once
    assert "recall" not in table(out)["water"] and table(out)["all"]["pixels"] == "540"


def test_a_pixel_in_degrees_is_smaller_towards_the_pole(tmp_path):
    transform = Affine(0.5, 0, 10, 0, -1, 61)  # two rows of half a degree by one: 60 to 61 and 59 to 60 degrees north
    maps = write(tmp_path / "a_pred.tif", np.array([[0], [1]]), transform, "EPSG:4326")
    assert main(["areas", "--input", str(maps), "--output", str(tmp_path / "a.csv")]) == 0
    rows = table(tmp_path / "a.csv")
    for name, south in (("water", 60), ("wood", 59)):
        middle = np.cos(np.radians(south + 0.5))
        assert float(rows[name]["hectares"]) == pytest.approx(0.5 * 111.195**2 * 100 * middle, rel=1e-3)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_mistakes_are_one_sentence(tmp_path):
    out = ["--output", str(tmp_path / "a.csv")]
    bare = write(tmp_path / "bare.tif", region(), crs=None)
    with pytest.raises(ValueError, match="bare.tif has no reference system: its pixels have no known area"):
        main(["areas", "--input", str(bare), *out])
    with pytest.raises(ValueError, match="--reference and --column go together"):
        main(["areas", "--input", str(bare), *out, "--reference", "x.gpkg"])
    placed, far = write(tmp_path / "a_pred.tif", region()), shapely.box(0, 0, 9, 9)
    pyogrio.raw.write(
        tmp_path / "far.gpkg", shapely.to_wkb(np.array([far], object)), [np.array(["water"], object)], ["crop"],
        geometry_type="Polygon", crs="EPSG:32633",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no polygon of .*far.gpkg holds the centre of a pixel that has a class"):
        main(["areas", "--input", str(placed), *out, "--reference", str(tmp_path / "far.gpkg"), "--column", "crop"])
    image = write(tmp_path / "image.tif", region(), names=())
    with pytest.raises(ValueError, match="image.tif is no map of the classes that eval/predict.py makes"):
        main(["areas", "--input", str(image), *out])
