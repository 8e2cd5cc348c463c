import pytest
import torch

from dinov2.models.timeseries import CONTEXTS, DAYS, FUSIONS, SeriesEncoder, cyclic_days
from dinov2.models.zoo.tessera import INPUTS, RELEASES, load_series

SMALL = {"inputs": INPUTS, "embed_dim": 6, "width": 16, "depth": 2, "num_heads": 2}


def encoder(**options) -> SeriesEncoder:
    torch.manual_seed(0)
    return SeriesEncoder(**{**SMALL, **options}).double().eval()


def series(batch: int = 3, dates: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    out = {}
    for name, bands in (("s2", 10), ("s1", 2)):
        out[name] = torch.randn(batch, dates, bands).double()
        out[f"{name}_days"] = torch.randint(1, 367, (batch, dates)).sort(1).values
        out[f"{name}_valid"] = torch.ones(batch, dates, dtype=torch.bool)
    return out


def padded(x: dict[str, torch.Tensor], to: int) -> dict[str, torch.Tensor]:
    """The same dates, then numbers that must not be looked at."""
    out = {}
    for name, value in x.items():
        more = torch.full_like(value[:, :1], False if value.dtype == torch.bool else 7)
        out[name] = torch.cat([value, more.expand(-1, to - value.shape[1], *value.shape[2:])], 1)
    return out


@pytest.mark.parametrize("pooling", CONTEXTS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("days", DAYS)
def test_padding_changes_nothing(pooling, fusion, days):
    model, x = encoder(pooling=pooling, fusion=fusion, days=days), series()
    torch.testing.assert_close(model(padded(x, 9)), model(x), rtol=1e-12, atol=1e-12)
    unmasked = {k: v for k, v in x.items() if "valid" not in k}
    torch.testing.assert_close(model(unmasked), model(x), rtol=1e-12, atol=1e-12)


def test_a_pixel_without_radar_gives_zeros_there_and_zero_gradient():
    model, x = encoder(), series()
    x["s1_valid"][:] = False
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all((p.grad == 0).all() for p in model.s1_backbone.parameters())
    other = {**x, "s1": x["s1"] + 5}
    assert torch.equal(model(other), model(x)) and model(x).isfinite().all()


def test_the_cyclic_day_joins_the_ends_of_a_year_and_tells_its_days_apart():
    new_year, leap_day, eve, july = cyclic_days(torch.tensor([1, 366, 365, 190]), 64)
    assert (new_year - leap_day).norm() < 3 * (leap_day - eve).norm() < (new_year - july).norm() * 3
    days = cyclic_days(torch.arange(1, 367), 64)
    distance = torch.cdist(days, days) + 1e9 * torch.eye(366)
    assert distance.min() > 0.05


def test_raw_days_are_the_published_sines():
    found = DAYS["raw"](torch.tensor([200]), 6)[0]
    want = [f(torch.tensor(200.0) * 10000 ** (-2 * i / 6)) for i in range(3) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(found, torch.stack(want))


def test_the_configuration_rebuilds_the_encoder():
    model = encoder(pooling="attention", fusion="sum")
    options = {k: v for k, v in model.config.items() if k != "name"}
    again = SeriesEncoder(**options).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(series()), model(series()))


@pytest.mark.parametrize("option, value", [("pooling", "max"), ("fusion", "product"), ("days", "lunar")])
def test_unknown_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} '{value}' is not one of"):
        SeriesEncoder(**SMALL, **{option: value})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width 16 must be a multiple"):
        SeriesEncoder(**{**SMALL, "num_heads": 3})


# ---- released weights


def test_release_loads_strictly_and_names_keys():
    sizes = {"embed_dim": 4, "depth": 1, "num_heads": 2, "hidden": 8}
    state = RELEASES["btfm_v1"].build(**sizes).state_dict()
    load_series("btfm_v1", {**state, "projector.net.0.bias": torch.zeros(3)}, **sizes)
    lost = {k: v for k, v in state.items() if k != "dim_reducer.0.bias"}
    with pytest.raises(ValueError, match="missing keys: dim_reducer.0.bias"):
        load_series("btfm_v1", lost, **sizes)
    with pytest.raises(ValueError, match="unknown released series encoder 'btfm'"):
        load_series("btfm", state)


def test_published_numbers_in_decibels_are_those_of_land():
    """5484 stored is -22.6 in the doubled convention: -11.3 dB of VV."""
    table = RELEASES["btfm_v1"].normalisation
    assert table["sentinel1_rtc"]["VV"][0] == pytest.approx((5484.0407 / 200 - 50) / 2)
    assert table["sentinel2_l2a"]["B8A"] == pytest.approx((0.31065083, 0.16774543))
    mpc = RELEASES["tessera_v1_1_mpc"].normalisation["sentinel1_rtc"]
    assert mpc["VH_ascending"] != mpc["VH_descending"] and mpc["VH"] == mpc["VH_ascending"]
