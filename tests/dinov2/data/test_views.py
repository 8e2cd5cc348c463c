from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from dinov2.data.batch import MaskSpec, ViewSpec
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.stats import Normalisation
from dinov2.data.views import Augment, collate, draw, full_view, render, view_width
from dinov2.sensors import SENSORS

GLOBAL = ViewSpec("global", 2, 48, (0.32, 1.0), (4, 13), mask=MaskSpec("block", 8))
LOCAL = ViewSpec("local", 4, 16, (0.05, 0.32), (1, 4))
AUGMENT = Augment(simulate=0.5)


def equal(a, b):
    """Whether two drawn samples are bit for bit the same."""
    if a.views.keys() != b.views.keys():
        return False
    crops = [(x, y) for n in a.views for x, y in zip(a.views[n].crops, b.views[n].crops, strict=True)]
    arrays = [(x.chn_ids, y.chn_ids) for x, y in crops] + [(x.mask, y.mask) for x, y in crops if x.mask is not None]
    for x, y in crops:
        if x.flips != y.flips or len(x.pieces) != len(y.pieces):
            return False
        for p, q in zip(x.pieces, y.pieces, strict=True):
            arrays += [(p.planes, q.planes), (p.params, q.params), (p.noise, q.noise), (p.slots, q.slots)]
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in arrays)


def test_a_view_is_a_function_of_seed_epoch_and_position_only(samples, norm):
    for position, sample in enumerate(samples):
        key = (1, 2, position)
        first = draw(sample, [GLOBAL, LOCAL], AUGMENT, norm, key)
        np.random.seed(7)  # the global generators play no part
        assert equal(first, draw(sample, [GLOBAL, LOCAL], AUGMENT, norm, key))
        reordered = draw(sample, [LOCAL, GLOBAL], AUGMENT, norm, key)  # views draw independently of one another
        assert equal(first, replace(reordered, views={n: reordered.views[n] for n in first.views}))
        for other in [(0, 2, position), (1, 3, position), (1, 2, position + 1)]:
            assert not equal(first, draw(sample, [GLOBAL, LOCAL], AUGMENT, norm, other))


def test_crops_differ_from_one_another(samples, norm):
    view = draw(samples[0], [replace(GLOBAL, distinct=False)], AUGMENT, norm, (0, 0, 0)).views["global"]
    assert view.crops[0].pieces[0].planes.shape != view.crops[1].pieces[0].planes.shape
    assert view.crops[0].pieces[0].noise[0] != view.crops[1].pieces[0].noise[0]


def sensors_of(view):
    """S for Sentinel-2, R for radar, T for terrain, per crop."""
    return ["T" if c.chn_ids[0] == -13 else "R" if c.chn_ids[0] < 0 else "S" for c in view.crops]


def test_distinct_crops_take_every_sensor_once_before_any_twice(samples, norm):
    seen = Counter()
    for position in range(60):
        view = draw(samples[0], [replace(LOCAL, distinct=True)], AUGMENT, norm, (0, 0, position)).views["local"]
        assert set(sensors_of(view)[:3]) == {"S", "R", "T"}
        seen[sensors_of(view)[0]] += 1
    assert min(seen.values()) > 8
    free = [
        sensors_of(draw(samples[0], [replace(LOCAL, distinct=False)], AUGMENT, norm, (0, 0, p)).views["local"])
        for p in range(20)
    ]
    assert any(len(set(s[:3])) < 3 for s in free)


def test_bands_are_drawn_within_the_limits_and_within_what_the_sensor_has(samples, norm):
    counts, ids = {"S": Counter(), "R": Counter()}, set()
    for position in range(400):
        crops = draw(samples[0], [replace(GLOBAL, bands=(4, 8))], Augment(), norm, (0, 0, position)).views["global"]
        for kind, crop in zip(sensors_of(crops), crops.crops, strict=True):
            assert len(set(crop.chn_ids)) == len(crop.chn_ids) == sum(len(p.planes) for p in crop.pieces)
            if kind in counts:
                counts[kind][len(crop.chn_ids)] += 1
            ids |= set(crop.chn_ids.tolist())
    assert set(counts["S"]) == {4, 5, 6, 7, 8} and min(counts["S"].values()) > 20
    assert set(counts["R"]) == {2}
    assert len(ids) == 12 + 2 + 1  # every band of every sensor is shown


def test_ids_belong_to_the_pixels(samples, norm):
    """Each plane of a crop is found in the image band whose wavelength it claims."""
    sample = samples[0]
    by_id = {b.channel_id: im[i] for n, im in sample.images.items() for i, b in enumerate(sample.specs[n].band_objects)}
    for position in range(20):
        for crop in draw(sample, [GLOBAL], Augment(), norm, (0, 0, position)).views["global"].crops:
            for piece in crop.pieces:
                for slot, plane in zip(piece.slots, piece.planes, strict=True):
                    image = by_id[crop.chn_ids[slot]]
                    windows = np.lib.stride_tricks.sliding_window_view(image, plane.shape)
                    assert any(np.array_equal(w, plane, equal_nan=image.dtype.kind == "f") for r in windows for w in r)


def test_a_crop_covers_the_same_ground_in_every_resolution(samples, norm):
    spec = replace(GLOBAL, bands=(12, 12), distinct=False)
    crops = [c for p in range(20) for c in draw(samples[0], [spec], Augment(), norm, (0, 0, p)).views["global"].crops]
    for crop in (c for c in crops if len(c.chn_ids) == 12):
        metres = {
            tuple(side * g for side in p.planes.shape[1:]) for p, g in zip(crop.pieces, (10, 20, 60), strict=True)
        }
        assert len(metres) == 1
    assert sum(len(c.chn_ids) == 12 for c in crops) > 5


def test_a_series_shows_one_date_that_has_pixels(samples, norm):
    dates = Counter()
    for position in range(100):
        (piece,) = draw(samples[3], [LOCAL], Augment(), norm, (0, 0, position)).views["local"].crops[0].pieces
        dates[int(piece.planes.max()) // 1000] += 1
    assert set(dates) == {1, 3} and min(dates.values()) > 25


def test_crops_of_nodata_are_drawn_again():
    spec = ImageSpec("sentinel2_l2a", 10, ("B02",), "uint16", "reflectance", nodata=0)
    image = np.zeros((1, 100, 100), np.uint16)
    image[:, :30, :30] = 5 + np.arange(30, dtype=np.uint16)
    sample = Sample("edge", {spec.key: image}, {spec.key: spec})
    norm = Normalisation({"sentinel2_l2a": {"B02": (0.0, 1.0)}}, {"sentinel2_l2a": "reflectance"})
    view = replace(LOCAL, count=1, scale=(0.02, 0.04))
    share = [
        (draw(sample, [view], Augment(), norm, (0, 0, p)).views["local"].crops[0].pieces[0].planes == 0).mean()
        for p in range(100)
    ]
    assert np.mean(np.array(share) <= 0.9) > 0.7  # one draw alone succeeds in about 15 %
    blank = Sample("blank", {spec.key: np.zeros_like(image)}, {spec.key: spec})
    assert (render(collate([draw(blank, [view], Augment(), norm, (0, 0, 0))]), "cpu").views["local"]["imgs"] == 0).all()


def test_hyperspectral_becomes_broad_bands(samples, norm):
    counts = Counter()
    for position in range(50):
        for crop in draw(samples[1], [GLOBAL], Augment(simulate=1.0), norm, (0, 0, position)).views["global"].crops:
            (piece,) = crop.pieces
            assert piece.planes.dtype == np.float32 and ((crop.chn_ids >= 418) & (crop.chn_ids <= 2445)).all()
            assert len(piece.planes) == len(crop.chn_ids)
            counts[len(crop.chn_ids)] += 1
    assert set(counts) <= set(range(4, 14)) and len(counts) > 6
    narrow = draw(samples[1], [GLOBAL], Augment(simulate=0.0), norm, (0, 0, 0)).views["global"].crops[0]
    assert narrow.pieces[0].planes.dtype == np.int16


def test_broad_bands_keep_flat_spectra_statistics_and_nodata(make_hyperspectral):
    sample = make_hyperspectral("flat", 8)
    image = sample.images["enmap-30m"]
    image[:] = 3000
    image[::2, 2, 3] = -32768
    table = dict.fromkeys(sample.specs["enmap-30m"].bands, (0.2, 0.05))
    norm = Normalisation({"enmap": table}, {"enmap": "reflectance"})
    plain = Augment(flip=False, jitter_probability=0.0, simulate=1.0)
    view = ViewSpec("v", 1, 8, (1.0, 1.0), (13, 13))
    imgs = render(collate([draw(sample, [view], plain, norm, (0, 0, 0))]), "cpu").views["v"]["imgs"][0]
    expected = np.full((8, 8), (0.3 - 0.2) / 0.05)
    expected[2, 3] = 0
    assert np.allclose(imgs, expected, atol=1e-4)


def test_every_channel_has_its_own_gain_and_noise(samples, norm):
    view = replace(GLOBAL, bands=(13, 13), distinct=False)
    for position in range(20):
        augment = Augment(jitter_probability=1.0)
        for crop in draw(samples[0], [view], augment, norm, (0, 0, position)).views["global"].crops:
            assert len({int(key) for p in crop.pieces for key in p.noise}) == len(crop.chn_ids)
            if crop.chn_ids[0] > 0:  # optical
                assert len({float(g) for p in crop.pieces for g in p.params[:, 5]}) == len(crop.chn_ids)
                assert len({float(c) for p in crop.pieces for c in p.params[:, 6]}) == 1


def test_width_is_the_same_for_all_samples():
    widths = {view_width(replace(GLOBAL, bands=(1, hi))): hi for hi in (2, 3, 8, 12, 13, 14, 64, 202, 224)}
    assert list(widths) == [2, 4, 8, 13, 32, 64, 224]
    assert view_width(replace(GLOBAL, bands=(10, 10))) == 10  # of encoders for ten fixed bands: no padding
    for bands in [(0, 4), (5, 4), (1, 225)]:
        with pytest.raises(ValueError, match="global.*bands"):
            view_width(replace(GLOBAL, bands=bands))


def test_flips_are_fair_and_can_be_turned_off(samples, norm):
    draws = [draw(samples[3], [LOCAL], Augment(), norm, (0, 0, p)).views["local"].crops for p in range(100)]
    flips = np.array([crop.flips for crops in draws for crop in crops])
    assert (np.abs(flips.mean(0) - 0.5) < 0.1).all() and abs(np.mean(flips[:, 0] == flips[:, 1]) - 0.5) < 0.1
    still = draw(samples[3], [LOCAL], Augment(flip=False), norm, (0, 0, 0)).views["local"].crops
    assert all(crop.flips == (False, False) for crop in still)


def test_full_view_stacks_all_bands_at_the_finest_pixel(samples, norm):
    view = render(collate([full_view(samples[0], norm=norm)]), "cpu").views["image"]
    assert view["imgs"].shape == (1, 15, 66, 66) and not view["spec_masks"].any()
    radar = render(collate([full_view(samples[0], images=["sentinel1_rtc-10m"], size=33, norm=norm)]), "cpu")
    assert radar.views["image"]["imgs"].shape == (1, 2, 33, 33)
    named = full_view(samples[0], bands=["B8A", "VV", "B02"], norm=norm).views["image"].crops[0]
    assert named.chn_ids.tolist() == [864, -1, 493]


def test_full_view_names_what_is_missing(samples, norm):
    with pytest.raises(ValueError, match="'mixed0' has no image 'sentinel2_l1c-10m'"):
        full_view(samples[0], images=["sentinel2_l1c-10m"], norm=norm)
    with pytest.raises(ValueError, match="'mixed0' has no band 'B80' among B02, .*; did you mean 'B8A'"):
        full_view(samples[0], bands=["B80"], norm=norm)
    with pytest.raises(ValueError, match="'series0' is a time series of 4 dates; at most 1"):
        full_view(samples[3], norm=norm)


def test_bad_pixels_and_missing_statistics_are_errors(make_mixed, norm):
    broken = make_mixed("broken")
    broken.images["sentinel1_rtc-10m"][1, 2, 3] = np.inf
    for make in (lambda: draw(broken, [GLOBAL], Augment(), norm, (0, 0, 0)), lambda: full_view(broken, norm=norm)):
        with pytest.raises(ValueError, match="'broken', image 'sentinel1_rtc-10m', band VH: 1 non-finite"):
            make()
    unknown = replace(norm, table={k: v for k, v in norm.table.items() if k != "dem"})
    with pytest.raises(ValueError, match="no normalisation statistics for sensor 'dem'"):
        full_view(make_mixed("a"), norm=unknown)


def read(path, sensor, gsd, bands, unit, scale=1.0, nodata=None):
    """One image of a sample; bands that are nodata throughout are left out."""
    with rasterio.open(path) as file:
        pixels = file.read()
    assert len(pixels) == len(bands)
    good = [i for i, plane in enumerate(pixels) if (plane != nodata).any()]
    spec = ImageSpec(sensor, gsd, tuple(bands[i] for i in good), pixels.dtype.name, unit, scale, 0.0, nodata)
    return {spec.key: pixels[good]}, {spec.key: spec}


def test_real_sensors_in_one_batch(realdata, make_norm):
    """Sentinel-2 and Sentinel-1 of TerraMesh and an EnMAP chip: views of about mean 0 and spread 1."""
    first = {n: sorted(realdata.glob(f"{n}/*.tif"))[0] for n in ("terramesh/S2L2A", "terramesh/S1RTC", "enmap/images")}
    l2a = [b for b in SENSORS["sentinel2_l2a"].band_names if b != "B10"]
    optical = read(first["terramesh/S2L2A"], "sentinel2_l2a", 10, l2a, "reflectance", 1e-4)
    radar = read(first["terramesh/S1RTC"], "sentinel1_grd", 10, ("VV", "VH"), "db")
    enmap = read(first["enmap/images"], "enmap", 30, SENSORS["enmap"].band_names, "reflectance", 1e-4, -32768)
    samples = [Sample("scene", optical[0] | radar[0], optical[1] | radar[1]), Sample("enmap", *enmap)]
    norm = make_norm(*samples)
    raws = [draw(s, [GLOBAL, LOCAL], AUGMENT, norm, (0, 0, i)) for i, s in enumerate(samples * 8)]
    for view in render(collate(raws), "cpu").views.values():
        shown = view["imgs"][~view["spec_masks"]]
        assert shown.isfinite().all()
        assert shown.mean().abs() < 0.5 and 0.5 < shown.std() < 1.5
