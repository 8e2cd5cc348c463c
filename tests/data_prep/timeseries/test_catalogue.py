"""A region from a STAC API on this machine against the cube computed from the source arrays by hand."""

import datetime
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from pystac import Item
from rasterio.warp import transform, transform_geom
from shapely.geometry import box, mapping

from data_prep.main import main
from data_prep.timeseries.catalogue import Scene, optical_scenes
from data_prep.timeseries.command import estimate
from data_prep.timeseries.cubes import Recipe
from data_prep.timeseries.region import Region
from dinov2.data.series_tiles import open_tile, tile_folders
from tests.data_prep.timeseries.stac_server import Server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:odc", "ignore::PendingDeprecationWarning:odc")

ZONE31, ZONE32 = "EPSG:32631", "EPSG:32632"
WEST, NORTH = 700000.0, 5500000.0  # of the region, close to the border of the two zones
HEIGHT, WIDTH = 36, 44
BANDS = ("B04", "B08", "B11")
SIZES = {"B04": 10, "B08": 10, "B11": 20, "SCL": 20, "VV": 10, "VH": 10}


@dataclass
class Source:
    """An item: where it lies, when, what it is, and its arrays by band."""

    name: str
    date: str
    crs: str
    west: float
    north: float
    side: int  # metres
    properties: dict = field(default_factory=dict)
    radar: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.arrays = {}
        for band in ("VV", "VH") if self.radar else (*BANDS, "SCL"):
            n = self.side // SIZES[band]
            if self.radar:
                self.arrays[band] = rng.gamma(2, 0.05, (n, n)).astype(np.float32)
                self.arrays[band][:, : n // 5] = -32768  # beside the swath
            elif band == "SCL":
                self.arrays[band] = rng.choice([0, 3, 4, 5, 6, 8, 9, 10, 11], (n, n)).astype(np.uint8)
            else:
                self.arrays[band] = rng.integers(1, 9000, (n, n)).astype(np.uint16)
                self.arrays[band][: n // 4] = 0  # beside the swath

    def place(self, band: str) -> Affine:
        return Affine(SIZES[band], 0, self.west, 0, -SIZES[band], self.north)

    def write(self, folder: Path) -> dict:
        """The files, and the item."""
        assets = {}
        for band, array in self.arrays.items():
            path = folder / f"{self.name}_{band}.tif"
            profile = dict(driver="GTiff", count=1, dtype=array.dtype, crs=self.crs, transform=self.place(band))
            plain = folder / "plain.tif"
            with rasterio.open(plain, "w", height=array.shape[0], width=array.shape[1], **profile) as file:
                file.write(array[None])
            rasterio.shutil.copy(plain, path, driver="COG", compress="deflate", blocksize=128)
            assets[band.lower()] = {"href": f"SERVER/data/{path.name}", "type": "image/tiff; application=geotiff"}
        square = box(self.west, self.north - self.side, self.west + self.side, self.north)
        outline = transform_geom(self.crs, "EPSG:4326", mapping(square))
        return {
            "type": "Feature", "stac_version": "1.0.0", "id": self.name, "links": [], "assets": assets,
            "collection": "s1" if self.radar else "s2", "geometry": outline,
            "bbox": shapely.geometry.shape(outline).bounds,
            "properties": {"datetime": f"{self.date}T10:30:00Z", "proj:epsg": int(self.crs[5:]), **self.properties},
        }  # fmt: skip

    def at(self, band: str, x: np.ndarray, y: np.ndarray, nodata: float) -> np.ndarray:
        """Nearest stored number at places of zone 31."""
        east, north = (np.array(v) for v in transform(ZONE31, self.crs, x.ravel(), y.ravel()))
        column, row = ~self.place(band) @ (east, north)
        column, row = np.floor(column).astype(int), np.floor(row).astype(int)
        array = self.arrays[band]
        inside = (row >= 0) & (column >= 0) & (row < array.shape[0]) & (column < array.shape[1])
        out = np.full(row.shape, nodata, np.float64)
        out[inside] = array[row[inside], column[inside]]
        return out.reshape(x.shape)


def corner(crs: str) -> tuple[float, float]:
    """The region's upper left corner on the 20 m grid of a zone."""
    x, y = transform(ZONE31, crs, [WEST], [NORTH])
    return round(x[0] / 20) * 20, round(y[0] / 20) * 20


EAST32, NORTH32 = corner(ZONE32)
OLD, V4, V5 = ({"s2:processing_baseline": v, "eo:cloud_cover": 20} for v in ("03.01", "04.00", "05.00"))
OPTICAL = [
    Source("a-west", "2022-01-10", ZONE31, WEST - 200, NORTH + 100, 480, OLD, seed=1),
    Source("b-east", "2022-01-10", ZONE31, WEST + 100, NORTH + 160, 600, OLD, seed=2),
    Source("c-zone32", "2022-01-10", ZONE32, EAST32 - 100, NORTH32 + 300, 800, OLD, seed=3),
    Source("d-west", "2022-02-04", ZONE31, WEST - 200, NORTH + 100, 480, V4, seed=4),
    Source("e-zone32", "2022-02-04", ZONE32, EAST32 - 100, NORTH32 + 300, 900, V5, seed=5),
    Source("f-off-already", "2022-03-01", ZONE31, WEST - 100, NORTH + 400, 900,
           {**V5, "earthsearch:boa_offset_applied": True}, seed=6),
    Source("g-overcast", "2022-03-06", ZONE31, WEST - 100, NORTH + 400, 900, {**V5, "eo:cloud_cover": 97}, seed=7),
    Source("h-next-year", "2023-01-01", ZONE31, WEST - 100, NORTH + 400, 900, V5, seed=8),
]  # fmt: skip
RADAR = [
    Source("r-1", "2022-01-11", ZONE31, WEST - 60, NORTH + 50, 300, {"sat:orbit_state": "ascending"}, True, 11),
    Source("r-2", "2022-01-11", ZONE32, EAST32 - 100, NORTH32 + 300, 900, {"sat:orbit_state": "ascending"}, True, 12),
    Source("r-3", "2022-01-11", ZONE31, WEST - 300, NORTH + 400, 900, {"sat:orbit_state": "descending"}, True, 13),
    Source("r-4", "2022-02-28", ZONE31, WEST - 300, NORTH + 400, 900,
           {"sat:orbit_state": "ascending"}, True, 14),
]  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("archive")
    return folder, [source.write(folder) for source in OPTICAL + RADAR]


@pytest.fixture(scope="module")
def roi(tmp_path_factory) -> Path:
    """All of the region but its lower right corner, as GeoJSON in degrees."""
    whole = box(WEST + 1, NORTH - 10 * HEIGHT + 1, WEST + 10 * WIDTH - 1, NORTH - 1)
    shape = whole - box(WEST + 300, NORTH - 10 * HEIGHT, WEST + 10 * WIDTH, NORTH - 300)
    path = tmp_path_factory.mktemp("roi") / "roi.geojson"
    outline = transform_geom(ZONE31, "EPSG:4326", mapping(shape))
    path.write_text(
        json.dumps(
            {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": outline}]}
        )
    )
    return path


def catalogue(folder: Path, url: str, **more) -> str:
    assets = {band: band.lower() for band in (*BANDS, "SCL")}
    raw = {"url": url, "sign": f"{url}/sign?href={{href}}", "optical": {"collection": "s2", "assets": assets}}
    raw["radar"] = {"collection": "s1", "assets": {"VV": "vv", "VH": "vh"}, "unit": "linear_power"}
    path = folder / "catalogue.yaml"
    path.write_text(json.dumps({**raw, **more}))
    return str(path)


def prepare(folder: Path, server: Server, roi: Path, *more: str, tile: int = 50) -> int:
    words = ["timeseries", "--roi", str(roi), "--out", str(folder / "tiles"), "--crs", ZONE31, "--tile", str(tile)]
    words += ["--catalogue", catalogue(folder, server.url), "--bands", ",".join(BANDS), "--workers", "2"]
    return main([*words, "--s2-start", "2022-01-01", "--s2-end", "2022-12-31", *more])


def by_hand() -> dict[str, dict[str, np.ndarray]]:
    """What the cube must hold: layer -> date -> array, and ``masks``."""
    column, row = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    x, y = WEST + 10 * column, NORTH - 10 * row
    out: dict[str, dict[str, np.ndarray]] = {"bands": {}, "masks": {}, "sar_ascending": {}, "sar_descending": {}}
    for source in OPTICAL[:6]:  # in the order of names
        image = out["bands"].setdefault(source.date, np.zeros((HEIGHT, WIDTH, 3), np.int64))
        clear = out["masks"].setdefault(source.date, np.zeros((HEIGHT, WIDTH), np.int64))
        new = np.stack([source.at(band, x, y, 0) for band in BANDS], -1)
        carries = (
            source.properties["s2:processing_baseline"] >= "04.00"
            and "earthsearch:boa_offset_applied" not in source.properties
        )
        corrected = np.where(new == 0, 0, np.maximum(new - 1000 * carries, 1))
        free = (image == 0).all(-1) & (new > 0).any(-1)
        image[free] = corrected[free]
        clear[free] = ~np.isin(source.at("SCL", x, y, 0), [0, 1, 2, 3, 8, 9])[free]
    for source in RADAR:
        layer = out[f"sar_{source.properties['sat:orbit_state']}"]
        image = layer.setdefault(source.date, np.full((HEIGHT, WIDTH, 2), -32768))
        power = np.stack([source.at(band, x, y, -32768) for band in ("VV", "VH")], -1)
        free = (image == -32768).any(-1) & (power > 0).all(-1)
        image[free] = np.rint(100 * 10 * np.log10(power[free]))
    return out


def cube(folder: Path, name: str, nodata: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The layer of all tiles on the region's grid by date, and which pixels a tile covers."""
    dates: dict[str, np.ndarray] = {}
    covered = np.zeros((HEIGHT, WIDTH), bool)
    for path in tile_folders(folder):
        tile = open_tile(path)
        left, top, right, bottom = tile.corners
        assert tuple(tile.transform) == (10, 0, WEST + 10 * left, 0, -10, NORTH - 10 * top) and tile.crs == ZONE31
        covered[top:bottom, left:right] = True
        layer = tile.layers.get("bands" if name == "masks" else name)
        for date, array in zip(layer.dates, tile.array(name), strict=True) if layer else ():
            dates.setdefault(date, np.full((HEIGHT, WIDTH, *array.shape[2:]), nodata))[top:bottom, left:right] = array
    return dates, covered


def compare(folder: Path) -> None:
    expected = by_hand()
    for name, nodata in (("bands", 0), ("masks", 0), ("sar_ascending", -32768), ("sar_descending", -32768)):
        found, covered = cube(folder, name, nodata)
        assert covered.all() and found.keys() == expected[name].keys(), name
        for date, array in expected[name].items():
            assert np.array_equal(found[date], array), (name, date, (found[date] != array).sum())


@pytest.mark.parametrize("failing, tile", [(False, 25), pytest.param(True, 50, marks=pytest.mark.slow)])
def test_the_cube_equals_the_one_computed_by_hand(archive, roi, tmp_path, failing, tile):
    folder, items = archive
    with Server(folder, items, failing) as server:
        assert prepare(tmp_path, server, roi, tile=tile) == 0
        assert (server.refused > 20) == failing
        compare(tmp_path / "tiles")
        seen = server.requests
        assert prepare(tmp_path, server, roi, tile=tile) == 0  # nothing is read again
        assert server.requests - seen < 30
    last = tile_folders(tmp_path / "tiles")[-1]
    with rasterio.open(last / "roi.tiff") as file:
        inside = file.read(1)
    assert inside[0, 0] == 1 and inside[-1, -1] == 0 and not (last / "dates").exists()


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(archive, roi, tmp_path, capsys):
    folder, items = archive
    with Server(folder, items) as server:
        assert prepare(tmp_path, server, roi, "--dry-run", tile=25) == 0
    assert "3 optical and 3 radar dates (10 scenes) over 4 tiles of 25 pixels: about 0.00 GB" in capsys.readouterr().out
    assert not (tmp_path / "tiles").exists()


def test_the_estimate_follows_bands_and_resolution():
    """10^9 pixels, one optical and one radar date.

    At 10 m: 2 + 2 / 4 bytes of bands, 1 / 4 of classes, 8 of radar fetched, 5 + 4 written; at 60 m, of each all.
    """
    region = Region(ZONE31, Affine(10, 0, WEST, 0, -10, NORTH), np.broadcast_to(np.True_, (100000, 10000)))
    scenes = [Scene("bands", "2022-01-01", ()), Scene("sar_ascending", "2022-01-01", ())]
    said = [estimate(region, scenes, 4, 500, Recipe(("B04", "B11"), m, "auto", (), "db")) for m in (10.0, 60.0)]
    assert "about 10.75 GB to fetch and 9.00 GB to write" in said[0]
    assert "about 13.00 GB to fetch and 9.00 GB to write" in said[1]


def test_a_broken_asset_fails_its_tiles_by_name_and_a_second_run_goes_on(archive, roi, tmp_path, capsys):
    folder, items = archive
    path = folder / "r-4_VH.tif"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    with Server(folder, items) as server:
        assert prepare(tmp_path, server, roi, "--retries", "1") == 1
        said = capsys.readouterr().out
        assert "FAILED 0_0_44_36: item r-4: reading failed 2 times" in said and "1 tiles failed" in said
        path.write_bytes(whole)
        assert prepare(tmp_path, server, roi) == 0
    compare(tmp_path / "tiles")


def test_another_recipe_in_the_same_folder_is_refused(archive, roi, tmp_path):
    folder, items = archive
    with Server(folder, items) as server:
        assert prepare(tmp_path, server, roi) == 0
        with pytest.raises(ValueError, match="holds tiles made with another cloudy"):
            prepare(tmp_path, server, roi, "--cloudy", "8,9")
        leftover = tmp_path / "tiles" / "0_0_44_36" / "dates"  # of a run that was killed after its last tile
        leftover.mkdir()
        assert prepare(tmp_path, server, roi) == 0 and not leftover.exists()
        smaller = write_roi(tmp_path / "smaller.geojson", shapely.box(*shapely.from_geojson(roi.read_text()).bounds))
        with pytest.raises(ValueError, match="holds tiles made with another inside"):
            prepare(tmp_path, server, smaller)
        with pytest.raises(ValueError, match="holds tiles made with another crs, inside, shape, transform"):
            prepare(tmp_path, server, roi, "--crs", ZONE32)
        (tmp_path / "other").mkdir()
        swapped = {"collection": "s1", "assets": {"VV": "vh", "VH": "vv"}}
        with pytest.raises(ValueError, match="holds tiles made with another radar"):
            prepare(tmp_path, server, roi, "--catalogue", catalogue(tmp_path / "other", server.url, radar=swapped))


def write_roi(path: Path, shape) -> Path:
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(shape)}] if shape else []
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize(
    "words, message",
    [
        (["--s2-start", "2015-01-01", "--s2-end", "2015-12-31"], "has no scene of s2 over .* from 2015-01-01"),
        (["--cloud", "1"], "no scene of s2 .* with at most 1 % of clouds .7 with more."),
        (["--s2-start", "2023-01-01", "--s2-end", "2022-01-01"], "needs --s2-start and --s2-end, in this order"),
        (["--s1-start", "2023-01-01"], "radar would be from 2023-01-01 to 2022-12-31: give --s1-start and --s1-end"),
        (["--bands", "B04,B99"], "collection s2 has no band 'B99'"),
        (["--tile", "0"], "must be greater than 0"),
    ],
)
def test_requests_that_cannot_be_served_are_one_sentence(archive, roi, tmp_path, words, message, capsys):
    folder, items = archive
    with Server(folder, items) as server:
        try:
            code = prepare(tmp_path, server, roi, *words)
        except ValueError as error:
            text = str(error)
        else:
            assert code == 1
            text = capsys.readouterr().out
    assert re.search(message, text)


def test_regions_that_are_none(archive, tmp_path):
    folder, items = archive
    far = box(100, 10, 100.01, 10.01)
    with Server(folder, items) as server:
        with pytest.raises(ValueError, match="has no scene of s2"):
            prepare(tmp_path, server, write_roi(tmp_path / "far.geojson", far), "--crs", "EPSG:32647")
        for shape in (None, shapely.Point(5, 49)):
            with pytest.raises(ValueError, match="region of interest is empty|not a valid|no polygon"):
                prepare(tmp_path, server, write_roi(tmp_path / "empty.geojson", shape))
        with pytest.raises(ValueError, match="there is no such region"):
            prepare(tmp_path, server, tmp_path / "nowhere.shp")


def test_tiles_without_any_clear_date_fail(archive, roi, tmp_path, capsys):
    folder, items = archive
    with Server(folder, items) as server:
        every = ",".join(map(str, range(12)))
        assert prepare(tmp_path, server, roi, "--cloudy", every) == 1
    assert "0_0_44_36: no clear date among 3 optical ones" in capsys.readouterr().out


def test_an_item_of_unknown_cloudiness_is_kept():
    when, shape = datetime.datetime(2022, 1, 1), [0, 0, 1, 1]
    covers = ({"eo:cloud_cover": None}, {}, {"eo:cloud_cover": 95})
    items = [Item(str(i), None, shape, when, properties) for i, properties in enumerate(covers)]
    assert [[i.id for i in scene.items] for scene in optical_scenes(items, 90.0)] == [["0", "1"]]


def test_an_item_that_hides_its_baseline_asks_for_the_option(archive, roi, tmp_path, capsys):
    folder, items = archive
    silent = json.loads(json.dumps(items))
    del silent[3]["properties"]["s2:processing_baseline"]
    with Server(folder, silent) as server:
        assert prepare(tmp_path, server, roi) == 1
        assert "item d-west does not tell its processing baseline: give --s2-offset" in capsys.readouterr().out


def test_an_unknown_preset_lists_the_known_ones(roi, tmp_path):
    words = [
        "timeseries",
        "--roi",
        str(roi),
        "--out",
        str(tmp_path),
        "--s2-start",
        "2022-01-01",
        "--s2-end",
        "2022-02-01",
    ]
    with pytest.raises(ValueError, match="no preset.*earth_search, planetary_computer"):
        main([*words, "--catalogue", "planetary"])
