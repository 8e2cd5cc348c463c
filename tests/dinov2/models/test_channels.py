import pytest
import torch

from dinov2.models.channels import ChannelEmbedding, check_channels
from dinov2.sensors import ORBITS, POLARISATIONS, Band


def test_optical_code_by_hand() -> None:
    """[sin | cos] of wavelength x 10000^(-i / (dim / 2)), dim 4: frequencies 1 and 1/100."""
    code = ChannelEmbedding(4).double()(torch.tensor([665]))
    expected = torch.tensor([[665.0, 6.65]], dtype=torch.float64)
    torch.testing.assert_close(code, torch.cat([expected.sin(), expected.cos()], 1))


def test_full_spectra_by_hand() -> None:
    """exp(-(omega sigma)^2 / 2) times sin (even) or cos (odd) of omega mu, omega = 10000^(-2 d / dim), dim 2."""
    code = ChannelEmbedding(2, full_spectra=True).double()(torch.tensor([[3, 2]]))
    mu, sigma = 3.0, 2.0
    omega = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    wave = torch.stack([(omega[0] * mu).sin(), (omega[1] * mu).cos()])
    torch.testing.assert_close(code[0], wave * torch.exp(-0.5 * (omega * sigma) ** 2))


def test_wide_bands_blur_the_fast_waves_only() -> None:
    embedding = ChannelEmbedding(64, full_spectra=True)
    narrow, wide = embedding(torch.tensor([[842, 1], [842, 400]])).abs()
    assert wide[0] < 1e-6 < narrow[0]
    torch.testing.assert_close(wide[-1], narrow[-1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("polarisation", POLARISATIONS)
@pytest.mark.parametrize("orbit", ORBITS)
def test_every_sar_band_has_its_own_sum_of_tables(polarisation: str, orbit: str | None) -> None:
    embedding = ChannelEmbedding(12)
    for p in embedding.parameters():
        torch.nn.init.normal_(p)
    band = Band("x", 10, polarisation=polarisation, orbit=orbit)
    code = embedding(torch.tensor([band.channel_id]))[0]
    transmit, receive = ("VH".index(letter) for letter in polarisation)
    orbits = embedding.embed_orbit
    last = orbits.mean(0) if orbit is None else orbits[("ascending", "descending").index(orbit)]
    torch.testing.assert_close(
        code, torch.cat([embedding.embed_transmit[transmit], embedding.embed_receive[receive], last])
    )


def test_terrain_table_exists_only_where_asked_for() -> None:
    assert "embed_terrain" not in ChannelEmbedding(12).state_dict()
    embedding = ChannelEmbedding(12, terrain=True)
    torch.nn.init.normal_(embedding.embed_terrain)
    assert torch.equal(embedding(torch.tensor([-13, -14])), embedding.embed_terrain)
    with pytest.raises(ValueError, match="unknown channel id -13"):
        check_channels(torch.tensor([[-13]]), None, 1)
    check_channels(torch.tensor([[-13, -14]]), None, 2, terrain=True)


def test_ids_must_survive_low_precision() -> None:
    """Half precision would merge 2190 and 2191 nm."""
    pairs = torch.tensor([[[2190.0, 20.0]]])
    check_channels(pairs, None, 1)
    with pytest.raises(ValueError, match="integers"):
        check_channels(pairs.half(), None, 1)


def test_odd_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        ChannelEmbedding(13)
