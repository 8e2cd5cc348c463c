import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from data_prep.main import main, parse
from data_prep.terramesh import plan
from data_prep.terramesh_modalities import LANDCOVER, landcover
from dinov2.data.shards import ShardSet, verify

pytestmark = pytest.mark.realdata


def options(src, *words: str, offset: str = "detect"):
    return parse(["terramesh", "--src", str(src), "--out", "unused", "--baseline-offset", offset, *words])


def test_all_five_scenes_become_245_aligned_chips(realdata, tmp_path):
    src, out = realdata / "terramesh", tmp_path / "out"
    assert main(["terramesh", "--src", str(src), "--out", str(out), "--chip", "32", "--baseline-offset", "detect"]) == 0
    assert verify(out).problems == []
    shards = ShardSet.open(out)
    samples = [shards.read(s, i) for s, n in enumerate(shards.counts) for i in range(n)]
    assert len(samples) == 245 and len({s.meta["cell"] for s in samples}) == 5
    for sample in samples[::31]:
        row, column = int(sample.key[-7:-4]), int(sample.key[-3:])
        window = rasterio.windows.Window(32 * column, 32 * row, 32, 32)
        for folder, key in (
            ("S2L1C", "sentinel2_l1c-10m"),
            ("S2L2A", "sentinel2_l2a-10m"),
            ("S1RTC", "sentinel1_rtc-10m"),
        ):
            with rasterio.open(src / folder / f"{sample.meta['cell']}.tif") as raster:
                stored, bounds = raster.read(window=window), raster.window_bounds(window)
            removed = sample.meta["removed_offset"].get(folder, 0)
            assert np.array_equal(sample.images[key], (stored - removed).astype(sample.images[key].dtype))
            assert np.allclose(sample.footprint, bounds)
        assert sample.specs["sentinel1_rtc-10m"].unit == "db" and sample.specs["dem-10m"].unit == "metre"
    scenes = [s.labels["scene"] for s in samples]
    assert set(scenes) <= {-1, *range(len(LANDCOVER))} and scenes.count(LANDCOVER.index("snow/ice")) == 49


def test_the_offset_is_found_by_the_lowest_value(realdata):
    def removed(offset: str) -> dict[str, dict[str, int]]:
        made = plan(options(realdata / "terramesh", offset=offset)).samples()
        return {s.meta["cell"]: s.meta["removed_offset"] for s in made}

    found = removed("detect")
    assert {c for c, v in found.items() if v["S2L1C"]} == {"282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0"}
    assert {c for c, v in found.items() if v["S2L2A"]} == {"433D_629L_3_1"}
    for choice, value in (("remove", 1000), ("none", 0)):
        assert {v for offsets in removed(choice).values() for v in offsets.values()} == {value}


def test_reflectance_of_the_two_levels_agrees_once_offsets_are_off(realdata):
    """Red band over one scene each: surface and top-of-atmosphere reflectance differ by haze, not by 0.1."""
    for sample in plan(options(realdata / "terramesh")).samples():
        red = {
            k: sample.images[k][sample.specs[k].bands.index("B12")].mean() * 1e-4 for k in sample.images if "2_l" in k
        }
        assert abs(red["sentinel2_l1c-10m"] - red["sentinel2_l2a-10m"]) < 0.05


def test_scenes_that_lack_a_modality_or_lie_elsewhere_are_named(realdata, tmp_path):
    cells = sorted((realdata / "terramesh/DEM").glob("*.tif"))[:2]
    for folder in ("DEM", "S1RTC"):
        (tmp_path / folder).mkdir()
        for cell in cells:
            shutil.copyfile(realdata / "terramesh" / folder / cell.name, tmp_path / folder / cell.name)
    made = list(plan(options(tmp_path)).samples())
    assert [set(s.images) for s in made] == [{"dem-10m", "sentinel1_rtc-10m"}] * 2 and made[0].labels == {}
    shutil.copyfile(realdata / "terramesh/DEM" / cells[1].name, tmp_path / "DEM" / cells[0].name)
    with pytest.raises(ValueError, match=f"DEM/{cells[0].name} does not lie on the grid"):
        list(plan(options(tmp_path)).samples())
    (tmp_path / "DEM" / cells[1].name).unlink()
    with pytest.raises(ValueError, match=f"DEM/{cells[1].name} is missing"):
        plan(options(tmp_path))
    with pytest.raises(ValueError, match="has none of the folders S2L1C, S2L2A, S1GRD, S1RTC, DEM"):
        plan(options(tmp_path / "DEM"))


def test_a_file_that_changed_is_another_source(realdata, tmp_path):
    (cell, *_) = sorted((realdata / "terramesh/DEM").glob("*.tif"))
    (tmp_path / "DEM").mkdir()
    path = Path(shutil.copy2(cell, tmp_path / "DEM"))
    first = plan(options(tmp_path)).provenance
    assert plan(options(tmp_path)).provenance == first
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert plan(options(tmp_path)).provenance["files"] != first["files"]


def test_land_cover_codes():
    assert landcover(np.array([[1, 1, 0, 9]], np.uint8), "x.tif").tolist() == [[0, 0, 255, 8]]
    with pytest.raises(ValueError, match="x.tif has the land-cover code 10"):
        landcover(np.array([[10]], np.uint8), "x.tif")


def test_scenes_can_be_held_out(realdata):
    whole, rest = (sources(realdata, *words) for words in ((), ("--exclude", "433D_629L_3_1,637U_59R_1_3")))
    assert len(whole) == 5 and rest == whole - {"433D_629L_3_1", "637U_59R_1_3"}
    with pytest.raises(ValueError, match="--exclude 1U_1R: .*terramesh has no such scene"):
        sources(realdata, "--exclude", "1U_1R")


def sources(realdata, *words: str) -> set[str]:
    """The scenes of a plan."""
    return {name.removesuffix(".tif") for name in plan(options(realdata / "terramesh", *words)).items}
