import numpy as np
import pytest
import torch

from dinov2.data.batch import MaskSpec, ViewSpec
from dinov2.data.collate import collate
from dinov2.data.render import render, render_sample
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.stats import Normalisation
from dinov2.data.views import Augment, draw, full_view
from dinov2.distributed import device

STILL = Augment(flip=False, jitter_probability=0.0, speckle_looks=0.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [24, 98])
def test_batch_equals_samples_one_by_one(samples, norm, seed, size):
    """The device path against slicing and F.interpolate: mixed sensors, sizes, dtypes, simulation, speckle, nodata."""
    specs = [
        ViewSpec("global", 2, size, (0.2, 1.0), (4, 13), mask=MaskSpec("random", 2)),
        ViewSpec("local", 3, 16, (0.02, 0.3), (1, 4)),
    ]
    augment = Augment(simulate=0.5, speckle_looks=4)
    raws = [draw(s, specs, augment, norm, (seed, 1, i)) for i, s in enumerate(samples * 2)]
    batch = render(collate(raws), device())  # the GPU where there is one
    for i, raw in enumerate(raws):
        for name, reference in render_sample(raw).items():
            view = {k: v.cpu().unflatten(0, (-1, len(raws)))[:, i] for k, v in batch.views[name].items()}
            assert view.keys() == reference.keys()
            assert torch.allclose(view.pop("imgs"), reference["imgs"], atol=1e-4)
            assert all(torch.equal(view[k], reference[k]) for k in view)


def test_a_view_does_not_depend_on_who_shares_its_batch(samples, norm):
    specs = [ViewSpec("global", 2, 48, (0.2, 1.0), (4, 13))]
    raws = [draw(s, specs, Augment(), norm, (0, 0, i)) for i, s in enumerate(samples)]
    together = render(collate(raws), "cpu").views["global"]
    halves = [render(collate(part), "cpu").views["global"] for part in (raws[:2], raws[2:])]
    for name in together:
        split = torch.cat([h[name].unflatten(0, (2, -1)) for h in halves], 1).flatten(0, 1)
        assert torch.allclose(together[name].float(), split.float(), atol=1e-5)


def test_padding_channels_are_zero(samples, norm):
    raws = [
        draw(s, [ViewSpec("v", 1, 16, (0.5, 1.0), (1, 13))], Augment(), norm, (3, 0, i)) for i, s in enumerate(samples)
    ]
    view = render(collate(raws), "cpu").views["v"]
    assert view["spec_masks"].any() and not view["spec_masks"].all(1).any()
    assert (view["imgs"][view["spec_masks"]] == 0).all()
    assert (view["imgs"][~view["spec_masks"]].abs().amax((1, 2)) > 0).all()


def test_stored_to_standardised_is_the_sample_contract(make_mixed, make_norm):
    """Without augmentation and resizing a view is (to_model - mean) / std, with 0 at nodata, for every unit."""
    sample = make_mixed("a")
    norm = make_norm(sample)
    for name, spec in sample.specs.items():
        out = render(collate([full_view(sample, images=[name], norm=norm)]), "cpu").views["image"]["imgs"][0]
        mean, std = norm.lookup(spec, spec.bands)
        expected = (spec.to_model(sample.images[name]) - mean[:, None, None]) / std[:, None, None]
        expected[spec.invalid(sample.images[name])] = 0
        assert np.allclose(out.numpy(), expected, atol=1e-4)


def one_band(unit, stored, **kind):
    sensor, band = {"db": ("sentinel1_grd", "VV"), "metre": ("dem", "elevation")}.get(unit, ("sentinel2_l2a", "B02"))
    spec = ImageSpec(sensor, 10, (band,), "float32", unit, **kind)
    norm = Normalisation({sensor: {band: (0.0, 1.0)}}, {sensor: unit})
    return Sample("a", {spec.key: stored.astype(np.float32)[None]}, {spec.key: spec}), norm


def whole(sample, norm, augment, position=0):
    """A view of the whole footprint without resizing, ``[H, W]``."""
    view = ViewSpec("v", 1, sample.images[next(iter(sample.images))].shape[-1], (1.0, 1.0), (1, 1))
    return render(collate([draw(sample, [view], augment, norm, (0, 0, position))]), "cpu").views["v"]["imgs"][0, 0]


@pytest.mark.parametrize("unit", ["reflectance", "db", "metre"])
def test_jitter_acts_on_physical_values(unit):
    """Light gets a gain, radar a shift in dB, terrain nothing - whatever scale and offset it is stored with."""
    physical = np.random.default_rng(0).uniform(0.1, 0.9, (16, 16))
    augment = Augment(flip=False, jitter_probability=1.0, contrast=0.0, speckle_looks=0.0)
    plain = whole(*one_band(unit, physical), STILL)
    direct = whole(*one_band(unit, physical), augment, 5)
    scaled = whole(*one_band(unit, (physical + 0.14) / 0.02, scale=0.02, offset=-0.14), augment, 5)
    assert torch.allclose(direct, scaled, atol=1e-5)
    if unit == "reflectance":
        assert (direct / plain).std() < 1e-5 and abs((direct / plain).mean() - 1) > 0.01
    elif unit == "db":
        assert (direct - plain).std() < 1e-5 and (direct - plain).mean().abs() > 0.01
    else:
        assert torch.equal(direct, plain)


def test_gain_and_contrast_about_the_mean_of_the_valid_pixels():
    sample, norm = one_band("reflectance", np.random.default_rng(0).uniform(0.1, 0.9, (16, 16)), nodata=-1)
    sample.images["sentinel2_l2a-10m"][0, 0] = -1  # a row that counts for nothing
    augment = Augment(flip=False, jitter_probability=1.0, brightness=0.5, contrast=0.5)
    plain, out = whole(sample, norm, STILL)[1:], whole(sample, norm, augment, 2)
    view = ViewSpec("v", 1, 16, (1.0, 1.0), (1, 1))
    gain, contrast = (
        draw(sample, [view], augment, norm, (0, 0, 2)).views["v"].crops[0].pieces[0].params[0, 5:7].tolist()
    )
    assert abs(gain - 1) > 0.05 and abs(contrast - 1) > 0.05
    assert torch.allclose(out[1:], gain * (plain.mean() + contrast * (plain - plain.mean())), atol=1e-5)
    assert (out[0] == 0).all()


def test_linear_power_becomes_db_with_a_floor():
    spec = ImageSpec("sentinel1_rtc", 10, ("VV",), "float32", "linear_power")
    sample = Sample("a", {spec.key: np.array([[[1.0, 0.1], [-2.0, 0.01]]], np.float32)}, {spec.key: spec})
    norm = Normalisation({"sentinel1_rtc": {"VV": (0.0, 1.0)}}, {"sentinel1_rtc": "db"})
    assert torch.allclose(whole(sample, norm, STILL), torch.tensor([[0.0, -10.0], [-50.0, -20.0]]), atol=1e-4)


def test_speckle_multiplies_power_and_leaves_light_alone():
    speckled = Augment(flip=False, jitter_probability=0.0, speckle_looks=4.0)
    power = 10 ** (whole(*one_band("db", np.full((256, 256), -12.0)), speckled) / 10) / 10**-1.2
    assert abs(power.mean() - 1) < 0.01 and abs(power.var() - 0.25) < 0.01
    light = np.full((8, 8), 0.3)
    assert torch.equal(whole(*one_band("reflectance", light), speckled), whole(*one_band("reflectance", light), STILL))
