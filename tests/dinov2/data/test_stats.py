import numpy as np
import pytest

from dinov2.data.sample import ImageSpec
from dinov2.data.stats import BandStats, Normalisation, image_stats, merge_stats

S2 = ImageSpec("sentinel2_l2a", 10, ("B02", "B03"), "uint16", "reflectance", 1e-4, 0.0, 0)
POWER = ImageSpec("sentinel1_rtc", 10, ("VV",), "float32", "linear_power")
DECIBEL = ImageSpec("sentinel1_rtc", 10, ("VV",), "float32", "db")


def test_merged_parts_equal_the_whole():
    values = np.random.default_rng(0).normal(3, 2, 1000)
    whole = BandStats.of(values, "db")
    parts = BandStats.of(values[:13], "db").merge(BandStats.of(values[13:], "db"))
    assert (parts.count, parts.min, parts.max) == (1000, values.min(), values.max())
    assert parts.mean == pytest.approx(values.mean(), rel=1e-12) and parts.std == pytest.approx(values.std(), rel=1e-12)
    assert whole.std == pytest.approx(values.std(), rel=1e-12)


def test_nodata_is_left_out_and_a_band_without_pixels_is_absent():
    image = np.array([[[0, 1000, 3000]], [[0, 0, 0]]], np.uint16)
    stats = image_stats(image, S2)
    assert set(stats) == {("sentinel2_l2a", "B02")}
    assert stats["sentinel2_l2a", "B02"].count == 2 and stats["sentinel2_l2a", "B02"].mean == pytest.approx(0.2)


def test_power_and_decibels_meet_in_decibels():
    power, decibel = np.full((1, 1, 2), 0.1, np.float32), np.full((1, 1, 2), -20.0, np.float32)
    merged = merge_stats([image_stats(power, POWER), image_stats(decibel, DECIBEL)])
    assert merged["sentinel1_rtc", "VV"].mean == pytest.approx(-15, abs=1e-5)


def test_other_units_do_not_merge():
    parts = [{("s", "b"): BandStats.of(np.arange(3.0), unit)} for unit in ("db", "reflectance")]
    with pytest.raises(ValueError, match="sensor 's', band 'b': cannot merge statistics in db with"):
        merge_stats(parts)


def test_normalisation_looks_up_or_names_what_is_missing():
    norm = Normalisation.from_stats(image_stats(np.array([[[1000, 3000]], [[2000, 4000]]], np.uint16), S2))
    mean, std = norm.lookup(S2, ["B03", "B02"])
    assert mean.tolist() == pytest.approx([0.3, 0.2]) and std.tolist() == pytest.approx([0.1, 0.1])
    assert Normalisation.from_dict(norm.to_dict()).lookup(S2, ["B02"])[0] == mean[1]
    with pytest.raises(ValueError, match="sensor 'sentinel1_rtc'"):
        norm.lookup(POWER, ["VV"])
    with pytest.raises(ValueError, match="band B04"):
        norm.lookup(S2, ["B04"])
    with pytest.raises(ValueError, match="in reflectance, the data in dn"):
        norm.lookup(ImageSpec("sentinel2_l2a", 10, ("B02",), "uint16", "dn"), ["B02"])


def test_a_constant_band_is_refused():
    with pytest.raises(ValueError, match="band 'B02' is constant"):
        Normalisation.from_stats(image_stats(np.array([[[7, 7]], [[1, 2]]], np.uint16), S2))


def test_the_checkpoints_statistics_win_over_the_datasets():
    a = Normalisation({"x": {"b": (1.0, 1.0)}}, {"x": "db"})
    b = Normalisation({"x": {"b": (2.0, 1.0)}, "y": {"b": (3.0, 1.0)}}, {"x": "db", "y": "db"})
    assert a.updated(b).table == {"x": {"b": (1.0, 1.0)}, "y": {"b": (3.0, 1.0)}}
