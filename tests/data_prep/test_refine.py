import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import from_origin

from data_prep import footprints
from data_prep.common import Plan, Refused, Skip, write
from data_prep.footprints import lonlat, overlap
from data_prep.main import main, parse
from data_prep.refine import Filters, Refine, map_info
from data_prep.tiling import tiles
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet
from tests.data_prep.layouts import prepared, tif
from tests.data_prep.layouts import write as write_file

FINE = ImageSpec("sentinel2_l2a", 10, ("B02", "B08"), "uint16", "reflectance", 1e-4, nodata=0)
COARSE = ImageSpec("sentinel2_l2a", 60, ("B09",), "uint16", "reflectance", 1e-4, nodata=0)
DEM = ImageSpec("dem", 30, ("elevation",), "int16", "metre", nodata=-32768)
RNG = np.random.default_rng(0)


def cell(key: str = "cell", size: int = 30, origin: tuple[int, int] = (500_000, 4_000_000)) -> Sample:
    """10, 30 and 60 m over the same ground, a mask, and numbers that tell every pixel apart."""
    images = {
        FINE.key: np.arange(1, 2 * size * size + 1, dtype=np.uint16).reshape(2, size, size),
        COARSE.key: np.arange(1, (size // 6) ** 2 + 1, dtype=np.uint16).reshape(1, size // 6, size // 6),
        DEM.key: np.arange((size // 3) ** 2, dtype=np.int16).reshape(1, size // 3, size // 3),
    }
    x, y = origin
    labels = {"mask": np.arange(size * size).reshape(size, size) % 7, "biome": 3, "weather": np.arange(5.0)}
    specs = {spec.key: spec for spec in (FINE, COARSE, DEM)}
    times = {FINE.key: ["2020-05-06"], COARSE.key: ["2020-05-06"], DEM.key: []}
    box = (x, y - 10 * size, x + 10 * size, y)
    return Sample(key, images, specs, times, box, "EPSG:32631", labels, {"cloud": 12.5, "split": "train"})


def test_chips_of_mixed_resolutions_see_the_same_ground():
    sample = cell()
    chips = [c for c in tiles(sample, 12) if isinstance(c, Sample)]
    skipped = [c for c in tiles(sample, 12) if isinstance(c, Skip)]
    assert [c.key for c in chips] == [f"cell_r00{r}c00{c}" for r in (0, 1) for c in (0, 1)] and len(skipped) == 5
    for r, c, chip in ((r, c, chips[2 * r + c]) for r in (0, 1) for c in (0, 1)):
        for key, n in ((FINE.key, 12), (COARSE.key, 2), (DEM.key, 4)):
            want = sample.images[key][:, r * n : (r + 1) * n, c * n : (c + 1) * n]
            assert np.array_equal(chip.images[key], want)
        assert np.array_equal(chip.labels["mask"], sample.labels["mask"][12 * r : 12 * r + 12, 12 * c : 12 * c + 12])
        assert chip.labels["biome"] == 3 and chip.labels["weather"].tolist() == [0, 1, 2, 3, 4]
        left, top = 500_000 + 120 * c, 4_000_000 - 120 * r
        assert chip.footprint == (left, top - 120, left + 120, top)
    with pytest.raises(ValueError, match="--chip 10: sample 'cell' needs a multiple of 6"):
        list(tiles(sample, 10))


def test_kept_bands_area_and_empty_images():
    (kept,) = Refine(keep={"sentinel2_l2a": ("B08",)})(cell())
    assert list(kept.images) == [FINE.key] and kept.specs[FINE.key].bands == ("B08",)
    assert np.array_equal(kept.images[FINE.key], cell().images[FINE.key][1:])
    assert list(Refine(keep={"enmap": ("B1",)})(cell())) == [Skip("without a band of --keep-bands")]
    west, south, east, north = lonlat("EPSG:32631", (500_120, 3_999_700, 500_300, 3_999_880))
    chips = list(Refine(chip=12, bbox=(west + 1e-6, south, east, north - 1e-6))(cell()))
    assert [c.key for c in chips if isinstance(c, Sample)] == ["cell_r001c001"]
    blank = cell()
    blank.images[FINE.key][:] = 0
    (left,) = Refine()(blank)
    assert list(left.images) == [COARSE.key, DEM.key] and list(left.times) == [COARSE.key, DEM.key]


def test_boxes_across_the_date_line():
    box = lonlat("EPSG:32601", (150_000, 0, 250_000, 10_000))  # zone 1 begins at 180 degrees west
    assert box[0] > 179 and box[2] < -177 and box[0] > box[2]
    assert overlap(box, (179.9, -1, 180, 1)) and overlap(box, (-180, -1, -179, 1)) and not overlap(box, (0, -1, 10, 1))
    assert not overlap((0, 0, 1, 1), (1, 0, 2, 1))


def words(*more: str):
    return parse(["folder", "--src", "x", "--sensor", "dem", "--out", "y", *more])


def test_filters_count_their_reasons():
    filters = Filters.of(words("--bbox", "-10", "40", "10.5", "50", "--dates", "2020-01-01", "2020-12-31"))
    assert filters.passes(box=(9, 45, 11, 46), date="2020-12-31T10:00:00") and filters.passes()
    assert not filters.passes(box=(11, 45, 12, 46)) and not filters.passes(date="2021-01-01")
    assert filters.refused == {"outside of --bbox": 1, "outside of --dates": 1}
    for bad, message in (
        (("--bbox", "0", "5", "1", "4"), "must be west south east north"),
        (("--dates", "2021-01-01", "2020-01-01"), "the first day is after the last"),
        (("--limit", "0"), "--limit 0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Filters.of(words(*bad))
    with pytest.raises(ValueError, match="unknown sensor 'demm'; did you mean 'dem'"):
        Refine.of(words("--keep-bands", "demm"), {})


def a_map(path, values: np.ndarray, pixel: float, nodata=255) -> str:
    place = from_origin(499_000, 4_001_000, pixel, pixel)
    shape = {"height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32631", transform=place, nodata=nodata, **shape) as raster:
        raster.write(values, 1)
    return str(path)


def test_labels_from_a_static_map(tmp_path):
    """The map has 20 m pixels and ends inside of the cell, whose corner is its pixel 50, 50."""
    values = RNG.integers(0, 9, (60, 60)).astype(np.uint8)
    path = a_map(tmp_path / "cover.tif", values, 20.0)
    (sample,) = Refine(rasters={"cover": path})(cell())
    got = sample.labels["cover"]
    assert got.shape == (30, 30) and np.array_equal(got[:20, :20], np.kron(values[50:, 50:], np.ones((2, 2))))
    assert (got[20:] == 255).all() and (got[:, 20:] == 255).all()
    assert map_info(path) == {"kind": "mask", "map": "cover.tif", "ignore": 255}
    with pytest.raises(ValueError, match="bare.tif has no nodata value"):
        map_info(a_map(tmp_path / "bare.tif", values, 20.0, nodata=None))


def test_a_map_by_the_command_line_is_described_in_the_set(tmp_path):
    values = RNG.integers(0, 9, (60, 60)).astype(np.uint8)
    path = a_map(tmp_path / "cover.tif", values, 20.0)
    image = RNG.integers(1, 900, (12, 12)).astype(np.int16)
    write_file(tmp_path / "src/a.tif", tif(image, 499_000, 4_001_000, 20))
    options = ["--sensor", "dem", "--chip", "6", "--label-raster", f"cover={path}"]
    samples = prepared("folder", tmp_path / "src", tmp_path / "out", *options)
    assert np.array_equal(samples[1].labels["cover"], values[:6, 6:12])
    assert ShardSet.open(tmp_path / "out").labels == {"cover": {"kind": "mask", "map": "cover.tif", "ignore": 255}}
    with pytest.raises(ValueError, match="shard-000000.tar was written with other settings"):
        prepared("folder", tmp_path / "src", tmp_path / "out", *options[:-2])


def test_footprints_beside_the_shards(tmp_path):
    cells = {i: cell(f"c{i}", origin=(500_000 + 1000 * i, 4_000_000)) for i in range(5)}
    plan = Plan(range(5), cells.__getitem__, {}, {})
    refine = Refine(chip=12)
    options = {"compression": None, "workers": 1, "refine": refine, "per_item": refine.per_item(plan)}
    shards, _ = write(plan, tmp_path, samples_per_shard=8, **options)
    assert shards.counts.tolist() == [8, 8, 4]  # two cells of four chips per shard
    table = pq.read_table(tmp_path / footprints.NAME)
    assert table["key"].to_pylist() == [k for s in range(3) for k in shards.keys(s)]
    assert set(table["time"].to_pylist()) == {"2020-05-06"} and set(table["cloud"].to_pylist()) == {12.5}
    assert table["sensors"][0].as_py() == ["dem", "sentinel2_l2a"] and set(table["split"].to_pylist()) == {"train"}
    first = shards.read(0, 0)
    assert next(footprints.boxes(table)) == pytest.approx(lonlat(first.crs, first.footprint), abs=1e-9)
    with rasterio.open(a_map(tmp_path / "m.tif", np.zeros((2, 2), np.uint8), 1.0)) as raster:
        from rasterio.warp import transform_bounds

        assert next(footprints.boxes(table)) == pytest.approx(
            transform_bounds(raster.crs, "EPSG:4326", *first.footprint), abs=1e-7
        )


def test_damaged_items_stop_a_run_or_are_counted(tmp_path):
    def make(i: int) -> Sample:
        if i == 1:
            raise Refused("file1.tif is damaged")
        return cell(f"c{i}", origin=(500_000 + 1000 * i, 4_000_000))

    options = {"samples_per_shard": 2, "compression": None, "workers": 1}
    with pytest.raises(ValueError, match="file1.tif is damaged .--max-refused 0.01 goes on"):
        write(Plan(range(4), make, {}, {}), tmp_path / "a", **options)
    shards, summary = write(Plan(range(4), make, {}, {}), tmp_path / "b", **options, max_refused=0.25)
    assert len(shards) == 3 and "1 refused, the first: file1.tif is damaged" in str(summary)
    sentence = "1 of 4 items are refused, more than --max-refused 0.2 allows: file1.tif is damaged"
    for _ in range(2):  # the shard of a run that was stopped is kept, and so is what was refused
        with pytest.raises(ValueError, match=sentence):
            write(Plan(range(4), make, {}, {}), tmp_path / "c", **options, max_refused=0.2)
    with pytest.raises(ValueError, match="1 of 4 items are refused, more than --max-refused 0 allows"):
        write(Plan(range(4), make, {}, {}), tmp_path / "b", **options)
    again = write(Plan(range(4), make, {}, {}), tmp_path / "b", **options, max_refused=0.25)[1]
    assert "0 samples written; 1 refused, the first: file1.tif is damaged; 2 shards kept" in str(again)


def test_refusals_are_counted_over_all_parts_of_a_job_array(tmp_path):
    def make(i: int) -> Sample | Skip:
        if i in (1, 2):
            raise Refused(f"file{i}.tif is damaged")
        return Skip("cloudy") if i == 3 else cell(f"c{i}", origin=(500_000 + 1000 * i, 4_000_000))

    plan, options = Plan(range(4), make, {}, {}), {"samples_per_shard": 2, "compression": None, "workers": 1}
    assert write(plan, tmp_path, **options, part=(1, 2), max_refused=0.25)[0] is None  # one of its own
    with pytest.raises(ValueError, match="2 of 4 items are refused, more than --max-refused 0.25 allows"):
        write(plan, tmp_path, **options, part=(0, 2), max_refused=0.25)
    assert len(write(plan, tmp_path, **options, part=(0, 2), max_refused=0.5)[0]) == 1


@pytest.mark.parametrize("items", [2, 4])
def test_the_last_part_of_a_job_array_may_be_left_with_nothing(tmp_path, items):
    def make(i: int) -> Sample | Skip:
        return cell(f"c{i}", origin=(500_000 + 1000 * i, 4_000_000)) if i < 2 else Skip("cloudy")

    plan, options = Plan(range(items), make, {}, {}), {"samples_per_shard": 2, "compression": None, "workers": 1}
    write(plan, tmp_path, **options, part=(0, 2))
    shards, summary = write(plan, tmp_path, **options, part=(1, 2))  # no shard; or one whose items are all skipped
    assert len(shards) == 2 and summary.written == 0 and summary.skipped == ({"cloudy": 2} if items > 2 else {})


def test_parts_of_a_job_array_make_one_set(tmp_path, capsys):
    def run(out: str, *more: str) -> str:
        base = [
            "sandbox",
            "--samples",
            "7",
            "--samples-per-shard",
            "2",
            "--sensors",
            "sentinel1_rtc",
            "--chip-m",
            "160",
        ]
        assert main([*base, "--out", str(tmp_path / out), *more]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "shards of other parts are missing" in run("parts", "--part", "1/2")
    assert "7 samples in 4 shards (4 samples written)" in run("parts", "--part", "0/2")
    run("whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    assert ShardSet.open(tmp_path / "parts").digest == ShardSet.open(tmp_path / "whole").digest
