import numpy as np
import pytest
import torch

from dinov2.data.augment import Augment, draw_jitter, speckle_db

ALWAYS = Augment(jitter_probability=1.0)


def test_light_is_scaled_radar_is_shifted_and_the_rest_left_alone():
    units = ["reflectance", "db", "metre", "kelvin", "degree", "radiance", "dn"]
    seen = np.stack([draw_jitter(ALWAYS, units, np.random.default_rng(seed)) for seed in range(500)])  # [500, 7, 3]
    gain, contrast, shift = seen.transpose(2, 0, 1)
    light = [0, 5, 6]
    assert (gain[:, [1, 2, 3, 4]] == 1).all() and (contrast[:, [1, 2, 3, 4]] == 1).all()
    assert (shift[:, [0, 2, 3, 4, 5, 6]] == 0).all()
    assert gain[:, light].min() > 0.8 * 0.95 and gain[:, light].max() < 1.2 * 1.05
    assert gain[:, light].min() < 0.8 and gain[:, light].max() > 1.2
    assert np.abs(gain[:, 0] / gain[:, 5] - 1).max() < 0.11  # one gain per crop, bands differ by band_gain
    assert (contrast[:, 0] == contrast[:, 5]).all()
    assert 0.8 <= contrast[:, 0].min() < 0.82 and 1.18 < contrast[:, 0].max() <= 1.2
    assert -1 <= shift[:, 1].min() < -0.9 and 0.9 < shift[:, 1].max() <= 1


def test_probability():
    rng = np.random.default_rng(0)
    changed = np.mean([draw_jitter(Augment(jitter_probability=0.3), ["db"], rng)[0, 2] != 0 for _ in range(2000)])
    assert abs(changed - 0.3) < 0.05


@pytest.mark.parametrize("looks", [1.0, 4.0, 4.4, 8.0])
def test_speckle_has_mean_one_and_variance_one_over_looks(looks):
    keys = torch.arange(64) * 7919
    power = 10 ** (speckle_db(keys, 64, 64, looks).double() / 10)
    n = power.numel()
    assert abs(power.mean() - 1) < 5 / (looks * n) ** 0.5 + 2e-3 / looks**2
    assert abs(power.var() * looks - 1) < 0.03
    exact = torch.distributions.Gamma(looks, looks).sample((100_000,)).quantile(torch.tensor([0.1, 0.5, 0.9]))
    measured = np.quantile(power.numpy(), [0.1, 0.5, 0.9])
    assert np.allclose(measured, exact.numpy(), rtol=0.03, atol=0.02)


def test_speckle_has_no_structure_in_space_or_between_keys():
    field = speckle_db(torch.tensor([5, 6, 1 << 31]), 256, 256, 4.0)
    flat = torch.stack([*field.flatten(1), field[0].roll(1, 0).flatten(), field[0].roll(1, 1).flatten()])
    correlation = torch.corrcoef(flat) - torch.eye(5)
    assert correlation.abs().max() < 5 / 256
    assert field.isfinite().all()


def test_speckle_depends_on_key_row_and_column_only():
    alone = speckle_db(torch.tensor([42]), 9, 13, 8.0)[0]
    together = speckle_db(torch.tensor([1, 42, 3]), 40, 50, 8.0)[1]
    assert torch.equal(alone, together[:9, :13])
