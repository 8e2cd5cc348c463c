import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from dinov2.data.series import bin_of, bring
from dinov2.data.series_tiles import open_tile
from dinov2.data.shards import write_shards
from dinov2.models.zoo.tessera import RELEASES
from eval import embed, encoders
from eval.series import encode
from eval.series.models import load_model
from eval.series.tiles import devices_of
from tests import tiny_series

ROOT = Path(__file__).resolve().parents[3]
SIDE = 101


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A region cut into tiles of 25, 50 and 101 pixels, and a run."""
    folder = tmp_path_factory.mktemp("world")
    arrays = tiny_series.cube(SIDE)
    for tile in (25, 50, SIDE):
        tiny_series.write_region(folder / f"tiles{tile}", arrays, tile)
    tiny_series.encoder(folder / "run")
    return folder


def run(world: Path, tiles: str, out: Path, *options: str) -> int:
    words = ["--model-obj", str(world / "run"), "--input", str(world / tiles), "--output", str(out), *options]
    return embed.main([*words, "--batch-pixels", "64"])


@pytest.fixture(scope="module")
def whole(world) -> Path:
    """The region embedded as one tile."""
    assert run(world, f"tiles{SIDE}", world / "whole") == 0
    return world / "whole" / "embedding.tif"


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize(
    "tiles, devices",
    [("tiles25", "cpu:1"), ("tiles50", "cpu:1"), pytest.param("tiles25", "cpu:2", marks=pytest.mark.slow)],
)
def test_tile_size_and_workers_change_no_bit(world, whole, tiles, devices, tmp_path):
    assert run(world, tiles, tmp_path, "--devices", devices) == 0
    assert read(tmp_path / "embedding.tif").tobytes() == read(whole).tobytes()


def test_the_map_says_where_it_lies_what_it_is_and_where_nothing_was_seen(world, whole):
    with rasterio.open(whole) as file:
        assert file.crs.to_string() == tiny_series.CRS and file.shape == (SIDE, SIDE)
        assert (file.transform.c, file.transform.f, file.res) == (tiny_series.LEFT, tiny_series.TOP, (10.0, 10.0))
        assert file.descriptions[:2] == ("embedding 000", "embedding 001") and np.isnan(file.nodata)
        tags = file.tags()
        assert tags["model"] == "run" and (tags["first_date"], tags["last_date"]) == ("2021-11-20", "2022-02-27")
        layout = file.tags(ns="IMAGE_STRUCTURE")
        assert layout["LAYOUT"] == "COG"
        image = file.read()
    assert np.isnan(image[:, 0, 0]).all()  # no optics and no radar at all
    assert np.isfinite(image).reshape(6, -1).all(0).sum() == SIDE * SIDE - 1
    assert image[:, 3, 3].std() > 0  # radar only: still an embedding


def test_a_pixel_equals_the_encoder_called_by_hand(world, whole):
    model = load_model(str(world / "run"))
    tile = open_tile(world / f"tiles{SIDE}" / f"0_0_{SIDE}_{SIDE}")
    row, column = 60, 40
    x = {}
    arrays = {name: tile.array(name)[:, row, column] for name in tile.layers}
    clear = tile.array("masks")[:, row, column] == 1
    day = {d: (np.datetime64(d) - np.datetime64(d[:4])).astype(int) + 1 for d in tiny_series.OPTICAL_DATES}
    x["s2"] = (arrays["bands"][clear].astype(np.float32) * np.float32(1e-4) - 0.15) / 0.05
    x["s2_days"] = np.array([day[d] for d, c in zip(tiny_series.OPTICAL_DATES, clear, strict=True) if c])
    looks = []
    for orbit, dates in tiny_series.RADAR_DATES.items():
        values = arrays[f"sar_{orbit}"]
        looks += [(d, v) for d, v in zip(dates, values, strict=True) if (v != -32768).any()]
    looks.sort(key=lambda look: look[0])
    x["s1"] = (np.stack([v for _, v in looks]).astype(np.float32) * np.float32(0.01) + 12) / 2
    x["s1_days"] = np.array([day[d] for d, _ in looks])
    with torch.no_grad():
        want = model.encoder({k: torch.from_numpy(v)[None] for k, v in x.items()})[0]
    torch.testing.assert_close(torch.from_numpy(read(whole)[:, row, column]), want, rtol=1e-4, atol=1e-5)


def test_repeated_dates_are_those_of_the_released_weights():
    """40 of 3 dates: each comes 13 or 14 times, in order."""
    valid = np.array([[1], [0], [1], [1]], bool)
    chosen, shown = bring(valid, 40, "repeat")
    assert shown.all() and np.bincount(chosen[0], minlength=4).tolist() == [13, 0, 14, 13]
    assert RELEASES["tessera_v1_1_mpc"].build(embed_dim=4, width=8, depth=1, num_heads=1).bins[-1] == 256
    assert bin_of(np.array([9]), (8, 16)).tolist() == [16]


def test_sensors_without_a_date_and_masks_where_every_date_is_one_change_nothing(world):
    """Batches of pixels without radar leave the branch out, and repeated dates need no mask: the encoder is equal."""
    encoder = tiny_series.encoder(world / "repeat", bins=(8,), padding="repeat")
    model = load_model(str(encoder))
    observed = open_tile(world / f"tiles{SIDE}" / f"0_0_{SIDE}_{SIDE}").block(0, SIDE)
    tracks = {
        n: encode.observe(observed, w, SIDE * SIDE, model.normalisation, "x") for n, w in model.encoder.inputs.items()
    }
    out, device = encode.embed(model, observed, torch.device("cpu"), "x"), torch.device("cpu")
    kinds = set()
    for part, x in encode.batches(model.encoder, tracks, 64):
        assert not {"s2_valid", "s1_valid"} & x.keys()
        kinds.add((x["s2"].shape[1], x["s1"].shape[1]))
        padded = {}
        for name, track in tracks.items():
            chosen, shown = bring(track.valid[:, part], 8, "repeat")
            padded |= track.pick(name, part, chosen, shown)
        with torch.no_grad():
            want = model.encoder(encode.on(padded, device))
        torch.testing.assert_close(torch.from_numpy(out[part]), want, rtol=1e-4, atol=1e-5)
    assert kinds == {(8, 8), (0, 8)}


def test_groups_hold_every_observed_pixel_once(world):
    model = load_model(str(world / "run"))
    tile = open_tile(world / f"tiles{SIDE}" / f"0_0_{SIDE}_{SIDE}")
    observed = tile.block(0, SIDE)
    tracks = [encode.observe(observed, w, SIDE * SIDE, model.normalisation, "x") for w in model.encoder.inputs.values()]
    members = [m for m, _ in encode.groups(tracks, model.encoder.bins)]
    assert sorted(np.concatenate(members)) == list(range(1, SIDE * SIDE))


def test_products_in_bf16_give_a_map_that_is_close_and_says_so(world, whole, tmp_path):
    assert run(world, "tiles50", tmp_path, "--compute", "bf16") == 0
    exact, found = read(whole), read(tmp_path / "embedding.tif")
    seen = np.isfinite(exact)
    assert np.array_equal(seen, np.isfinite(found))
    assert 1e-4 < np.sqrt(((found - exact)[seen] ** 2).sum() / (exact[seen] ** 2).sum()) < 0.01
    with rasterio.open(tmp_path / "embedding.tif") as file:
        assert file.tags()["compute"] == "bf16"
    with pytest.raises(ValueError, match="holds results of another job .compute bf16 -> float32."):
        run(world, "tiles50", tmp_path)


@pytest.mark.parametrize("precision, bound", [("int8", 0.01), ("bf16", 0.004)])
def test_smaller_numbers_are_close_and_the_difference_is_printed(world, whole, precision, bound, tmp_path, capsys):
    assert run(world, "tiles50", tmp_path, "--precision", precision) == 0
    exact, stored = read(whole), read(tmp_path / "embedding.tif")
    if precision == "int8":
        scale = read(tmp_path / "embedding_scale.tif")
        assert stored.dtype == np.int8 and (stored[:, 0, 0] == -128).all() and np.isnan(scale[0, 0, 0])
        codes = stored
        stored = np.where(codes == -128, np.nan, codes * scale)
        assert (np.abs(codes.astype(int)).max(0) == 127).sum() == SIDE * SIDE - 1
    seen = np.isfinite(exact)
    error = np.sqrt(((stored - exact)[seen] ** 2).sum() / (exact[seen] ** 2).sum())
    said = capsys.readouterr().out
    assert (
        error < bound and f"relative error {error:.2e}" in said and f"{SIDE * SIDE - 1} pixels as {precision}" in said
    )


def test_a_failed_tile_is_named_and_the_others_are_kept(world, whole, tmp_path, capsys):
    tiles = tmp_path / "tiles"
    shutil.copytree(world / "tiles50", tiles)
    (tiles / "0_0_50_50" / "masks.npy").unlink()
    (tiles / "50_0_100_50" / "bands.npy").write_bytes(b"nothing")
    assert run(tmp_path.parent / world.name, str(tiles), tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "FAILED 0_0_50_50" in said and "masks.npy is missing; without it clouds would count as clear" in said
    assert "FAILED 50_0_100_50" in said and "not a readable .npy file" in said
    image, exact = read(tmp_path / "out" / "embedding.tif"), read(whole)
    assert np.isnan(image[:, :50, :100]).all() and np.array_equal(image[:, 50:], exact[:, 50:], equal_nan=True)
    for name in ("0_0_50_50", "50_0_100_50"):
        shutil.copytree(world / "tiles50" / name, tiles / name, dirs_exist_ok=True)
    assert run(world, str(tiles), tmp_path / "out") == 0
    assert read(tmp_path / "out" / "embedding.tif").tobytes() == exact.tobytes()


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_equals_uninterrupted(world, whole, tmp_path):
    words = [sys.executable, "eval/embed.py", "--model-obj", str(world / "run"), "--input", str(world / "tiles25")]
    words += ["--output", str(tmp_path / "out"), "--batch-pixels", "64"]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("out/parts/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    import os

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/parts/*.json")}
    assert 3 <= len(done) < 25 and not (tmp_path / "out" / "embedding.tif").exists()
    assert run(world, "tiles25", tmp_path / "out") == 0
    assert read(tmp_path / "out" / "embedding.tif").tobytes() == read(whole).tobytes()
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    written = (tmp_path / "out" / "embedding.tif").stat().st_mtime_ns
    assert run(world, "tiles25", tmp_path / "out") == 0  # nothing is left to do
    assert (tmp_path / "out" / "embedding.tif").stat().st_mtime_ns == written


def test_what_stops_between_codes_and_scales_is_made_good(world, tmp_path):
    words = (world, "tiles50/0_0_50_50", tmp_path, "--precision", "int8")
    (tmp_path / "embedding.tif").mkdir()  # so that the map cannot take its place
    with pytest.raises(OSError):
        run(*words)
    assert (tmp_path / "embedding_scale.tif").is_file()
    (tmp_path / "embedding.tif").rmdir()
    assert run(*words) == 0 and (tmp_path / "embedding.tif").is_file()


def test_another_job_in_the_same_folder_is_refused(world, whole):
    with pytest.raises(ValueError, match="holds results of another job .precision float32 -> int8."):
        run(world, f"tiles{SIDE}", whole.parent, "--precision", "int8")


def test_tiles_of_another_year_in_the_same_folder_are_embedded_anew(world, whole, tmp_path):
    """The names of the tiles are the same, and so are their sizes."""
    tiles = tmp_path / "tiles"
    shutil.copytree(world / "tiles50" / "0_0_50_50", tiles / "0_0_50_50")
    assert run(world, str(tiles), tmp_path / "out") == 0
    assert np.array_equal(read(tmp_path / "out" / "embedding.tif"), read(whole)[:, :50, :50], equal_nan=True)
    info, bands = tiles / "0_0_50_50" / "tile.json", tiles / "0_0_50_50" / "bands.npy"
    info.write_text(info.read_text().replace("2022-", "2023-").replace("2021-", "2022-"))
    np.save(bands, np.load(bands)[::-1])
    for out in ("out", "fresh"):
        assert run(world, str(tiles), tmp_path / out) == 0
    image = read(tmp_path / "out" / "embedding.tif")
    assert np.array_equal(image, read(tmp_path / "fresh" / "embedding.tif"), equal_nan=True)
    assert not np.array_equal(image, read(whole)[:, :50, :50], equal_nan=True)


def test_bands_unlike_the_encoders_are_refused_by_name(world, tmp_path, capsys):
    tiny_series.encoder(tmp_path / "run", inputs={"s2": ["sentinel2_l2a", "B04", "B8A"], "s1": ["sentinel1_rtc", "VV"]})
    words = ["--model-obj", str(tmp_path / "run"), "--input", str(world / "tiles50" / "0_0_50_50")]
    assert embed.main([*words, "--output", str(tmp_path / "out")]) == 1
    assert "no band B8A, which the encoder sees; B02, B04, B08 are there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "catalogue, refused",
    [
        ("https://planetarycomputer.microsoft.com/api/stac/v1", False),
        ("https://earth-search.aws.element84.com/v1", True),
        (None, False),  # imported: nobody knows
    ],
)
def test_series_of_a_catalogue_that_the_statistics_are_not_of_are_refused(world, catalogue, refused):
    known = replace(load_model(str(world / "run")), catalogue=RELEASES["tessera_v1_1_mpc"].catalogue)
    tile = open_tile(world / "tiles50" / "0_0_50_50")
    tile = replace(tile, provenance={"catalogue": catalogue} if catalogue else {})
    load_model(str(world / "run")).check_source(tile)  # of no catalogue in particular
    with (
        pytest.raises(ValueError, match="the statistics of run are of series from planet") if refused else nullcontext()
    ):
        known.check_source(tile)


def test_evaluation_of_images_takes_no_encoder_of_series(world):
    for name in (str(world / "run"), f"random:{world / 'run'}"):
        with pytest.raises(ValueError, match="names an encoder of pixel series, not of images: use eval/embed.py"):
            encoders.load_model(name)


def test_devices():
    assert devices_of("cuda:1,cpu:2") == ["cuda:1", "cpu", "cpu"] and devices_of("cpu") == ["cpu"]
    with pytest.raises(ValueError, match="write cuda:INDEX and cpu:PROCESSES"):
        devices_of("gpu:0")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--devices", "cpu,cuda:99"], "device cuda:99: here are cpu"),
        (["--dims", "9"], "has 6 dimensions"),
        (["--dims", "0"], "has 6 dim"),
        (["--batch-pixels", "0"], "at least 1"),
    ],
)
def test_options_that_cannot_be(world, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        embed.main(
            ["--model-obj", str(world / "run"), "--input", str(world / "tiles50"), "--output", str(tmp_path), *options]
        )


# ---- other forms


def test_stitching_representations_equals_the_map(world, whole, tmp_path):
    assert run(world, "tiles50", tmp_path / "out", "--precision", "int8") == 0
    for part in (tmp_path / "out" / "parts").glob("*.values.npy"):
        name = part.name.removesuffix(".values.npy")
        (tmp_path / "reps").mkdir(exist_ok=True)
        shutil.copy(part, tmp_path / "reps" / f"{name}.npy")
        shutil.copy(part.with_name(f"{name}.scales.npy"), tmp_path / "reps" / f"{name}_scales.npy")
    words = ["--input", str(tmp_path / "reps"), "--tiles", str(world / "tiles50"), "--reference", str(whole)]
    assert embed.main(["stitch", *words, "--output", str(tmp_path / "map.tif")]) == 0
    codes, scale = read(tmp_path / "out" / "embedding.tif"), read(tmp_path / "out" / "embedding_scale.tif")
    want = np.where(codes == -128, np.nan, codes * scale).astype(np.float32)
    assert np.array_equal(read(tmp_path / "map.tif"), want, equal_nan=True)
    assert embed.main(["stitch", *words, "--output", str(tmp_path / "small.tif"), "--downsample", "10"]) == 0
    small = read(tmp_path / "small.tif")
    assert small.shape == (6, 11, 11)
    np.testing.assert_allclose(small[:, 3, 7], want[:, 30:40, 70:80].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(small[:, 0, 0], np.nanmean(want[:, :10, :10], (1, 2)), rtol=1e-5)
    np.testing.assert_allclose(small[:, 10, 10], want[:, 100, 100], rtol=1e-6)


def test_stitching_on_another_grid_is_refused(world, whole, tmp_path):
    (tmp_path / "reps").mkdir()
    np.save(tmp_path / "reps" / "0_0_50_50.npy", np.zeros((50, 50, 4), np.float32))
    with rasterio.open(whole) as file:
        profile = {
            **file.profile,
            "count": 1,
            "driver": "GTiff",
            "transform": file.transform @ rasterio.Affine.translation(0.4, 0),
        }
    with rasterio.open(tmp_path / "shifted.tif", "w", **profile):
        pass
    words = ["--input", str(tmp_path / "reps"), "--tiles", str(world / "tiles50"), "--output", str(tmp_path / "m.tif")]
    with pytest.raises(ValueError, match="has other pixels than the region"):
        embed.main(["stitch", *words, "--reference", str(tmp_path / "shifted.tif")])


def test_points_have_the_embedding_of_their_pixel(whole, tmp_path):
    east, north = tiny_series.LEFT + 10 * np.array([40.5, 3.1, 500]), tiny_series.TOP - 10 * np.array([60.5, 3.9, 5])
    lon, lat = rasterio.warp.transform(tiny_series.CRS, "EPSG:4326", east, north)
    rows = "".join(f"{a},{b},{c}\n" for a, b, c in zip(lon, lat, ("wheat", "maize", "far"), strict=True))
    (tmp_path / "p.csv").write_text("lon,lat,crop\n" + rows)
    out = tmp_path / "p.parquet"
    assert embed.main(["points", "--input", str(whole), "--points", str(tmp_path / "p.csv"), "--output", str(out)]) == 0
    table = pq.read_table(out)
    assert table["crop"].to_pylist() == ["wheat", "maize"]
    image = read(whole)
    found = np.stack([table[f"e{i:03d}"].to_numpy() for i in range(6)], 1)
    assert np.array_equal(found, image[:, [60, 3], [40, 3]].T)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_points_and_grids_that_cannot_be_are_one_sentence(world, whole, tmp_path):
    points, out = tmp_path / "p.csv", ["--output", str(tmp_path / "out")]
    for rows in ("", "here,52.0\n", "15.0,\n15.0,52.0\n"):
        points.write_text("lon,lat\n" + rows)
        with pytest.raises(ValueError, match="p.csv: every row needs a number as lon and as lat"):
            embed.main(["points", "--input", str(whole), "--points", str(points), *out])
    with pytest.raises(ValueError, match="none.gpkg cannot be read .*; give points as csv, gpkg"):
        embed.main(["points", "--input", str(whole), "--points", str(tmp_path / "none.gpkg"), *out])
    bare = tmp_path / "bare.tif"
    with rasterio.open(bare, "w", driver="GTiff", count=1, height=4, width=4, dtype="float32") as file:
        file.write(np.zeros((1, 4, 4), np.float32))
    points.write_text("lon,lat\n15.0,52.0\n")
    with pytest.raises(ValueError, match="bare.tif has no reference system: where the points lie"):
        embed.main(["points", "--input", str(bare), "--points", str(points), *out])
    words = ["--input", str(tmp_path), "--tiles", str(world / "tiles50"), "--reference", str(bare)]
    with pytest.raises(ValueError, match="bare.tif has no reference system: give it one"):
        embed.main(["stitch", *words, *out])


def test_the_quicklook_has_three_bands_of_the_maps_grid(whole, tmp_path):
    assert embed.main(["quicklook", "--input", str(whole), "--output", str(tmp_path / "look.tif")]) == 0
    with rasterio.open(tmp_path / "look.tif") as look, rasterio.open(whole) as file:
        assert look.count == 3 and look.transform == file.transform and look.crs == file.crs
        image = look.read()
    assert (image[:, 0, 0] == 0).all() and image[:, 1:].min() > 0 and image[0].std() > 20


def test_series_of_shards_have_their_labels_and_the_raw_numbers_theirs(world, tmp_path):

    one = [replace(s, images={k: v[..., :1, :1] for k, v in s.images.items()}) for s in tiny_series.samples(9)][::3]
    one[2] = replace(one[2], labels={})
    write_shards(one, tmp_path / "set", samples_per_shard=2, labels={})
    for obj, width in ((str(world / "run"), 6), (f"raw:{world / 'run'}", 9 * 3 + 14 * 2)):
        out = tmp_path / "t.parquet"
        assert embed.main(["series", "--model-obj", obj, "--input", str(tmp_path / "set"), "--output", str(out)]) == 0
        table = pq.read_table(out)
        assert table["crop"].to_pylist() == [0, 0, None] and table["key"].to_pylist() == ["p000", "p003", "p006"]
        assert sum(name.startswith("e0") for name in table.column_names) == width
