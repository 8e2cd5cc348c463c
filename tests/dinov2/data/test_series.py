from dataclasses import replace

import numpy as np
import pytest
import torch

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.series import Observed, Series, bin_of, bring, observe, tracks
from dinov2.data.series_views import collate, draw
from dinov2.data.stats import Normalisation, image_stats, merge_stats
from tests import tiny_series
from tests.tiny_series import BANDS, OPTICAL, RADAR

OPTIONS = Series(optical_bands=list(BANDS), dates=6)
SAMPLES = list(tiny_series.samples(9))
NORM = Normalisation.from_stats(merge_stats([image_stats(i, s.specs[k]) for s in SAMPLES for k, i in s.images.items()]))
BOTH, OPTICS_ONLY, RADAR_ONLY = SAMPLES[:3]


def test_a_view_shows_valid_dates_in_order_with_their_standardised_numbers():
    for position in range(20):
        drawn = draw(BOTH, replace(OPTIONS, drop_sensor=0.0), NORM, (0, 0, position))
        for view in drawn.views:
            shown = view["s2_valid"]
            count = shown.sum()
            assert shown[:count].all() and not view["s2"][count:].any()
            days = view["s2_days"][:count]
            assert (np.diff(days) > 0).all()
            all_days = [
                (np.datetime64(d) - np.datetime64("2020-01-01")).astype(int) + 1 for d in BOTH.times[OPTICAL.key]
            ]
            image = BOTH.images[OPTICAL.key].reshape(9, 3, 4)
            mean, std = NORM.lookup(OPTICAL, BANDS)
            want = (image[[all_days.index(d) for d in days]] * np.float32(1e-4) - mean[:, None]) / std[:, None]
            misses = np.abs(want - view["s2"][:count, :, None]).max((0, 1))
            assert misses.min() < 1e-5  # one of the four pixels, at these dates
            assert count <= max(1, round(0.8 * 9))


def test_radar_looks_of_two_orbits_are_one_sequence_each_in_its_orbits_numbers():
    track = tracks(RADAR_ONLY, OPTIONS.inputs, NORM)["s1"]
    assert len(track.days) == 14 and (np.diff(track.dates) >= 0).all()
    assert track.valid.sum(0).tolist() == [7 + 3] * 4  # descending looks are there at every second date
    for orbit, rows in (("ascending", slice(0, 14, 2)), ("descending", slice(1, 14, 2))):
        mean, std = NORM.lookup(RADAR, [f"VV_{orbit}", f"VH_{orbit}"])
        np.testing.assert_allclose(track.slope[rows], np.broadcast_to(0.01 / std, (7, 2)), rtol=1e-6)
        np.testing.assert_allclose(track.shift[rows], np.broadcast_to(-mean / std, (7, 2)), rtol=1e-6)


def test_the_key_alone_decides_and_views_differ():
    a, b = (draw(BOTH, OPTIONS, NORM, (3, 1, 7)) for _ in range(2))
    for one, two in zip(a.views, b.views, strict=True):
        assert all(np.array_equal(one[k], two[k]) for k in one)
    assert not np.array_equal(a.views[0]["s2"], a.views[1]["s2"])
    assert not np.array_equal(a.views[0]["s2"], draw(BOTH, OPTIONS, NORM, (3, 2, 7)).views[0]["s2"])


def test_a_gap_has_no_date_and_a_sensor_is_dropped_as_often_as_asked():
    gaps = replace(OPTIONS, keep=1.0, window_days=120, window_probability=1.0, drop_sensor=0.0, dates=14)
    full = replace(gaps, window_probability=0.0)
    fewer = 0
    for position in range(40):
        for view in draw(OPTICS_ONLY, gaps, NORM, (0, 0, position)).views:
            fewer += view["s2_valid"].sum() < draw(OPTICS_ONLY, full, NORM, (0, 0, position)).views[0]["s2_valid"].sum()
            assert view["s2_valid"].any()
    assert fewer > 60
    dropping = replace(OPTIONS, drop_sensor=0.5)
    views = [v for p in range(200) for v in draw(BOTH, dropping, NORM, (0, 0, p)).views]
    lost = np.mean([not (v["s2_valid"].any() and v["s1_valid"].any()) for v in views])
    assert 0.4 < lost < 0.6 and all(v["s2_valid"].any() or v["s1_valid"].any() for v in views)


def test_a_batch_is_view_major_with_both_branches_for_every_pixel():
    drawn = [draw(s, OPTIONS, NORM, (0, 0, i)) for i, s in enumerate(SAMPLES[:3])]
    batch = collate(drawn)
    view = batch.views["crop"]
    assert view["s2"].shape == (6, 6, 3) and view["s1"].shape == (6, 6, 2) and view["s1_valid"].dtype == torch.bool
    assert torch.equal(view["s2"][4], torch.from_numpy(drawn[1].views[1]["s2"]))
    assert batch.labels["crop"].tolist() == [0, 1, 2] and not view["s1_valid"][1].any()


def test_dates_are_brought_to_a_bin():
    valid = np.array([[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]], bool).T  # [N, P]
    chosen, shown = bring(valid, 4, "mask")
    assert chosen[0].tolist() == [0, 2, 5, 6]  # of the dates 0, 2, 3, 5, 6
    assert shown.tolist() == [[True] * 4, [False] * 4, [True, False, False, False]] and chosen[2][0] == 1
    chosen, shown = bring(valid, 8, "repeat")
    assert chosen[0].tolist() == [0, 0, 2, 3, 3, 5, 6, 6]
    assert (np.diff(chosen[0]) >= 0).all() and chosen[2].tolist() == [1] * 8
    assert shown.all(1).tolist() == [True, False, True]
    assert bin_of(np.array([0, 4, 5, 90]), (4, 8, 16)).tolist() == [0, 4, 8, 16]


def test_leap_days_and_two_years_keep_their_order():
    spec = ImageSpec("sentinel2_l2a", 10, ("B04",), "uint16", "reflectance", 1e-4, 0.0, 0)
    dates = ["2021-01-01", "2020-02-29", "2020-12-31", "2019-12-31"]
    image = np.arange(1, 5, dtype=np.uint16).reshape(4, 1, 1)
    norm = Normalisation({"sentinel2_l2a": {"B04": (0.0, 1.0)}}, {"sentinel2_l2a": "reflectance"})
    track = observe([Observed(image, spec, dates)], ["sentinel2_l2a", "B04"], 1, norm, "x")
    assert track.days.tolist() == [365, 60, 366, 1] and track.stored.ravel().tolist() == [4, 2, 3, 1]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"optical_bands": ["B02", "B11"]},
            "sentinel2_l2a: no band B11, which the encoder sees; B02, B04, B08 are there",
        ),
        ({"optical_bands": ["B11"]}, "none of the encoder's bands B11"),
    ],
)
def test_bands_that_are_not_there_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        draw(BOTH, replace(OPTIONS, **change), NORM, (0, 0, 0))


def test_radar_in_linear_power_is_refused():
    spec = replace(RADAR, unit="linear_power")
    power = replace(RADAR_ONLY, specs={RADAR.key: spec})
    with pytest.raises(ValueError, match="series need radar in dB, this is linear power"):
        draw(power, OPTIONS, NORM, (0, 0, 0))


def test_dates_that_do_not_fit_and_pixels_never_seen_are_one_sentence():
    with pytest.raises(ValueError, match="9 images but 8 dates"):
        draw(replace(OPTICS_ONLY, times={OPTICAL.key: OPTICS_ONLY.times[OPTICAL.key][1:]}), OPTIONS, NORM, (0, 0, 0))
    dark = Sample("dark", {OPTICAL.key: np.zeros((2, 3, 1, 1), np.uint16)}, {OPTICAL.key: OPTICAL},
                  {OPTICAL.key: ["2020-01-01", "2020-01-02"]})  # fmt: skip
    with pytest.raises(ValueError, match="'dark': no pixel has a valid date"):
        draw(dark, OPTIONS, NORM, (0, 0, 0))
