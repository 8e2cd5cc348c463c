import json
import re
import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine

from data_prep.main import main
from data_prep.timeseries.imports import full_dates
from data_prep.timeseries.units import RADAR, decibels, offset_of, to_stored, without_offset
from dinov2.data.series import Series, tracks
from dinov2.data.series_tiles import open_tile, tile_folders
from dinov2.data.shards import ShardSet
from dinov2.data.stats import Normalisation
from dinov2.models.zoo.tessera import DOUBLED_OFFSET, DOUBLED_SCALE
from tests import tiny_series

CRS = "EPSG:32631"


def test_both_radar_conventions_hold_the_same_decibels():
    """Power 0.0741 is -11.3 dB; doubled it is (2 * -11.3 + 50) * 200 = 5480."""
    power = np.array([0.0741, 1.0, 1e-9, 0.0, -1.0, np.nan])
    db = decibels(power, "linear_power")
    assert np.isnan(db).tolist() == [False] * 3 + [True] * 3
    np.testing.assert_allclose(decibels(np.sqrt(power[:3]), "amplitude"), db[:3])
    doubled = to_stored(db, "doubled")
    assert doubled[:2].tolist() == [round((20 * np.log10(0.0741) + 50) * 200), 10000]
    assert doubled[2] == 1 and (doubled[3:] == 0).all()  # below -25 dB saturates; 0 stays "none"
    assert RADAR["doubled"][:2] == (DOUBLED_SCALE, DOUBLED_OFFSET)  # as the released weights take it
    assert abs(doubled[0] * DOUBLED_SCALE + DOUBLED_OFFSET - db[0]) < 0.002
    plain = to_stored(db, "db")
    assert plain[:3].tolist() == [round(100 * db[0]), 0, -9000] and (plain[3:] == RADAR["db"][2]).all()


def test_the_baseline_offset_goes_once_and_never_to_no_observation():
    stored = np.array([0, 500, 1000, 1001, 9000], np.uint16)
    assert without_offset(stored, 1000).tolist() == [0, 1, 1, 1, 8000]
    assert without_offset(stored, 0).tolist() == stored.tolist()
    old, new = {"s2:processing_baseline": "03.01"}, {"s2:processing_baseline": "05.09"}
    assert [offset_of(p, "x") for p in (old, new)] == [0, 1000]
    assert offset_of({**new, "earthsearch:boa_offset_applied": True}, "x") == 0
    assert offset_of(old, "x", "remove") == 1000 and offset_of(new, "x", "none") == 0


def test_days_of_the_year_become_dates_over_leap_days_and_new_years():
    days = np.array([300, 366, 1, 59, 60, 365, 3])
    found = full_dates(days, "2020-10-26", "x")
    assert found == ("2020-10-26", "2020-12-31", "2021-01-01", "2021-02-28", "2021-03-01", "2021-12-31", "2022-01-03")
    with pytest.raises(ValueError, match="day 366 is none of 2021"):
        full_dates(np.array([366]), "2021-01-01", "x")


@pytest.fixture
def region(tmp_path):
    """Arrays, and their tiles as our own writer makes them."""
    arrays = tiny_series.cube(30)
    return arrays, tiny_series.write_region(tmp_path / "ours", arrays, 20)


def test_d_pixel_folders_are_imported_with_full_dates_and_cut_padding(region, tmp_path):
    arrays, ours = region
    src = tmp_path / "dpixel"
    for folder in tile_folders(ours):
        shutil.copytree(folder, src / folder.name)
        (src / folder.name / "tile.json").unlink()
        bands = np.load(src / folder.name / "bands.npy").astype(np.float32)  # as one of the two writers stores them
        padded = np.zeros((len(bands), 20, 20, 3), np.float32)
        padded[:, : bands.shape[1], : bands.shape[2]] = bands
        np.save(src / folder.name / "bands.npy", padded)
    words = ["timeseries", "--src", str(src), "--out", str(tmp_path / "tiles"), "--bands", "B02,B04,B08"]
    assert main([*words, "--first-date", "2021-11-20", "--s1-scale", "db"]) == 0
    for folder in tile_folders(ours):
        found, want = open_tile(tmp_path / "tiles" / folder.name), open_tile(folder)
        assert {n: v.dates for n, v in found.layers.items()} == {n: v.dates for n, v in want.layers.items()}
        assert found.layers["bands"].spec == want.layers["bands"].spec and found.transform == want.transform
        for name in (*want.layers, "masks"):
            assert np.array_equal(found.array(name), want.array(name)), name


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give --first-date"),
        (["--first-date", "2021-11-20"], "shape .* --bands names 10"),
        (["--first-date", "2021-11-20", "--bands", "B02,B04,B08"], "masks.npy is missing"),
        (["--first-date", "2021-11-20", "--bands", "B02,B04,B08"], "20_0_30_20/bands.npy holds numbers outside of 0"),
    ],
)
def test_d_pixel_folders_that_cannot_be_imported(region, tmp_path, capsys, words, message):
    _, ours = region
    (ours / "0_0_20_20" / "masks.npy").unlink()
    bands = ours / "20_0_30_20" / "bands.npy"
    np.save(bands, np.where(np.load(bands) > 1500, np.nan, 1))
    try:
        assert main(["timeseries", "--src", str(ours), "--out", str(tmp_path / "tiles"), *words]) == 1
        said = capsys.readouterr().out
    except ValueError as error:
        said = str(error)
    assert re.search(message, said)


def write_stack(folder, arrays, masks: bool = True) -> None:
    """The cube as GeoTIFFs, bands in another order than asked for."""
    place = dict(driver="GTiff", crs=CRS, transform=Affine(10, 0, 5e5, 0, -10, 5e6), height=30, width=30)
    for name in ("bands", "masks", "ascending"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for date, image, mask in zip(tiny_series.OPTICAL_DATES, arrays["bands"], arrays["masks"], strict=True):
        with rasterio.open(folder / "bands" / f"s2_{date}.tif", "w", count=3, dtype="uint16", **place) as file:
            file.write(np.moveaxis(image[..., ::-1] + 0, 2, 0))
            file.descriptions = ("B08", "B04", "B02")
        if masks:
            with rasterio.open(folder / "masks" / f"s2_{date}.tif", "w", count=1, dtype="uint8", **place) as file:
                file.write(mask[None])
    for date, image in zip(tiny_series.RADAR_DATES["ascending"], arrays["sar_ascending"], strict=True):
        path = folder / "ascending" / f"{date.replace('-', '')}.tif"
        with rasterio.open(path, "w", count=2, dtype="float32", nodata=np.nan, **place) as file:
            file.write(np.moveaxis(np.where(image == -32768, np.nan, image / 100).astype(np.float32), 2, 0))


def test_geotiff_stacks_are_read_by_band_name(region, tmp_path):
    arrays, _ = region
    write_stack(tmp_path / "stack", arrays)
    words = ["timeseries", "--src", str(tmp_path / "stack"), "--out", str(tmp_path / "tiles"), "--tile", "20"]
    assert main([*words, "--bands", "B02,B04,B08", "--s2-offset", "none"]) == 0
    found = open_tile(tmp_path / "tiles" / "20_0_30_20")
    assert found.layers["bands"].dates == tiny_series.OPTICAL_DATES
    for name in ("bands", "masks", "sar_ascending"):
        assert np.array_equal(found.array(name), arrays[name][:, :20, 20:]), name
    for other, named in ((["--tile", "30"], "tile"), (["--s2-offset", "remove"], "s2_offset")):
        with pytest.raises(ValueError, match=f"holds tiles made with another {named}: choose"):
            main([*words, "--bands", "B02,B04,B08", "--s2-offset", "none", *other])


def test_stacks_without_masks_and_on_other_grids_are_one_sentence(region, tmp_path):
    arrays, _ = region
    write_stack(tmp_path / "stack", arrays, masks=False)
    words = ["timeseries", "--src", str(tmp_path / "stack"), "--out", str(tmp_path / "tiles"), "--bands", "B02,B04,B08"]
    with pytest.raises(ValueError, match="without it clouds would count as clear"):
        main(words)
    write_stack(tmp_path / "stack", arrays)
    shifted = dict(driver="GTiff", crs=CRS, transform=Affine(10, 0, 5e5 - 100, 0, -10, 5e6), dtype="uint8", count=1)
    for width in (30, 40):  # elsewhere; larger
        mask = tmp_path / "stack" / "masks" / f"s2_{tiny_series.OPTICAL_DATES[3]}.tif"
        with rasterio.open(mask, "w", height=30, width=width, **shifted):
            pass
        with pytest.raises(ValueError, match=f"{mask.name} lies on another grid"):
            main(words)
    with pytest.raises(ValueError, match="neither tiles"):
        main(["timeseries", "--src", str(tmp_path), "--out", str(tmp_path / "none")])
    write_stack(tmp_path / "stack", arrays)
    odd = tmp_path / "stack" / "bands" / "2023-01-01.tif"
    place = dict(driver="GTiff", crs=CRS, transform=Affine(10, 0, 5e5 + 3, 0, -10, 5e6), height=30, width=30)
    with rasterio.open(odd, "w", count=3, dtype="uint16", **place):
        pass
    with pytest.raises(ValueError, match="lies on another grid"):
        main(words)


@pytest.mark.parametrize("nodata, good", [(65535, True), (None, False)])
def test_nodata_of_a_file_is_no_observation_and_no_number_wraps(region, tmp_path, capsys, nodata, good):
    """70000 as 16 bits would be 4464."""
    arrays, _ = region
    write_stack(tmp_path / "stack", arrays)
    path = tmp_path / "stack" / "bands" / f"s2_{tiny_series.OPTICAL_DATES[1]}.tif"
    with rasterio.open(path) as file:
        image, profile, names = file.read().astype(np.int32), file.profile, file.descriptions
    image[:, :5] = nodata or 70000
    profile.update(nodata=nodata, dtype="int32")
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
        file.descriptions = names
    words = ["timeseries", "--src", str(tmp_path / "stack"), "--out", str(tmp_path / "tiles"), "--s2-offset", "none"]
    assert main([*words, "--bands", "B02,B04,B08"]) == (0 if good else 1)
    if good:
        found = open_tile(tmp_path / "tiles" / "0_0_30_30").array("bands")
        assert not found[1, :5].any() and np.array_equal(found[1, 5:], arrays["bands"][1, 5:])
    else:
        assert f"{path.name} holds numbers outside of 0 to 65535" in capsys.readouterr().out


def test_chips_of_tiles_are_the_same_series_as_the_tiles(region, tmp_path):
    arrays, ours = region
    with rasterio.open(ours / "20_20_30_30" / "roi.tiff", "r+") as file:
        file.write(np.zeros((1, 10, 10), np.uint8))
    with rasterio.open(ours / "0_0_20_20" / "roi.tiff", "r+") as file:
        roi = file.read(1)
        roi[10, 10] = 0
        file.write(roi[None])
    words = ["pixels", "--src", str(ours), "--out", str(tmp_path / "set"), "--every", "5"]
    assert main(words) == 0
    shards = ShardSet.open([tmp_path / "set"])
    assert len(shards) == 2 * 2 + 2 + 2  # none of the tile outside of the region
    options = Series(optical_bands=list(tiny_series.BANDS))
    norm = Normalisation.from_stats(shards.stats)
    samples = {s.key: s for s in (shards.read(0, i) for i in range(len(shards)))}
    for key, image in samples["r000010c000010"].images.items():
        invalid = samples["r000010c000010"].specs[key].invalid(image).all((0, 1))
        assert invalid[0, 0] and invalid.sum() == 1
    sample = samples["r000010c000020"]
    seen = tracks(sample, options.inputs, norm)
    tile = open_tile(ours / "20_0_30_20")
    clear = arrays["masks"][:, 10:12, 20:22].reshape(12, 4) == 1
    assert np.array_equal(seen["s2"].valid, clear)
    assert np.array_equal(seen["s2"].stored[clear], arrays["bands"][:, 10:12, 20:22].reshape(12, 4, 3)[clear])
    looks = sum(len(tile.layers[n].dates) for n in ("sar_ascending", "sar_descending"))
    valid = sum((arrays[n][:, 10:12, 20:22] != -32768).any(-1).sum() for n in ("sar_ascending", "sar_descending"))
    assert seen["s1"].valid.sum() == valid and len(seen["s1"].days) == 2 * looks
    assert json.loads(json.dumps(sample.meta))["tile"] == "20_0_30_20"
    bands = ours / "20_0_30_20" / "bands.npy"
    np.save(bands, np.load(bands) // 2 + 1)
    with pytest.raises(ValueError, match="was written with other settings .source files"):
        main(words)
