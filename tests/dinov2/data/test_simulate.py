import numpy as np

from dinov2.data.sample import ImageSpec
from dinov2.data.simulate import MIN_BANDS, SIGMA, WINDOWS, draw_responses, draw_targets, is_hyperspectral, responses
from dinov2.sensors import FWHM_PER_SIGMA, SENSORS

ENMAP = SENSORS["enmap"]
CENTRES = np.array([b.centre_nm for b in ENMAP.bands])
SIGMAS = np.array([b.fwhm_nm for b in ENMAP.bands]) / FWHM_PER_SIGMA


def test_targets_lie_within_the_windows_by_three_sigma():
    targets = draw_targets(CENTRES, 3000, np.random.default_rng(0))
    mu, sigma = targets.T
    assert sigma.min() >= SIGMA[0] and sigma.max() <= SIGMA[1]
    low, high = np.maximum([w[0] for w in WINDOWS], CENTRES.min()), np.minimum([w[1] for w in WINDOWS], CENTRES.max())
    fits = (mu[:, None] - 3 * sigma[:, None] >= low - 1e-9) & (mu[:, None] + 3 * sigma[:, None] <= high + 1e-9)
    assert fits.any(1).all()
    assert fits.any(0).all()  # every window is used


def test_targets_of_a_sensor_without_short_wave_infrared_stay_in_its_range():
    mu, sigma = draw_targets(np.arange(500.0, 900.0, 5.0), 500, np.random.default_rng(0)).T
    assert (mu - 3 * sigma >= 500 - 1e-9).all() and (mu + 3 * sigma <= 895 + 1e-9).all()


def test_a_flat_spectrum_stays_flat():
    weights = responses(draw_targets(CENTRES, 200, np.random.default_rng(0)), CENTRES, SIGMAS)
    assert np.allclose(weights @ np.full(len(CENTRES), 0.37), 0.37, atol=1e-6)
    assert (weights >= 0).all()


def test_weights_are_the_overlap_integrals_of_the_responses():
    """Against the integral on a grid, for evenly spaced bands, each of which stands for as much of the spectrum."""
    centres, sigmas = np.arange(400.0, 2500.0, 7.0), np.linspace(2.0, 5.0, 300)
    targets = np.array([[560.0, 15.0], [865.0, 8.0], [2200.0, 40.0]])
    nm = np.arange(300.0, 2700.0, 0.25)

    def gaussian(mu, sigma):
        return np.exp(-((nm - mu) ** 2) / (2 * sigma**2))

    source = np.stack([gaussian(*b) / b[1] for b in zip(centres, sigmas, strict=True)])
    overlap = np.stack([source @ gaussian(*t) for t in targets])
    expected = overlap / overlap.sum(1, keepdims=True)
    assert np.allclose(responses(targets, centres, sigmas), expected, atol=2e-4)


def test_a_linear_spectrum_has_its_value_at_the_target():
    """Also where EnMAP's two cameras overlap and the bands lie twice as dense."""
    targets = draw_targets(CENTRES, 2000, np.random.default_rng(1))
    assert ((targets[:, 0] > 902) & (targets[:, 0] < 993)).any()
    assert np.abs(responses(targets, CENTRES, SIGMAS) @ CENTRES - targets[:, 0]).max() < 0.5  # nm


def test_a_gap_is_not_filled_by_the_bands_beside_it():
    centres = np.delete(np.arange(400.0, 2500.0, 10.0), np.arange(40, 60))  # nothing between 790 and 1000 nm
    weights = responses(np.array([[760.0, 10.0]]), centres, np.full(len(centres), 4.0))[0]
    assert abs(weights @ centres - 760) < 0.5 and weights[centres > 900].sum() == 0


def test_ids_and_which_images_are_hyperspectral():
    enmap = ImageSpec("enmap", 30, ENMAP.band_names, "int16", "reflectance")
    ids, weights = draw_responses(enmap, 7, np.random.default_rng(0))
    assert ids.shape == (7,) and ids.dtype == np.int64 and weights.shape == (7, 224) and weights.dtype == np.float32
    assert is_hyperspectral(enmap)
    few = ImageSpec("enmap", 30, ENMAP.band_names[: MIN_BANDS - 1], "int16", "reflectance")
    assert not is_hyperspectral(few)
    assert not is_hyperspectral(ImageSpec("sentinel1_rtc", 10, ("VV", "VH"), "float32", "linear_power"))
