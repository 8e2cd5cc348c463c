import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from data_prep.folder import plan
from data_prep.main import main, parse
from data_prep.refine import Refine
from dinov2.data.sample import Sample
from dinov2.data.shards import ShardSet

RNG = np.random.default_rng(0)


def tif(path: Path, image: np.ndarray, tags=None, band_tags=None, crs="EPSG:32631", pixel=10.0, **profile) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    scales, offsets = profile.pop("scales", None), profile.pop("offsets", None)
    place = {"crs": crs, "transform": from_origin(500_000, 4_000_000, pixel, pixel)} if crs else {}
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=image.dtype, **place, **profile
    ) as raster:
        raster.write(image)
        raster.update_tags(**(tags or {}))
        for i, tag in enumerate(band_tags or []):
            raster.update_tags(i + 1, **tag)
        if scales:
            raster.scales = scales
        if offsets:
            raster.offsets = offsets
    return path


def options(src: Path, *words: str):
    return parse(["folder", "--src", str(src), "--out", "unused", *words])


def samples(src: Path, *words: str) -> list[Sample]:
    args = options(src, *words)
    made = plan(args)
    refine = Refine.of(args, made.labels)
    return [s for sample in made.samples() for s in refine(sample) if isinstance(s, Sample)]


LANDSAT = ("--sensor", "landsat8", "--bands", "B4,B3")
S2 = ("--sensor", "sentinel2_l2a", "--bands", "B04,B08")
L30 = ("--sensor", "hls_l30", "--bands", "B01,B02,B03,B04,B05,B06,B07,B09,_,_")
L30_THERMAL = ("--sensor", "hls_l30_thermal", "--bands", "_,_,_,_,_,_,_,_,B10,B11")


def test_chips_are_the_rasters_pixels(tmp_path, capsys):
    image = RNG.integers(1, 60_000, (2, 50, 70)).astype(np.uint16)
    image[:, :20, 20:40] = 0  # one chip without any observation
    tif(tmp_path / "in/Sub Dir/Scene.A.tif", image, tags={"datetime": "2020-05-06T10:00:00"}, pixel=30.0)
    (tmp_path / "in/Sub Dir/._Scene.A.tif").write_bytes(b"resource fork")
    out = ["--out", str(tmp_path / "out"), "--samples-per-shard", "4"]
    assert main(["folder", "--src", str(tmp_path / "in"), *LANDSAT, "--chip", "20", *out]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "5 samples written; 6 skipped: at the raster's edge, smaller than --chip 20; 1 skipped: no valid" in said
    shards = ShardSet.open(tmp_path / "out")
    read = [shards.read(s, i) for s, n in enumerate(shards.counts) for i in range(n)]
    assert [s.key for s in read] == [
        f"sub_dir_scene_a_r00{r}c00{c}" for r, c in [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    ]
    for sample in read:
        r, c = 20 * sample.meta["row"], 20 * sample.meta["column"]
        assert np.array_equal(sample.images["landsat8-30m"], image[:, r : r + 20, c : c + 20])
        assert sample.times == {"landsat8-30m": ["2020-05-06"]} and sample.crs == "EPSG:32631"
        assert sample.footprint == (
            500_000 + 30 * c,
            4_000_000 - 30 * (r + 20),
            500_000 + 30 * (c + 20),
            4_000_000 - 30 * r,
        )
        spec = sample.specs["landsat8-30m"]
        assert spec.bands == ("B4", "B3") and (spec.scale, spec.offset, spec.nodata) == (2.75e-5, -0.2, 0)


def test_the_baseline_offset_is_taken_off_by_date_or_by_choice(tmp_path):
    image = np.array([[[0, 1, 999, 1000, 1001, 11000]]] * 2, np.uint16)
    tif(tmp_path / "new.tif", image, tags={"datetime": "2022-02-01"})
    tif(tmp_path / "old.tif", image, tags={"datetime": "2022-01-24"})
    new, old = samples(tmp_path, *S2, "--chip", "0")
    assert new.images["sentinel2_l2a-10m"][0].tolist() == [[-32768, -999, -1, 0, 1, 10000]]
    assert old.images["sentinel2_l2a-10m"][0].tolist() == [[-32768, 1, 999, 1000, 1001, 11000]]
    assert new.specs == old.specs and (new.meta["removed_offset"], old.meta["removed_offset"]) == (1000, 0)
    for choice, removed in (("remove", 1000), ("none", 0)):
        both = samples(tmp_path, *S2, "--chip", "0", "--baseline-offset", choice)
        assert [s.meta["removed_offset"] for s in both] == [removed, removed]
    assert both[0].images["sentinel2_l2a-10m"].dtype == np.uint16 and both[0].specs["sentinel2_l2a-10m"].nodata == 0


def test_the_date_of_a_file_is_not_the_date_of_its_image(tmp_path):
    image = np.full((2, 8, 8), 3000, np.uint16)
    tif(tmp_path / "a.tif", image, tags={"TIFFTAG_DATETIME": "2023:06:01 10:00:00"})
    with pytest.raises(ValueError, match="a.tif has no date"):
        samples(tmp_path, *S2)
    (sample,) = samples(tmp_path, *S2, "--date", "2021-06-01", "--chip", "8")
    assert sample.times == {"sentinel2_l2a-10m": ["2021-06-01"]} and (sample.images["sentinel2_l2a-10m"] == 3000).all()
    tif(tmp_path / "a.tif", image, tags={"datetime": "2021-13-01"})
    with pytest.raises(ValueError, match="a.tif has the tag datetime=2021-13-01, which is no date: month must be"):
        samples(tmp_path, *S2)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_masks_follow_their_images(tmp_path):
    image, mask = RNG.integers(1, 9, (2, 16, 16)).astype(np.uint16), RNG.integers(0, 3, (1, 16, 16))
    mask[0, 0, 0] = 255
    tif(tmp_path / "in/a.tif", image)
    tif(tmp_path / "masks/a.tif", mask.astype(np.float32))
    words = (*LANDSAT, "--chip", "8", "--labels", str(tmp_path / "masks"), "--label-classes", "x,y,z")
    got = samples(tmp_path / "in", *words)
    assert len(got) == 4
    for s in got:
        r, c = 8 * s.meta["row"], 8 * s.meta["column"]
        assert np.array_equal(s.labels["landcover"], mask[0, r : r + 8, c : c + 8])
    tif(tmp_path / "elsewhere/a.tif", mask.astype(np.uint8), pixel=30.0)
    tif(tmp_path / "zone/a.tif", mask.astype(np.uint8), crs="EPSG:32632")
    for folder in ("elsewhere", "zone"):
        with pytest.raises(ValueError, match=f"{folder}/a.tif is no mask of .*in/a.tif: it lies at .*EPSG:32631"):
            samples(tmp_path / "in", *words[:-3], str(tmp_path / folder), *words[-2:])
    tif(tmp_path / "nowhere/a.tif", mask.astype(np.uint8), crs=None)
    assert len(samples(tmp_path / "in", *words[:-3], str(tmp_path / "nowhere"), *words[-2:])) == 4
    with pytest.raises(ValueError, match=r"masks/a.tif has the number 2(\.0)?; --label-classes names 2 classes"):
        samples(tmp_path / "in", *words[:-1], "x,y")
    (tmp_path / "masks/a.tif").unlink()
    tif(tmp_path / "masks/b.tif", mask.astype(np.uint8))
    with pytest.raises(ValueError, match="masks/a.tif, the mask of .*in/a.tif, is missing"):
        samples(tmp_path / "in", *words)


def test_bad_bands_are_left_out(tmp_path):
    image = RNG.random((3, 8, 8)).astype(np.float64)
    tags = [
        {"wavelength": w, "wavelength_units": "Nanometers", "bbl": b} for w, b in (("654", 1), ("561", 0), ("482", 1))
    ]
    tif(tmp_path / "a.tif", image, band_tags=tags)
    words = ("--sensor", "landsat8", "--bands", "B4,B3,B2", "--chip", "8", "--scale", "1", "--offset", "0")
    (sample,) = samples(tmp_path, *words, "--drop-bad-bands", "--nodata", "none")
    assert sample.specs["landsat8-10m"].bands == ("B4", "B2")
    assert np.array_equal(sample.images["landsat8-10m"], image[[0, 2]].astype(np.float32))


@pytest.mark.parametrize(
    ("image", "profile", "words", "message"),
    [
        (np.ones((3, 8, 8), np.uint16), {}, LANDSAT, "a.tif has 3 bands, 2 are named: B4, B3"),
        (np.ones((2, 8, 8), np.uint16), {"nodata": 65535}, LANDSAT, "a.tif is tagged nodata 65535, .* 0.*--nodata"),
        (np.ones((2, 8, 8), np.float32), {"nodata": np.nan}, LANDSAT, "a.tif is tagged nodata nan, .* says 0"),
        (np.ones((2, 8, 8), np.int16), {"scales": [2.75e-5, 0.5]}, LANDSAT,
         "a.tif is tagged scale 0.5, .* 2.75e-05.*--scale"),
        (np.ones((2, 8, 8), np.int16), {"scales": [1.0, 2.75e-5]}, LANDSAT,
         "a.tif is tagged scale 1, .* 2.75e-05.*--scale"),
        (np.ones((2, 8, 8), np.uint16), {"scales": [1e-4] * 2, "offsets": [0, -0.1]}, (*S2, "--date", "2021-06-01"),
         r"a.tif is tagged offset -0.1, sensor 'sentinel2_l2a' says 0: give --offset \(0 where --baseline-offset"),
        (np.ones((2, 8, 8), np.float32), {}, (*S2, "--date", "2021-06-01"),
         "float32 .* give --scale 1 --offset 0 if they are reflectance already, --scale 0.0001 --offset 0 if"),
        (np.ones((2, 8, 8), np.float32), {}, (*LANDSAT, "--scale", "1"), "a.tif .*their offset.*--offset -0.2"),
        (np.ones((2, 8, 8), np.uint16), {"pixel": 0.004}, LANDSAT, "a.tif has pixels of 0.004 m; at least 1 cm"),
        (np.ones((2, 8, 8), np.uint16), {}, S2, "a.tif has no date, .*--date, or --baseline-offset remove or none"),
        (np.ones((2, 8, 8), np.uint16), {}, ("--sensor", "landsat88"), "unknown sensor 'landsat88'; did you mean"),
        (np.ones((2, 8, 8), np.uint16), {}, ("--sensor", "landsat8", "--bands", "B4,X"), "has no band 'X'"),
        (np.ones((2, 8, 8), np.uint16), {}, ("--sensor", "worldview2", "--bands", "red,blue"), "not known.*--unit"),
        (np.ones((2, 8, 8), np.float32), {}, (*S2, "--scale", "1", "--baseline-offset", "remove"),
         "a.tif is of type float32"),
        (np.ones((2, 8, 8), np.complex64), {}, LANDSAT, "a.tif has bands of type complex64"),
        (np.ones((2, 8, 8), np.uint16), {}, (*LANDSAT, "--drop-bad-bands"), "a.tif has a band without the tag 'bbl'"),
        (np.ones((2, 8, 8), np.uint16), {"band_tags": [{"wavelength": "561"}, {}]}, LANDSAT,
         "a.tif: a band at 561 nm is called B4, which is at 654.59 nm"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_is_one_sentence(tmp_path, image, profile, words, message):
    tif(tmp_path / "a.tif", image, **profile)
    with pytest.raises(ValueError, match=message):
        samples(tmp_path, *words, "--chip", "8")


def test_fractions_and_tagged_numbers_are_scaled_once(tmp_path):
    said = ("--baseline-offset", "none", "--chip", "8")
    tif(tmp_path / "a.tif", np.full((2, 8, 8), 0.25, np.float32))
    for words, value in ((("--scale", "1", "--offset", "0"), 0.25), (("--scale", "0.0001"), 0.25e-4)):
        (sample,) = samples(tmp_path, *S2, *said, *words)
        spec, image = sample.specs["sentinel2_l2a-10m"], sample.images["sentinel2_l2a-10m"]
        assert spec.to_model(image) == pytest.approx(value)
    tif(tmp_path / "a.tif", np.full((2, 8, 8), 2500, np.float32), scales=[1e-4] * 2)
    (sample,) = samples(tmp_path, *S2, *said)
    assert sample.specs["sentinel2_l2a-10m"].scale == 1e-4


@pytest.mark.parametrize(
    ("sensor", "unit", "right", "wrong"),
    [("sentinel1_rtc", "linear_power", 0.1, -10.0), ("sentinel1_grd", "db", -10.0, 0.1)],
)
def test_radar_numbers_that_cannot_be_in_their_unit(tmp_path, sensor, unit, right, wrong):
    """A tenth of wrong pixels is noise; more of negative power, or decibels all above 0, is another unit."""
    image = np.full((2, 10, 10), right, np.float32)
    image[:, 0] = wrong
    words = ("--sensor", sensor, "--bands", "VV,VH", "--chip", "10")
    tif(tmp_path / "a.tif", image)
    assert len(samples(tmp_path, *words)) == 1
    image[:] = wrong
    image[:, 0] = np.float32(np.nan if unit == "db" else -32768)  # without observation
    tif(tmp_path / "a.tif", image)
    other = "db" if unit == "linear_power" else "linear_power"
    for explicit in ((), ("--unit", unit)):
        with pytest.raises(ValueError, match=f"a.tif cannot be {unit}, .*: give --unit {other}"):
            samples(tmp_path, *words, *explicit)
    (sample,) = samples(tmp_path, *words, "--unit", other)
    assert sample.specs[f"{sensor}-10m"].unit == other


@pytest.mark.parametrize(("pixel", "key"), [(0.6, "landsat8-60cm"), (1.84, "landsat8-184cm"), (30.0, "landsat8-30m")])
def test_the_image_key_tells_the_files_pixel_size(tmp_path, pixel, key):
    tif(tmp_path / "a.tif", np.ones((2, 8, 8), np.uint16), pixel=pixel)
    assert list(samples(tmp_path, *LANDSAT, "--chip", "8")[0].images) == [key]


def test_files_of_two_kinds_and_keys_that_collide_are_named(tmp_path):
    image = np.ones((2, 8, 8), np.uint16)
    tif(tmp_path / "two/a.tif", image)
    tif(tmp_path / "two/b.tif", image, pixel=30.0)
    with pytest.raises(
        ValueError, match=r"b.tif \(2 bands of uint16 at 30 m\) differs from .*a.tif \(2 bands .* at 10 m\)"
    ):
        samples(tmp_path / "two", *LANDSAT)
    tags = [{"bbl": 1}, {"bbl": 0}]
    tif(tmp_path / "bad/a.tif", image, band_tags=tags)
    tif(tmp_path / "bad/b.tif", image, band_tags=tags[::-1])
    with pytest.raises(ValueError, match=r"b.tif \(1 bands .*a.tif \(1 bands .*: only one of them has B3, B4"):
        samples(tmp_path / "bad", *LANDSAT, "--drop-bad-bands")
    tif(tmp_path / "same/x 1.tif", image)
    tif(tmp_path / "same/X_1.tif", image)
    with pytest.raises(ValueError, match="would both get the key 'x_1'"):
        samples(tmp_path / "same", *LANDSAT)
    with pytest.raises(ValueError, match="nothing is not a folder"):
        samples(tmp_path / "nothing", *LANDSAT)


def test_a_run_does_not_go_on_with_files_that_changed(tmp_path):
    def run() -> int:
        return main(["folder", "--src", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *LANDSAT, "--chip", "8"])

    path = tif(tmp_path / "in/a.tif", np.ones((2, 8, 8), np.uint16))
    size = path.stat().st_size
    assert run() == run() == 0
    tif(path, np.full((2, 8, 8), 2, np.uint16))
    assert path.stat().st_size == size
    with pytest.raises(ValueError, match="out/shard-000000.tar was written with other settings"):
        run()


def test_a_non_finite_pixel_stops_the_run(tmp_path):
    image = np.ones((2, 8, 8), np.float32)
    image[1, 2, 3] = np.inf
    tif(tmp_path / "in/a.tif", image)
    words = ["folder", "--src", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *LANDSAT, "--chip", "8"]
    words += ["--scale", "1", "--offset", "0"]
    with pytest.raises(ValueError, match="'a_r000c000', image 'landsat8-10m', band B3: 1 non-finite"):
        main(words)


@pytest.mark.realdata
def test_enmap_tiles(realdata):
    words = ("--sensor", "enmap", "--drop-bad-bands", "--chip", "32", "--labels", str(realdata / "enmap/labels"))
    made = samples(realdata / "enmap/images", *words, "--label-classes", "none,a,b,c,d,e,f")
    assert len(made) == 18
    for sample in made:
        spec, image = sample.specs["enmap-30m"], sample.images["enmap-30m"]
        assert image.shape == (218, 32, 32) and image.dtype == np.float32 and len(spec.bands) == 218
        assert not {f"B{i}" for i in range(130, 136)} & set(spec.bands)
        with rasterio.open(realdata / "enmap/images" / sample.meta["file"]) as raster:
            assert np.array_equal(image[-1], raster.read(224)) and np.array_equal(image[129], raster.read(136))
        mask = sample.labels["landcover"]
        assert mask.shape == (32, 32)
        covered = [(mask == c).mean() for c in range(7)]
        assert sample.labels["scene"] == (int(np.argmax(covered)) if max(covered) >= 0.5 else -1)
        assert sample.times == {"enmap-30m": ["2022-07-24"]} and sample.crs == "EPSG:32633"


def test_windows_of_a_url(tmp_path):
    image = RNG.integers(1, 60_000, (2, 64, 64)).astype(np.uint16)
    data = tif(tmp_path / "a.tif", image, tiled=True, blockxsize=16, blockysize=16).read_bytes()
    fsspec.filesystem("memory").pipe("/folder_windows/sub/a.tif", data)
    words = (*LANDSAT, "--chip", "16", "--keep-bands", "landsat8=B3", "--out", str(tmp_path / "out"))
    assert main(["folder", "--src", "memory://folder_windows", *words]) == 0
    shards = ShardSet.open(tmp_path / "out")
    assert len(shards) == 16
    assert np.array_equal(shards.read(0, 6).images["landsat8-10m"], image[1:, 16:32, 32:48])


@pytest.mark.realdata
def test_hls_optical_and_thermal_bands_of_one_file(realdata, tmp_path):
    path = shutil.copy(realdata / "hls/segmentation_test_0_input.tif", tmp_path)
    with rasterio.open(path) as raster:
        stored = raster.read()
    scaled = ("--chip", "56", "--scale")
    optical = samples(tmp_path, *L30, *scaled, "1e-4", "--offset", "0")
    thermal = samples(tmp_path, *L30_THERMAL, *scaled, "0.01", "--offset", "273.15")
    assert len(optical) == len(thermal) == 16
    for made, key, part in ((optical, "hls_l30-30m", stored[:8]), (thermal, "hls_l30_thermal-30m", stored[8:])):
        assert np.array_equal(made[5].images[key], part[:, 56:112, 56:112])
    spec = thermal[5].specs["hls_l30_thermal-30m"]
    kelvin = spec.to_model(thermal[5].images[spec.key])
    assert spec.unit == "kelvin" and 290 < kelvin.mean() < 315
