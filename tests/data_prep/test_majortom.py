import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.warp import transform

from data_prep import store
from data_prep.main import main
from data_prep.majortom_index import patches
from data_prep.store import Store
from dinov2.train import schema
from dinov2.train.trainer import train
from tests.data_prep.layouts import GSD, S2, majortom, prepared, tif, write

SIDE = 72  # pixels at 10 m; a published cell has 1068
L2A = tuple(b for b in S2 if b != "B10")
CELLS = {"454U_120R": (9.5, 47.0), "455U_120R": (9.5, 47.1), "3D_7L": (-1.0, -0.3)}
DATES = {"454U_120R": "20200506T101031", "455U_120R": "20220708T101031", "3D_7L": "20180203T101031"}
CLOUD = {"454U_120R": 3.0, "455U_120R": 40.0, "3D_7L": 0.0}


CRS = {"454U_120R": "EPSG:32632", "455U_120R": "EPSG:32632", "3D_7L": "EPSG:32730"}


def corner(cell: str) -> tuple[float, float]:
    x, y = (round(v[0], -1) for v in transform("EPSG:4326", CRS[cell], *([v] for v in CELLS[cell])))
    return x - 5 * SIDE, y + 5 * SIDE


def pixels(modality: str, cell: str) -> dict[str, np.ndarray]:
    """Band -> random pixels that only this modality and cell have."""
    rng = np.random.default_rng([len(modality), *cell.encode()])
    if modality == "DEM":
        return {"DEM": rng.normal(500, 100, (SIDE // 3, SIDE // 3)).astype(np.float32)}
    if modality == "S1RTC":
        out = {b: rng.gamma(2, 0.05, (SIDE, SIDE)).astype(np.float32) for b in ("vv", "vh")}
        out["vv"][:3] = -32768
        return out
    sides = {b: 10 * SIDE // GSD.get(b, 20) for b in (S2 if modality == "S2L1C" else L2A)}
    out = {b: rng.integers(1, 10_000, (n, n)).astype(np.uint16) for b, n in sides.items()}
    return out | {"cloud_mask": rng.integers(0, 4, (SIDE, SIDE)).astype(np.uint8)}


def geotiffs(modality: str, cell: str) -> dict[str, bytes]:
    extra = {"nodata": -32768.0} if modality == "S1RTC" else {}
    x, y = corner(cell)
    return {b: tif(p, x, y, 10 * SIDE / p.shape[0], CRS[cell], **extra) for b, p in pixels(modality, cell).items()}


def product(modality: str, cell: str) -> str:
    return f"{modality}_{DATES[cell]}_N0400_R065_T32TMT"


def dataset(src: Path, cells: dict[str, list[str]]) -> Path:
    """Modality -> cells, as published."""
    for modality, names in cells.items():
        rows, metadata = [], []
        for name in names:
            row: dict = {"grid_cell": name, "thumbnail": b"\xff\xd8", **geotiffs(modality, name)}
            lon, lat = CELLS[name]
            entry: dict = {"grid_cell": name, "nodata": 0.0, "centre_lon": lon, "centre_lat": lat, "crs": CRS[name]}
            if modality == "DEM":
                row["compressed"] = b""
            else:
                row |= {"product_id": product(modality, name), "timestamp": DATES[name]}
                entry |= {"product_id": product(modality, name), "timestamp": DATES[name]}
            if modality.startswith("S2"):
                entry["cloud_cover"] = CLOUD[name]
            if modality == "S1RTC":
                entry["orbit_state"] = "ascending"
            rows.append(row)
            metadata.append(entry)
        majortom(src / f"Core-{modality}", rows, metadata)
    return src


@pytest.fixture(scope="module")
def src(tmp_path_factory) -> Path:
    names = list(CELLS)
    cells = {"S2L1C": names, "S2L2A": names[::-1], "S1RTC": names[:2], "DEM": names}
    return dataset(tmp_path_factory.mktemp("majortom"), cells)


def check(sample, cell: str, modalities: tuple[str, ...]) -> None:
    """Every band of a whole cell equals what was written, in its unit, at its resolution."""
    seen = []
    for modality in modalities:
        for band, want in pixels(modality, cell).items():
            if band == "cloud_mask":
                assert np.array_equal(sample.labels[f"cloud_mask_{modality.lower()}"], want)
                continue
            name = {"vv": "VV", "vh": "VH", "DEM": "elevation"}.get(band, band)
            sensor = {"S2L1C": "sentinel2_l1c", "S2L2A": "sentinel2_l2a", "S1RTC": "sentinel1_rtc", "DEM": "dem"}
            key = f"{sensor[modality]}-{10 * SIDE // want.shape[0]}m"
            spec = sample.specs[key]
            assert np.array_equal(sample.images[key][spec.bands.index(name)], want)
            unit = {"S1RTC": ("linear_power", -32768, 1.0), "DEM": ("metre", -32768, 1.0)}
            assert (spec.unit, spec.nodata, spec.scale) == unit.get(modality, ("reflectance", 0, 1e-4))
            seen.append((key, name))
    assert sorted(seen) == sorted((key, band) for key, spec in sample.specs.items() for band in spec.bands)


def test_cells_are_paired_across_modalities(src, tmp_path):
    samples = prepared("majortom", src, tmp_path / "all", "--workers", "2", "--samples-per-shard", "2")
    assert [s.key for s in samples] == ["454u_120r", "455u_120r", "3d_7l"]
    for sample, cell in zip(samples, CELLS, strict=True):
        check(sample, cell, ("S2L1C", "S2L2A", *(["S1RTC"] if cell != "3D_7L" else []), "DEM"))
        x, y = corner(cell)
        assert sample.footprint == (x, y - 720, x + 720, y) and sample.crs == CRS[cell]
        day = f"{DATES[cell][:4]}-{DATES[cell][4:6]}-{DATES[cell][6:8]}"
        assert sample.times["sentinel2_l2a-60m"] == [day] and sample.times["dem-30m"] == []
        assert sample.meta["cloud"] == CLOUD[cell] and sample.meta["products"]["S2L1C"] == product("S2L1C", cell)


def test_filters_of_the_metadata(src, tmp_path, capsys):
    def kept(*words: str) -> list[str]:
        samples = prepared("majortom", src, tmp_path / "_".join(words), "--modalities", "S2L2A,S1RTC", *words)
        return [s.key for s in samples]

    assert kept("--cloud", "10") == ["3d_7l", "454u_120r", "455u_120r"]  # its Sentinel-1 has no clouds
    assert "1 skipped: cloudier than --cloud" in " ".join(capsys.readouterr().out.split())
    assert kept("--cloud", "10", "--paired") == ["454u_120r"]
    assert kept("--bbox", "9", "46.9", "10", "47.04") == ["454u_120r"]
    assert kept("--dates", "2018-01-01", "2019-12-31") == ["3d_7l"]
    assert kept("--limit", "1") == ["3d_7l"]
    with pytest.raises(ValueError, match="there is nothing to prepare: .*; 5 outside of --bbox"):
        kept("--bbox", "100", "0", "101", "1")
    with pytest.raises(ValueError, match="has no folder Core-S2L9 or S2L9; it has Core-S2L1C, "):
        main(["majortom", "--src", str(src), "--out", "x", "--modalities", "S2L9"])


def test_only_the_wanted_bands_of_an_area_are_read_from_a_url(src, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in src.rglob("*.parquet"):
        memory.pipe(f"/majortom/{path.relative_to(src)}", path.read_bytes())
    before = store.READ.bytes
    words = ("--bbox", "9", "46.9", "10", "47.04", "--keep-bands", "sentinel2_l2a=B02,B03", "dem")
    (sample,) = prepared("majortom", "memory://majortom", tmp_path / "some", *words)
    assert {k: s.bands for k, s in sample.specs.items()} == {
        "sentinel2_l2a-10m": ("B02", "B03"),
        "dem-30m": ("elevation",),
    }
    assert np.array_equal(sample.images["sentinel2_l2a-10m"][1], pixels("S2L2A", "454U_120R")["B03"])
    tiffs = {m: geotiffs(m, "454U_120R") for m in ("S2L2A", "DEM")}
    wanted = sum(len(tiffs["S2L2A"][band]) for band in ("B02", "B03", "cloud_mask")) + len(tiffs["DEM"]["DEM"])
    footers = 4 * (64 << 10)  # of two indices and two image files
    assert store.READ.bytes - before < footers + 1.1 * wanted


def test_chips_keep_every_resolution(src, tmp_path):
    samples = prepared("majortom", src, tmp_path / "chips", "--modalities", "S2L2A,DEM", "--chip", "36")
    assert [s.key for s in samples[:4]] == [f"3d_7l_r00{r}c00{c}" for r in (0, 1) for c in (0, 1)]
    assert {k: i.shape for k, i in samples[0].images.items()} == {
        "sentinel2_l2a-10m": (4, 36, 36),
        "sentinel2_l2a-20m": (6, 18, 18),
        "sentinel2_l2a-60m": (2, 6, 6),
        "dem-30m": (1, 12, 12),
    }
    want = pixels("S2L2A", "3D_7L")["B8A"][18:, :18]
    assert np.array_equal(samples[2].images["sentinel2_l2a-20m"][3], want)


class Bomb:
    """Unpickled, it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_extracted_folders_get_an_index_from_their_names(tmp_path):
    src, cell = tmp_path / "src", "454U_120R"
    for modality, where in (("S2L2A", product("S2L2A", cell)), ("DEM", "id")):
        for band, data in geotiffs(modality, cell).items():
            write(src / f"Core-{modality}/454U/{cell}/{where}/{band}.tif", data)
            write(src / f"Core-{modality}/454U/{cell}/{where}/._{band}.tif", b"fork")
    write(src / "Core-S2L2A/index.pkl", pickle.dumps(Bomb(tmp_path / "executed")))
    (sample,) = prepared("majortom", src, tmp_path / "out")
    check(sample, cell, ("S2L2A", "DEM"))
    assert sample.times["sentinel2_l2a-10m"] == ["2020-05-06"] and not (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match="--cloud: .*Core-S2L2A tells no cloud cover; put metadata.parquet there"):
        main(["majortom", "--src", str(src), "--out", "x", "--cloud", "5"])


def test_the_offset_is_taken_off_on_demand_only(tmp_path):
    rows = [{"grid_cell": "1U_1R", "B02": tif(np.array([[0, 1000], [1001, 3000]], np.uint16)), "product_id": "N0509"}]
    majortom(tmp_path / "S2L2A", rows, [{"grid_cell": "1U_1R", "product_id": "N0509"}])
    words = ("--keep-bands", "sentinel2_l2a=B02", "--baseline-offset")
    for choice, want in (("none", [[0, 1000], [1001, 3000]]), ("detect", [[-32768, 0], [1, 2000]])):
        (sample,) = prepared("majortom", tmp_path, tmp_path / choice, *words, choice)
        assert sample.images["sentinel2_l2a-10m"][0].tolist() == want


def rewritten(path: Path, **columns) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, [values])
    pq.write_table(table, path, row_group_size=1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"grid_cell": ["9U_9R"]}, "row group 0 is not the cell 454U_120R"),
        ({"B05": [b"no tiff"]}, "454U_120R, B05 is damaged: .* .--max-refused"),
        ({"B05": [tif(np.ones((9, 9), np.uint16), gsd=20)]}, "bands of one resolution differ in shape or type"),
        ({"B02": [tif(np.ones((72, 72), np.uint16), left=9e5)]}, "the cell 454U_120R lies at .*, not at"),
    ],
)
def test_files_that_contradict_are_one_sentence(tmp_path, columns, message):
    dataset(tmp_path, {"S2L2A": ["454U_120R"]})
    rewritten(tmp_path / "Core-S2L2A/images/part_00001.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        prepared("majortom", tmp_path, tmp_path / "out")


def test_a_raster_that_declares_too_much_is_refused(tmp_path):
    with rasterio.MemoryFile() as memory:
        size = {"width": 40_000, "height": 40_000, "count": 1, "dtype": "uint16", "crs": "EPSG:32631"}
        place = rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)
        with memory.open(driver="GTiff", transform=place, sparse_ok=True, tiled=True, compress="deflate", **size):
            pass
        bomb = memory.read()
    assert len(bomb) < 1 << 20
    dataset(tmp_path, {"S2L2A": ["454U_120R"]})
    rewritten(tmp_path / "Core-S2L2A/images/part_00001.parquet", B05=[bomb])
    with pytest.raises(ValueError, match="B05 declares 3200000000 bytes of pixels .limit 1073741824"):
        prepared("majortom", tmp_path, tmp_path / "out")


def test_cells_near_the_pole_and_the_date_line(tmp_path):
    entries = [{"grid_cell": "1U_1R", "centre_lon": 179.99, "centre_lat": 0.0}]
    entries += [{"grid_cell": "9U_1R", "centre_lon": 0.0, "centre_lat": 89.97}]
    majortom(tmp_path / "DEM", [{"grid_cell": e["grid_cell"], "DEM": b""} for e in entries], entries)
    line, pole = (patch.box for patch in patches(Store.at(str(tmp_path)), "DEM"))
    assert line[0] < 180 and -180 < line[2] < -179.9 and (pole[0], pole[2]) == (-180, 180)


@pytest.mark.realdata
def test_real_scenes_in_majortom_files(realdata, tmp_path):
    """TerraMesh scenes lie on Major-TOM cells: five of them as parquet, compared with their own files."""
    scenes = sorted(path.stem for path in (realdata / "terramesh/S2L2A").glob("*.tif"))

    def scene(folder: str, name: str):
        with rasterio.open(realdata / f"terramesh/{folder}/{name}.tif") as raster:
            return raster.read(), raster.transform, raster.crs.to_string()

    for modality, bands in (("S2L2A", L2A), ("S2L1C", S2), ("S1RTC", ("vv", "vh")), ("DEM", ("DEM",))):
        rows = []
        for name in scenes:
            image, place, crs = scene(modality, name)
            assert len(image) == len(bands)
            if modality == "S1RTC":  # there in dB
                image = (10 ** (image / 10)).astype(np.float32)
            data = {b: tif(i, place.c, place.f, crs=crs) for b, i in zip(bands, image, strict=True)}
            rows.append({"grid_cell": name, **data})
        majortom(tmp_path / f"src/Core-{modality}", rows, [{"grid_cell": name} for name in scenes])
    samples = prepared("majortom", tmp_path / "src", tmp_path / "out", "--chip", "32")
    assert len(samples) == 245
    for sample in samples[::61]:
        row, column = int(sample.key[-7:-4]), int(sample.key[-3:])
        for modality, sensor in (("S2L2A", "sentinel2_l2a"), ("S2L1C", "sentinel2_l1c"), ("DEM", "dem")):
            want = scene(modality, sample.meta["cell"])[0][:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            assert np.array_equal(sample.images[f"{sensor}-10m"], want)
    words = [f"data.shards=[{tmp_path / 'out'}]", "data.workers=0", "data.batch_size=16", "train.steps=3"]
    words += ["model.embed_dim=24", "model.depth=1", "model.num_heads=2", "model.attn_dim=24", "optim.warmup_steps=0"]
    cfg = schema.load(Path("configs/pretrain/realdata.yaml"), words)
    assert train(cfg, tmp_path / "run")
