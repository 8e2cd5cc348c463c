from dataclasses import replace

import numpy as np
import pytest

from dinov2.data.sample import ImageSpec, Sample

S2 = ImageSpec("sentinel2_l2a", 10, ("B02", "B03"), "uint16", "reflectance", 1e-4, -0.1, 0)
RADAR = ImageSpec("sentinel1_rtc", 10, ("VV",), "float32", "linear_power", nodata=float("nan"))


def sample(**changes):
    given = {"key": "a_1", "images": {S2.key: np.ones((2, 4, 4), np.uint16)}, "specs": {S2.key: S2}}
    return Sample(**{**given, **changes})


def test_keys_name_sensor_and_pixel():
    assert S2.key == "sentinel2_l2a-10m"
    assert replace(S2, gsd_m=10.0).key == "sentinel2_l2a-10m"
    assert ImageSpec("naip", 0.6, ("red",), "uint8", "dn").key == "naip-60cm"


def test_stored_numbers_become_model_units():
    assert S2.to_model(np.array([1000, 2000], np.uint16)).tolist() == pytest.approx([0.0, 0.1], abs=1e-7)
    assert (RADAR.model_unit, S2.model_unit) == ("db", "reflectance")
    assert RADAR.to_model(np.array([0.1, 1.0, -3.0], np.float32)).tolist() == pytest.approx([-10, 0, -50], abs=1e-4)


def test_nodata_by_value_and_by_nan():
    assert S2.invalid(np.array([0, 1])).tolist() == [True, False]
    assert RADAR.invalid(np.array([np.nan, 1.0])).tolist() == [True, False]
    assert not replace(S2, nodata=None).invalid(np.array([0, 1])).any()


def test_specs_survive_json():
    import json

    assert ImageSpec.from_dict(json.loads(json.dumps(S2.to_dict()))) == S2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"key": "A.b"}, "without a dot"),
        ({"images": {}, "specs": {}}, "no image"),
        ({"specs": {}}, "images"),
        ({"images": {S2.key: np.ones((3, 4, 4), np.uint16)}}, "does not hold the 2 bands B02, B03"),
        ({"images": {S2.key: np.ones((2, 4, 4), np.int16)}}, "dtype int16, declared uint16"),
        ({"specs": {S2.key: replace(S2, gsd_m=20)}}, "described as 'sentinel2_l2a-20m'"),
    ],
)
def test_what_breaks_the_contract_is_named(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(**changes)


def test_unknown_band_and_unit():
    with pytest.raises(ValueError, match="no band 'B99'"):
        replace(S2, bands=("B99",))
    with pytest.raises(ValueError, match="unit 'percent'"):
        replace(S2, unit="percent")


def test_non_finite_pixels_are_named_unless_nodata():
    radar = np.ones((1, 2, 2), np.float32)
    radar[0, 1, 1] = np.nan
    sample(images={RADAR.key: radar}, specs={RADAR.key: RADAR}).check_finite()
    radar[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"'a_1', image 'sentinel1_rtc-10m', band VV: 1 non-finite"):
        sample(images={RADAR.key: radar}, specs={RADAR.key: RADAR}).check_finite()
