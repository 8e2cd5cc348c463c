from pathlib import Path

import pytest
import rasterio
import yaml

from dinov2.sensors import MIN_ID, SENSOR_DIR, SENSORS, UNITS, Band, Registry, load_sensor

# Facts written down here by hand, from the publications that the files name: sensor, band -> (channel id, width, m)
KNOWN = {
    ("sentinel2_l1c", "B10"): (1373, 31, 60),
    ("sentinel2_l2a", "B02"): (493, 66, 10),
    ("sentinel2_l2a", "B8A"): (864, 21, 20),
    ("sentinel2_l2a", "B12"): (2203, 175, 20),
    ("landsat5", "B7"): (2215, 270, 30),
    ("landsat7", "B4"): (835, 130, 30),
    ("landsat8", "B5"): (864, 28.25, 30),
    ("landsat8_thermal", "B10"): (10895, 590, 30),
    ("landsat9", "B5"): (865, 30, 30),
    ("hls_s30", "B08"): (827, 106, 30),
    ("worldview2", "nir2"): (908, 99.6, 1.84),
    ("worldview3", "nir2"): (913, 88.9, 1.24),
    ("worldview3", "swir5"): (2163, 38.9, 3.7),
    ("quickbird2", "nir"): (830, 140, 2.44),
    ("geoeye1", "red"): (672, 35, 1.65),
    ("planetscope", "nir"): (867, 42, 3),
    ("superdove", "green_i"): (531, 36, 3),
    ("naip", "nir"): (845, 74, 0.6),
    ("gaofen1", "green"): (555, 70, 8),
    ("gaofen2", "nir"): (830, 120, 4),
    ("modis", "B2"): (858, 35, 250),
    ("modis", "B3"): (469, 20, 500),
    ("aviris", "B1"): (366, 10, 20),
    ("aviris", "B224"): (2497, 10, 20),
}
SPECTRAL_EARTH = [f"B{i}" for i in (*range(1, 127), *range(142, 161), *range(168, 225))]


@pytest.mark.parametrize("path", sorted(SENSOR_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_a_sensor_with_integer_ids_in_range_and_a_source(path: Path) -> None:
    sensor = load_sensor(path)
    assert sensor.name == path.stem and sensor.source and sensor.unit in UNITS
    assert {"unit", "scale", "offset", "nodata"} <= yaml.safe_load(path.read_text()).keys()  # nothing by default
    for channel in sensor.channel_ids():
        assert type(channel) is int and (MIN_ID <= channel < 0 or 300 <= channel <= 13000)
    assert all(band.gsd_m > 0 for band in sensor.bands)


def test_the_sensors_promised_are_there() -> None:
    counts = {"sentinel2_l1c": 13, "sentinel2_l2a": 12, "sentinel1_grd": 12, "sentinel1_rtc": 12, "landsat5": 6}
    counts |= {"landsat7": 6, "landsat8": 7, "landsat9": 7, "hls_l30": 8, "hls_s30": 13, "worldview2": 8}
    counts |= {"worldview3": 16, "quickbird2": 4, "geoeye1": 4, "planetscope": 4, "superdove": 8, "naip": 4, "rgb": 3}
    counts |= {"gaofen1": 4, "gaofen2": 4, "modis": 7, "enmap": 224, "aviris": 224, "dem": 1, "slope": 1}
    assert {name: len(SENSORS[name].bands) for name in counts} == counts


@pytest.mark.parametrize(("sensor", "band"), KNOWN, ids=lambda name: name)
def test_published_wavelength_width_and_resolution(sensor: str, band: str) -> None:
    channel, width, metres = KNOWN[sensor, band]
    found = SENSORS[sensor].band(band)
    assert found.channel_id == channel
    assert found.fwhm_nm == pytest.approx(width)
    assert found.gsd_m == metres


def test_sar_ids_are_panopticons_table() -> None:
    # VV, VH, HH, HV: orbit unknown -1..-4, ascending -5..-8, descending -9..-12
    for name in ("sentinel1_grd", "sentinel1_rtc"):
        assert SENSORS[name].channel_ids() == list(range(-1, -13, -1))
        assert SENSORS[name].channel_ids(["VV", "HV", "VH_ascending", "HH_descending"]) == [-1, -4, -6, -11]
    assert SENSORS["dem"].channel_ids() == [-13] and SENSORS["slope"].channel_ids() == [-14]


def test_units_and_stored_numbers() -> None:
    thermal, surface = SENSORS["landsat8_thermal"], SENSORS["landsat8"]
    assert surface.unit == "reflectance" and 20000 * surface.scale + surface.offset == pytest.approx(0.35)
    assert thermal.unit == "kelvin" and 44177 * thermal.scale + thermal.offset == pytest.approx(300, abs=0.003)
    assert (SENSORS["sentinel1_grd"].unit, SENSORS["sentinel1_rtc"].unit) == ("db", "linear_power")
    assert SENSORS["hls_s30"].nodata == -9999 and SENSORS["rgb"].nodata is None


@pytest.mark.parametrize("name", ["sentinel2_l1c", "sentinel2_l2a"])
def test_sentinel2_offset_starts_on_2022_01_25(name: str) -> None:
    dates = ["2017-06-17", "2022-01-24", "2022-01-24T23:59:59", "2022-01-25", "2022-01-25T10:00:00", "2024-07-01"]
    assert [SENSORS[name].stored_offset(date) for date in dates] == [0, 0, 0, 1000, 1000, 1000]
    assert SENSORS["landsat8"].stored_offset("2024-07-01") == 0


def test_enmap_equals_the_band_tags_of_a_real_product(realdata: Path) -> None:
    with rasterio.open(min((realdata / "enmap" / "images").glob("*.tif"))) as file:
        tags = [file.tags(i) for i in file.indexes]
        assert (file.scales[0], file.nodata) == (SENSORS["enmap"].scale, SENSORS["enmap"].nodata)
    bands = SENSORS["enmap"].bands
    assert [(b.centre_nm, b.fwhm_nm) for b in bands] == [(float(t["wavelength"]), float(t["fwhm"])) for t in tags]


def test_spectral_earths_202_bands_leave_out_water_vapour() -> None:
    kept = SENSORS["enmap"].select(SPECTRAL_EARTH)
    assert len(kept.bands) == 202
    left_out = [b.centre_nm for b in SENSORS["enmap"].bands if b not in kept.bands]
    assert all(1295 < nm < 1520 or 1735 < nm < 1970 for nm in left_out)


def test_unknown_names_list_the_known_ones_and_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown sensor 'sentinel2_l2'.*did you mean 'sentinel2_l2a'.*worldview3"):
        SENSORS["sentinel2_l2"]
    with pytest.raises(ValueError, match=r"'sentinel2_l2a' has no band 'B8a'.*did you mean 'B8A'.*B01, B02.*B12"):
        SENSORS["sentinel2_l2a"].channel_ids(["B02", "B8a"])
    with pytest.raises(ValueError, match="has no band 'B10'"):
        SENSORS["sentinel2_l2a"].select(["B10"])


def test_select_keeps_the_order_asked_for() -> None:
    rgb = SENSORS["sentinel2_l2a"].select(["B04", "B03", "B02"])
    assert rgb.band_names == ("B04", "B03", "B02") and rgb.channel_ids() == [664, 559, 493]


def test_full_spectra_are_whole_nanometres_of_centre_and_sigma() -> None:
    assert SENSORS["sentinel2_l2a"].spectra(["B04", "B12"]) == [(664, 13), (2203, 74)]  # 31 / 2.3548, 175 / 2.3548
    with pytest.raises(ValueError, match="optical bands only"):
        SENSORS["sentinel1_grd"].spectra(["VV"])


@pytest.mark.parametrize(
    ("band", "complaint"),
    [
        ({"name": "X", "gsd_m": 10}, "exactly one of centre_nm, polarisation, surface"),
        ({"name": "X", "gsd_m": 10, "centre_nm": 600, "fwhm_nm": 10, "polarisation": "VV"}, "exactly one of"),
        ({"name": "X", "gsd_m": 10, "centre_nm": 0.6, "fwhm_nm": 10}, "100..20000 nm"),
        ({"name": "X", "gsd_m": 10, "centre_nm": 600}, "positive fwhm_nm"),
        ({"name": "X", "gsd_m": 10, "polarisation": "VX"}, "polarisation 'VX'"),
        ({"name": "X", "gsd_m": 10, "polarisation": "VV", "orbit": "up"}, "orbit 'up'"),
        ({"name": "X", "gsd_m": 10, "surface": "aspect"}, "surface 'aspect'"),
    ],
)
def test_an_impossible_band_is_refused(band: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Band(**band)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"unit": "percent"}, "unit 'percent'"),
        ({"unit": None}, "unit None"),
        ({"bands": [{"name": "A", "centre_nm": 500, "fwhm_nm": 9, "gsd_m": 1}] * 2}, "names a band twice"),
        ({"wavelength": 3}, "wavelength"),
        ({"name": "other"}, "'other' differs from the file's"),
    ],
)
def test_a_bad_file_is_named_in_the_complaint(tmp_path: Path, change: dict, complaint: str) -> None:
    raw = yaml.safe_load((SENSOR_DIR / "quickbird2.yaml").read_text()) | change
    (tmp_path / "quickbird2.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=rf"quickbird2\.yaml.*{complaint}"):
        Registry(tmp_path)["quickbird2"]
