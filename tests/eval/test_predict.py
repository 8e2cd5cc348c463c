import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from matplotlib.image import imread

from eval.dense_metrics import predicted_classes
from eval.engine import evaluate
from eval.tiling import starts
from eval.trained import load_trained
from tests.dense import dataset
from tests.scenes import CPU, UTM, cell, image, predicted, read, run, write


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Trained models by name, each made once."""
    return lru_cache(lambda name: cell(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", ["pixels", "unet", "vit"])
def test_a_tile_equals_the_model_on_the_image(cells, name, tmp_path):
    test = dataset().splits["test"]
    path = write(tmp_path / "a.tif", test[2].images["sentinel2_l2a-10m"])
    logits = list(load_trained(cells(name)).predictions(test, CPU, 1))[2]
    np.testing.assert_array_equal(predicted(cells(name), path, tmp_path / "out"), predicted_classes(logits)[0])


def test_images_are_resized_as_in_training(cells, tmp_path):
    test = dataset(size=(24, 24)).splits["test"]
    path = write(tmp_path / "a.tif", test[2].images["sentinel2_l2a-10m"])
    trained = load_trained(cells("resized"))
    logits = list(trained.predictions(test, CPU, 1))[2]
    assert (trained.joined.size, trained.side) == (16, 24)
    np.testing.assert_array_equal(predicted(cells("resized"), path, tmp_path / "out"), predicted_classes(logits)[0])


def test_confidence_is_the_second_band_on_request(cells, tmp_path):
    pixels = image(30, 40)
    pixels[:, 4] = 0
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    plain = predicted(cells("pixels"), path, tmp_path / "plain", "--probabilities")
    both = ("--probabilities", "--confidence")
    np.testing.assert_array_equal(predicted(cells("pixels"), path, tmp_path / "sure", *both), plain)
    with rasterio.open(tmp_path / "sure" / "a_pred.tif") as file:
        assert file.descriptions == ("class", "confidence") and file.scales == (1.0, 1e-4)
        np.testing.assert_array_equal(file.read(2), read(tmp_path / "plain" / "a_prob.tif")[0])
        assert (file.read(2)[4] == -1).all() and file.colormap(1)


def test_values_equal_the_model_and_keep_their_unit(cells, tmp_path):
    test = dataset(kind="regression").splits["test"]
    path = write(tmp_path / "a.tif", test[1].images["sentinel2_l2a-10m"])
    wanted = list(load_trained(cells("values")).predictions(test, CPU, 1))[1][0, 0]
    np.testing.assert_allclose(predicted(cells("values"), path, tmp_path / "out"), wanted, atol=1e-5)
    with rasterio.open(tmp_path / "out" / "a_pred.tif") as file:
        assert (file.dtypes, file.tags()["unit"], file.descriptions) == (("float32",), "m", ("value",))
        assert np.isnan(file.nodata)


@pytest.mark.parametrize(("name", "differing"), [("pixels", 0.0), ("unet", 0.002), ("vit", 0.005)])
def test_tiles_of_any_size_give_the_same_map(cells, name, differing, tmp_path):
    path = write(tmp_path / "a.tif", image(301, 250))
    maps, shares = {}, {}
    for tile in (64, 128, 224):
        out = tmp_path / str(tile)
        maps[tile] = predicted(cells(name), path, out, "--tile", str(tile), "--overlap", "32", "--probabilities")
        shares[tile] = read(out / "a_prob.tif").astype(int)
    for tile in (128, 224):
        assert (maps[tile] != maps[64]).mean() <= differing  # attention sees more in a larger tile
        if not differing:
            assert np.abs(shares[tile] - shares[64]).max() <= 1  # of 10,000: rounding


def test_overlapping_tiles_leave_no_seam(cells, tmp_path):
    path = write(tmp_path / "a.tif", image(64, 288))

    def seam(overlap: int) -> float:
        """How much larger than elsewhere the steps are where tiles end, of what differs from one large tile."""
        shares = {}
        for tile, shared in ((64, overlap), (288, 0)):
            out = tmp_path / f"{tile}-{shared}"
            predicted(cells("vit"), path, out, "--tile", str(tile), "--overlap", str(shared), "--probabilities")
            shares[tile] = read(out / "a_prob.tif")[1:].astype(float)
        step = np.abs(np.diff(shares[64] - shares[288], axis=2)).mean((0, 1))  # between columns
        patches = range(3, 287, 4)
        ends = [first + 64 - 1 for first in starts(288, 64, 64 - overlap)[:-1]]
        return step[ends].mean() / step[patches].mean()

    assert seam(32) < 1.5 and seam(0) > 3


def test_the_map_says_where_it_lies_and_what_it_means(cells, tmp_path):
    pixels = image(70, 50)
    pixels[:, :5] = 0
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    with rasterio.open(path, "r+") as file:
        file.update_tags(scene="tile 33UUP")
    classes = predicted(cells("pixels"), path, tmp_path / "out", "--probabilities")
    assert (classes[:5] == -1).all() and (classes[5:] >= 0).all()
    with rasterio.open(tmp_path / "out" / "a_pred.tif") as file:
        assert (file.crs, file.transform, file.shape) == (rasterio.CRS.from_epsg(32633), UTM["transform"], (70, 50))
        assert (file.dtypes, file.nodata, file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"]) == (("int16",), -1, "COG")
        tags = file.tags()
        assert tags["scene"] == "tile 33UUP" and [tags[f"class_{k}"] for k in range(3)] == ["dark", "middle", "bright"]
        colours = file.colormap(1)
    assert tags["colour_1"] == "#" + "".join(f"{c:02x}" for c in colours[1][:3])
    with rasterio.open(tmp_path / "out" / "a_prob.tif") as file:
        assert file.descriptions == ("confidence", "dark", "middle", "bright") and set(file.scales) == {1e-4}
        shares = file.read()
    seen = shares[:, classes >= 0]
    assert np.abs(seen[1:].sum(0) - 10_000).max() <= 2 and (seen[0] == seen[1:].max(0)).all()
    assert (shares[:, classes < 0] == -1).all()
    look = (255 * imread(tmp_path / "out" / "a_pred.png")).round()
    assert (look[:5, :, 3] == 0).all() and tuple(look[30, 20]) == colours[classes[30, 20]]


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (16, 90), (131, 17)])
def test_rasters_of_any_shape(cells, shape, tmp_path):
    path = write(tmp_path / "a.tif", image(*shape))
    classes = predicted(cells("pixels"), path, tmp_path / "out")
    assert classes.shape == shape and classes.min() >= 0
    assert predicted(cells("vit"), path, tmp_path / "vit").shape == shape


def test_what_was_not_observed_is_no_class(cells, tmp_path):
    whole = predicted(cells("pixels"), write(tmp_path / "whole.tif", image(40, 40)), tmp_path / "out")
    pixels = image(40, 40).astype(np.float32)
    pixels[0, 3, 4], pixels[1, 7, 8], pixels[2, 20:, :] = np.nan, np.inf, -9999
    holes = predicted(cells("pixels"), write(tmp_path / "holes.tif", pixels, nodata=-9999), tmp_path / "out")
    bad = np.zeros((40, 40), bool)
    bad[3, 4] = bad[7, 8] = bad[20:] = True
    np.testing.assert_array_equal(holes, np.where(bad, -1, whole))
    dark = write(
        tmp_path / "dark.tif", np.where(bad, 0, image(40, 40) * [[[1]], [[1]], [[0]]]).astype(np.uint16), nodata=0
    )
    np.testing.assert_array_equal(predicted(cells("pixels"), dark, tmp_path / "out") < 0, bad)  # 0 in one band is dark
    said = predicted(cells("pixels"), tmp_path / "holes.tif", tmp_path / "said", "--nodata", str(pixels[0, 0, 0]))
    assert said[0, 0] == -1
    empty = write(tmp_path / "empty.tif", np.zeros((3, 40, 40), np.uint16), nodata=0)
    assert (predicted(cells("vit"), empty, tmp_path / "out") == -1).all()


@pytest.mark.parametrize(
    "place",
    [dict(crs=None, transform=None), dict(transform=UTM["transform"] @ Affine.rotation(30)), dict(crs="EPSG:4326")],
    ids=["none", "rotated", "degrees"],
)
def test_any_place_is_kept(cells, place, tmp_path):
    path = write(tmp_path / "a.tif", image(30, 30), **place)
    predicted(cells("pixels"), path, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as a, rasterio.open(tmp_path / "out" / "a_pred.tif") as b:
            assert a.crs == b.crs and a.transform.almost_equals(b.transform, 1e-6)


def test_ground_control_points_are_kept(cells, tmp_path):
    path = write(tmp_path / "swath.tif", image(40, 40), crs=None, transform=Affine.identity())
    corners = [(0, 0, 15, 52), (0, 40, 15.01, 52), (40, 0, 15, 51.99)]
    points = [rasterio.control.GroundControlPoint(*corner) for corner in corners]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, rasterio.CRS.from_epsg(4326)
    predicted(cells("pixels"), path, tmp_path)
    with rasterio.open(tmp_path / "swath_pred.tif") as file:
        found, crs = file.gcps
    assert [(p.row, p.col, p.x, p.y) for p in found] == corners and crs == rasterio.CRS.from_epsg(4326)


def test_bands_are_found_by_name_or_number(cells, tmp_path):
    pixels, cell = image(30, 30), cells("pixels")
    wanted = predicted(cell, write(tmp_path / "a.tif", pixels), tmp_path / "out")
    more = np.concatenate([pixels[::-1], pixels[:1] * 0 + 77])
    named = write(tmp_path / "named.tif", more, ("B4", "b03", "B2", "B8A"))
    bare = write(tmp_path / "bare.tif", more)
    for path, options in [(named, ()), (bare, ("2", "1", "0")), (bare, ("[2,1,0]",)), (named, ("B02,B03,B04",))]:
        given = ("--bands", *options) if options else ()
        np.testing.assert_array_equal(predicted(cell, path, tmp_path / "again", *given), wanted)


def test_numbers_in_another_unit_give_the_same_map(cells, tmp_path):
    pixels, cell = image(30, 30), cells("pixels")
    wanted = predicted(cell, write(tmp_path / "a.tif", pixels), tmp_path / "out")
    share = write(tmp_path / "share.tif", pixels.astype(np.float32) / 10_000)
    np.testing.assert_array_equal(predicted(cell, share, tmp_path / "out", "--unit", "reflectance"), wanted)
    np.testing.assert_array_equal(predicted(cell, share, tmp_path / "out2", "--scale", "1"), wanted)
    tagged = write(tmp_path / "tagged.tif", (pixels // 2).astype(np.int16))
    with rasterio.open(tagged, "r+") as file:
        file.scales = (2e-4,) * 3
    assert (predicted(cell, tagged, tmp_path / "out") != wanted).mean() < 0.01  # halves are rounded


def test_a_stack_of_dates(cells, tmp_path):
    pixels, cell = image(20, 20, frames=3), cells("dates")  # 3 dates of 3 bands
    days = ("--dates", "2020-01-01", "2020-02-01", "2020-03-01")
    wanted = predicted(cell, write(tmp_path / "nine.tif", pixels), tmp_path / "out", *days)
    dates = pixels.reshape(3, 3, 20, 20)
    eighteen = write(tmp_path / "eighteen.tif", np.concatenate([dates, dates * 0 + 7], 1).reshape(18, 20, 20))
    for bands in (("0", "1", "2"), tuple(str(6 * t + c) for t in range(3) for c in range(3))):
        found = predicted(cell, eighteen, tmp_path / "out", *days, "--bands", *bands)
        np.testing.assert_array_equal(found, wanted)
    holes = dates.astype(np.float32)
    holes[1:] = np.nan
    one = predicted(cell, write(tmp_path / "one.tif", holes.reshape(9, 20, 20)), tmp_path / "out", *days)
    assert (one >= 0).all()  # a date is enough
    assert run(cell, tmp_path / "eighteen.tif", tmp_path / "bad", *days) == 1


def test_a_neck_that_attends_to_dates_is_told_them(cells, tmp_path, capsys):
    path, cell = write(tmp_path / "nine.tif", image(20, 20, frames=3)), cells("attention")
    assert run(cell, path, tmp_path / "out") == 1
    assert "ltae needs the dates of a series: give them (maps: --dates)" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert (predicted(cell, path, tmp_path / "out", "--dates", "2020-01-01", "2020-02-01", "2020-03-01") >= 0).all()


def test_a_map_is_kept_with_all_that_was_asked_for_and_nothing_of_another(cells, tmp_path, capsys):
    path, out, beside = write(tmp_path / "a.tif", image(20, 20)), tmp_path / "out", tmp_path / "out" / "a_prob.tif"
    for wanted in ("done", "kept"):
        assert run(cells("pixels"), path, out, "--probabilities") == 0 and wanted in capsys.readouterr().out
    beside.unlink()
    assert run(cells("pixels"), path, out, "--probabilities") == 0 and beside.is_file()
    assert run(cells("unet"), path, out) == 0 and not beside.exists()  # it was the other model's


def test_files_that_fail_are_listed_and_the_others_are_kept(cells, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write(folder / "good.tif", image(30, 30))
    write(folder / "few.tif", image(30, 30)[:2])
    write(folder / "named.tif", image(30, 30), ("B02", "B03", "B9"))
    colours = write(folder / "colours.tif", image(30, 30)[:1].astype(np.uint8), photometric="palette")
    with rasterio.open(colours, "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0, 255)})
    write(folder / "waves.tif", image(30, 30).astype(np.complex64))
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:900])
    (folder / "note.txt").write_text("no raster")
    (folder / "._good.tif").write_bytes(b"what macOS leaves on other disks")
    assert run(cells("pixels"), folder, out) == 1
    said = capsys.readouterr()
    assert "good.tif: done" in said.out
    assert sorted(p.name for p in out.iterdir()) == ["good_pred.png", "good_pred.tif", "good_pred.tif.aux.xml"]
    errors = dict(line.split("FAILED ")[1].split(": ", 1) for line in said.err.splitlines())
    assert {Path(p).name for p in errors} == {"few.tif", "named.tif", "colours.tif", "waves.tif", "cut.tif"}
    assert "named.tif has no band B04. It has B02, B03, B9; see --bands" in said.err
    assert "colours.tif holds numbers of a palette" in said.err
    assert "has 2 band(s) without names; say by --bands which numbers (from 0) are B02, B03, B04" in said.err
    made = (out / "good_pred.tif").stat().st_mtime_ns
    assert run(cells("pixels"), folder / "good.tif", out) == 0
    assert "good.tif: kept" in capsys.readouterr().out and (out / "good_pred.tif").stat().st_mtime_ns == made
    assert run(cells("pixels"), folder / "good.tif", out, "--tile", "8") == 0
    assert "good.tif: done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("labels", (), "predicts one multilabel per image; maps need a model trained on maps"),
        ("values", ("--probabilities",), "predicts values, which have none"),
        ("pixels", ("--tile", "16", "--overlap", "16"), "0 <= overlap < tile"),
        ("vit", ("--tile", "18"), "--tile 18 --overlap 4: tiles must be whole cells of 4"),
        ("pixels", ("--tile", "0"), "--tile 0 --overlap 0 --batch 8: 0 <= overlap"),
        ("pixels", ("--device", "cuda:99"), "device cuda:99: here are cpu"),
        ("pixels", ("--device", "tpu"), "device tpu: here are cpu"),
        ("dates", ("--dates", "2020-01-01", "2020-13-01"), "--dates 2020-13-01: write dates as 2021-05-01"),
    ],
)
def test_options_that_cannot_be(cells, model, options, message, tmp_path):
    path = write(tmp_path / "a.tif", image(30, 30))
    with pytest.raises(ValueError, match=message):
        run(cells(model), path, tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--unit", "db"), "--unit db: the model takes sentinel2_l2a in reflectance"),
        (("--bands", "0", "1"), "--bands names 2 bands; the model takes 3 on 1 date(s)"),
        (("--bands", "0", "1", "3"), "a.tif has the bands 0 to 2, but --bands asks for 3"),
        (("--bands", "B02,B03,B05"), "a.tif has no band B05. It has B02, B03, B04; see --bands"),
        (("--dates", "2020-01-01", "2020-02-01"), "--dates names 2 dates; the model takes 1"),
    ],
)
def test_a_file_that_cannot_be_is_one_sentence(cells, options, message, tmp_path, capsys):
    path = write(tmp_path / "a.tif", image(30, 30), ("B02", "B03", "B04"))
    assert run(cells("pixels"), path, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(cells, tmp_path):
    (tmp_path / "b").mkdir()
    for folder in (tmp_path, tmp_path / "b"):
        write(folder / "a.tif", image(30, 30))
    with pytest.raises(ValueError, match=r"would become the same map: rename one"):
        run(cells("pixels"), tmp_path / "*" / "a.tif", tmp_path / "out", "--input", str(tmp_path), str(tmp_path / "b"))


@pytest.fixture(scope="module")
def floods(tmp_path_factory, realdata) -> Path:
    """A model of surface water, trained on a Sentinel-2 scene over Spain."""
    config = yaml.safe_load(Path("configs/eval/realdata_dense/floods/unet.yaml").read_text())
    config["dataset"] |= {"images": ["sentinel2_l1c"], "bands": ["B02", "B03", "B04", "B8A", "B11", "B12"]}
    config["task"] |= {"epochs": 6, "decoder_options": {}}
    out = tmp_path_factory.mktemp("floods")
    evaluate(["unet?width=8"], [{**config, "name": "floods", "seeds": [0]}], out)
    (file,) = out.rglob("seed-0.safetensors")
    return file.parent


@pytest.mark.realdata
def test_a_real_flood_scene(floods, realdata, tmp_path):
    scene = realdata / "sen1floods11" / "S2" / "Spain_7370579_S2Hand.tif"
    water = predicted(floods, scene, tmp_path, "--tile", "128", "--probabilities")
    truth = read(realdata / "sen1floods11" / "Labels" / "Spain_7370579_LabelHand.tif")[0]
    known = truth >= 0
    assert (water[known] == truth[known]).mean() > max(0.8, (truth[known] == 0).mean())
    with rasterio.open(scene) as a, rasterio.open(tmp_path / f"{scene.stem}_pred.tif") as b:
        assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape)
        assert b.tags()["bands"] == "B02 = 1, B03 = 2, B04 = 3, B8A = 8, B11 = 11, B12 = 12"
        assert (b.tags()["class_0"], b.tags()["class_1"]) == ("land", "water")


@pytest.mark.realdata
def test_a_real_chip_of_another_sensor(floods, realdata, tmp_path):
    chip = realdata / "hls" / "segmentation_test_0_input.tif"  # Landsat's bands without names
    found = predicted(floods, chip, tmp_path, "--bands", *"123456", "--tile", "64")
    with rasterio.open(chip) as a, rasterio.open(tmp_path / f"{chip.stem}_pred.tif") as b:
        assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape) and b.crs.to_epsg() == 32614
        lost = (a.read([2, 3, 4, 5, 6, 7]) == -9999).any(0)
    np.testing.assert_array_equal(found < 0, lost)


@pytest.mark.realdata
def test_a_real_stack_of_months(cells, realdata, tmp_path):
    cube = realdata / "worldcereal" / "belgium_good_2020-12-01_2021-11-30.nc"
    months, planes = (4, 6, 8), []
    for band in ("B02", "B03", "B04"):
        with rasterio.open(f"netcdf:{cube}:{band}") as file:
            planes.append(file.read([m + 1 for m in months]).astype(np.uint16))
            place = {"crs": file.crs, "transform": file.transform}
    stack = write(tmp_path / "stack.tif", np.stack(planes, 1).reshape(9, *planes[0].shape[1:]), nodata=65535, **place)
    days = ("--dates", "2021-04-01", "2021-06-01", "2021-08-01")
    found = predicted(cells("dates"), stack, tmp_path / "out", *days)
    with rasterio.open(tmp_path / "out" / "stack_pred.tif") as file:
        assert file.crs.to_epsg() == 32631 and file.transform == place["transform"]
    assert set(np.unique(found)) <= {-1, 0, 1, 2} and (found >= 0).mean() > 0.9


@pytest.mark.slow
def test_several_processes_write_the_same_maps(cells, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(3):
        write(tmp_path / "in" / f"{i}.tif", image(20 + i, 30))
    (tmp_path / "in" / "3.tif").write_text("broken")
    codes = [run(cells("pixels"), tmp_path / "in", tmp_path / f"out{n}", "--workers", str(n)) for n in (1, 2)]
    assert codes == [1, 1] and capsys.readouterr().err.count("FAILED") == 2
    for i in range(3):
        one, two = ((tmp_path / f"out{n}" / f"{i}_pred.tif").read_bytes() for n in (1, 2))
        assert one == two
