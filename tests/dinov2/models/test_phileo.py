import pytest
import torch

from dinov2.models.phileo import PhilEOCNN, PhilEODecoder, ScaledSum, SqueezeExcite
from dinov2.models.phileo_vit import PhilEOViT
from dinov2.models.zoo import ZOO, load_encoder
from dinov2.models.zoo.phileo_unet import CoreUNet


def cnn(**sizes) -> PhilEOCNN:
    torch.manual_seed(0)
    return PhilEOCNN(
        **{"in_chans": 4, "img_size": 16, "embed_dim": 24, "dims": (8, 12, 16), "depths": (2, 1, 2), **sizes}
    )


def test_gate_and_sum_by_hand() -> None:
    gate, x = SqueezeExcite(2), torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])
    gate.excitation[0].weight.data, gate.excitation[2].weight.data = torch.ones(1, 2), torch.tensor([[0.0], [1.0]])
    hidden = torch.nn.functional.gelu(torch.tensor(4.0))  # both means are 2
    torch.testing.assert_close(gate(x), x * torch.tensor([0.5, hidden.sigmoid()])[:, None, None])
    both = ScaledSum(1)
    values = {"x_skipscale": 2.0, "y_skipscale": 3.0, "y_skipbias": 0.5, "x_skipbias": 0.25}
    for name, value in values.items():
        getattr(both, name).data.fill_(value)
    assert both(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 10.0)).item() == 2 + 0.25 + 30 + 0.5


def test_maps_halve_and_the_decoder_returns_to_the_image() -> None:
    model, x = cnn(), torch.randn(2, 4, 16, 16)
    maps = model.maps(x)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 16), (2, 12, 8, 8), (2, 16, 4, 4)]
    assert torch.equal(model.maps(x, [2])[0], maps[2]) and torch.equal(model(x), model.latent(maps[-1]))
    assert PhilEODecoder(model)(model(x), maps).shape == (2, 8, 16, 16)
    assert model.patch_size == 4 and len(model.blocks) == 3


@pytest.mark.parametrize("sizes", [{}, {"depths": (1, 1, 1)}])
def test_every_trainable_parameter_gets_a_gradient(sizes) -> None:
    model = cnn(**sizes)
    decoder, x = PhilEODecoder(model), torch.randn(2, 4, 16, 16)
    decoder(model(x), model.maps(x)).square().sum().backward()
    for part in (model, decoder):
        assert [n for n, p in part.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    "build", [cnn, lambda: PhilEOViT(in_chans=4, img_size=16, embed_dim=16, depth=1, num_heads=2, latent_dim=8)]
)
def test_images_of_another_size_are_refused(build) -> None:
    with pytest.raises(ValueError, match="an image of 16 x 32 pixels: this network takes 16 x 16 only"):
        build()(torch.randn(1, 4, 16, 32))


def test_sizes_that_do_not_fit() -> None:
    for wrong in ({"img_size": 18}, {"depths": (1, 1)}):
        with pytest.raises(ValueError, match="phileo_cnn: 3 widths and . depths for 1. pixels"):
            cnn(**wrong)


@torch.no_grad()
def test_unet_takes_any_multiple_and_its_finest_map_is_number_0() -> None:
    torch.manual_seed(0)
    model = CoreUNet(3, dims=(8, 12), depths=(1, 1)).eval()
    maps = model.maps(x := torch.randn(1, 3, 16, 24), [0, 1])
    assert [tuple(m.shape) for m in maps] == [(1, 8, 16, 24), (1, 8, 8, 12)] and model(x).shape == (1, 12)
    with pytest.raises(ValueError, match="the patch size 4 must divide both sides"):
        model(torch.randn(1, 3, 16, 18))


@pytest.mark.parametrize("name", ["phileo_cnn", "phileo_vit", "phileo_geoaware"])
def test_what_it_expects_is_what_it_gives(name: str) -> None:
    expects = ZOO[name].expects
    with torch.device("meta"):
        model = load_encoder(name, "random").eval()
        maps = model.maps(torch.randn(1, len(expects.mean), expects.size, expects.size), expects.layers)
    assert len(maps) == len(expects.layers) and max(expects.layers) == len(model.blocks) - 1
    assert expects.patch == model.patch_size and expects.dim in {m.shape[1] for m in maps}


def test_published_sizes() -> None:
    """The count that the original's constructor gives: encoder, decoder, last block and heads of 20 targets."""
    with torch.device("meta"):
        model = PhilEOCNN()
        parts = [model, PhilEODecoder(model)]
    last = 32 * 10 * 2 + 10 * 10 * 9 + 10 * 10 + 10 + 4 * 10 * 128**2 + 2 * 10 + 4 * 10
    assert sum(p.numel() for part in parts for p in part.parameters()) + last + 20 * 1025 == 43_667_714
