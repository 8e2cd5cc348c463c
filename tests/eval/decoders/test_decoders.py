import pytest
import torch

from dinov2.models.dense import Pyramid, resize
from eval.decoders import DECODERS, NECKS, build_decoder, build_neck

SMALL = {
    "mlp": {"hidden": (12,)},
    "fcn": {"channels": 8, "convs": 2},
    "conv_transpose": {"channels": 8, "convs": 2},
    "segformer": {"channels": 8},
    "upernet": {"channels": 8},
    "muster": {"channels": 8, "window": 3, "heads": (4, 2, 2, 1)},
}
MAPS = ["linear", "mlp", "fcn", "conv_transpose", "segformer", "upernet", "muster", "unet"]
WIDTHS = [16] * 4


def features(batch: int = 2, height: int = 7, width: int = 5, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, height, width, generator=draw) for dim in WIDTHS]


def decoder(name: str, outputs: int = 3, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_decoder(name, WIDTHS, outputs, **SMALL.get(name, {}), **options)


def test_every_decoder_is_tested():
    assert set(DECODERS) == {*MAPS, "linear_classifier"}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("size", [(61, 47), (8, 9)])
def test_any_maps_to_any_size(name, size):
    x = features()
    before = [f.clone() for f in x]
    assert decoder(name)(x, size).shape == (2, 3, *size)
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True)), "changed its input"


@pytest.mark.parametrize("name", DECODERS)
def test_every_parameter_gets_a_gradient(name):
    model = decoder(name)
    model(features(), () if name == "linear_classifier" else (20, 20)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", DECODERS)
def test_an_image_does_not_depend_on_its_batch(name):
    model, x = decoder(name).eval(), features(batch=3)
    size = () if name == "linear_classifier" else (20, 17)
    alone = torch.cat([model([f[i : i + 1] for f in x], size) for i in range(3)])
    torch.testing.assert_close(model(x, size), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_logits_are_raw(name):
    # neither softmax nor ReLU at the end: the last bias moves the logits by itself, in both directions
    model, x = decoder(name).eval(), features()
    y = model(x, (20, 17))
    last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    for move in (5.0, -5.0):
        last.bias.data += move
        torch.testing.assert_close(model(x, (20, 17)), y + move, rtol=1e-4, atol=1e-5)
        last.bias.data -= move


@pytest.mark.parametrize("name", ["segformer", "upernet"])
def test_every_level_matters(name):
    model, x = decoder(name).eval(), features()
    y = model(x, (20, 17))
    for i in range(len(x)):
        assert not torch.allclose(model([f + (i == j) for j, f in enumerate(x)], (20, 17)), y), f"level {i} is unused"


def test_one_position_reaches_its_place_only():
    # linear, at the resolution of the maps: position (y, x) decides pixel (y, x)
    model, x = decoder("linear"), features()
    y = model(x, (7, 5))
    x[-1][:, :, 2, 3] += 1
    changed = (model(x, (7, 5)) != y).any(1).any(0).nonzero()
    assert changed.tolist() == [[2, 3]]


def test_classifier_is_a_linear_map_of_the_means():
    model, x = decoder("linear_classifier"), features()
    means = torch.cat([f.flatten(2).mean(2) for f in x], 1)
    torch.testing.assert_close(model(x, ()), means @ model.linear.weight.T + model.linear.bias)
    # resizing the levels to one size first, as published, gives the same means where sizes are multiples
    twice = [x[0].repeat_interleave(2, 2).repeat_interleave(2, 3), *x[1:]]
    doubled = [twice[0], *(resize(f, twice[0].shape[2:]) for f in twice[1:])]
    torch.testing.assert_close(model(doubled, ()), model(x, ()))


def test_pyramid_scales():
    maps = Pyramid([6, 6, 6, 6], widths=[2, 3, 6, 12])([torch.randn(1, 6, 5, 7)] * 4)
    assert [tuple(m.shape[1:]) for m in maps] == [(2, 20, 28), (3, 10, 14), (6, 5, 7), (12, 2, 3)]
    eight = Pyramid([6] * 8)([torch.randn(1, 6, 4, 4)] * 8)
    assert [m.shape[2] for m in eight] == [16, 16, 8, 8, 4, 4, 2, 2]
    assert [m.shape[2] for m in Pyramid([6] * 2)([torch.randn(1, 6, 4, 4)] * 2)] == [16, 4]


@pytest.mark.parametrize("name", ["segformer", "upernet", "unet", "muster"])
def test_a_pyramid_is_taken_as_it_is(name):
    torch.manual_seed(0)
    widths = [4, 8, 16, 32]
    model = build_decoder(name, widths, 3, pyramid=True, **SMALL.get(name, {}))
    x = [torch.randn(2, dim, 24 // 2**i, 16 // 2**i) for i, dim in enumerate(widths)]
    assert model.logits(x).shape == (2, 3, 24, 16)


@pytest.mark.parametrize("name", ["fcn", "segformer", "upernet", "muster"])
def test_sub_pixel_head_enlarges(name):
    x = features()
    assert decoder(name, shuffle=3).logits(x).shape[2] == 3 * decoder(name).logits(x).shape[2]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("upernett", {}, "unknown decoder 'upernett'; known: linear, mlp, .*; did you mean 'upernet'\\?"),
        ("upernet", {"chanels": 8}, "decoder 'upernet' has no option 'chanels'; did you mean 'channels'"),
        ("muster", {"heads": (5, 2, 2, 1)}, "32 channels cannot be split over 5 heads"),
    ],
)
def test_bad_requests_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_decoder(name, WIDTHS, 3, **options)


def test_unknown_neck_is_named():
    assert set(NECKS) == {"ltae", "linear", "stack", "difference", "concat"}
    with pytest.raises(ValueError, match="unknown neck 'lstm'"):
        build_neck("lstm", WIDTHS)
    with pytest.raises(ValueError, match="neck 'linear': .*'frames'"):
        build_neck("linear", WIDTHS)
