import pytest
import torch

from eval.decoders import build_decoder
from eval.decoders.unet import UNetEncoder


def unet() -> tuple[UNetEncoder, torch.nn.Module]:
    torch.manual_seed(0)
    encoder = UNetEncoder(3, widths=(4, 6, 8))
    return encoder, build_decoder("unet", encoder.channels, 2, pyramid=True)


def test_encoder_halves_and_says_its_widths():
    encoder, _ = unet()
    maps = encoder(torch.randn(1, 3, 24, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 24, 32), (6, 12, 16), (8, 6, 8), (8, 3, 4)]
    assert encoder.channels == [4, 6, 8, 8]


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (9, 30)])
def test_output_has_the_size_of_the_image(size):
    encoder, decoder = unet()
    assert decoder.logits(encoder(torch.randn(2, 3, *size))).shape == (2, 2, *size)


def test_odd_maps_stay_in_place():
    # a change far from the lower right border must not move: what is right for 16 pixels is right for the same 16 of 17
    encoder, decoder = (m.eval() for m in unet())
    image = torch.randn(1, 3, 49, 49)
    odd, even = (decoder(encoder(x), x.shape[2:]) for x in (image, image[..., :48, :48]))
    torch.testing.assert_close(odd[..., :8, :8], even[..., :8, :8])


def test_learns_a_threshold():
    encoder, decoder = unet()
    model = torch.nn.ModuleList([encoder, decoder])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    image = torch.randn(4, 3, 16, 16)
    target = (image[:, 0] > 0).long()
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(decoder(encoder(image), (16, 16)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (decoder(encoder(image), (16, 16)).argmax(1) == target).double().mean() > 0.95


def test_maps_of_one_size_are_no_pyramid():
    _, decoder = unet()
    with pytest.raises(ValueError, match="each half as large as the one before, not 8x8, 8x8, 8x8, 8x8"):
        decoder([torch.randn(1, dim, 8, 8) for dim in (4, 6, 8, 8)], (8, 8))


def test_a_single_map_is_no_pyramid():
    with pytest.raises(ValueError, match="at least 2 maps"):
        build_decoder("unet", [4], 2)
