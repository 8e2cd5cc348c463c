import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import save_export
from dinov2.models.zoo import ZOO
from dinov2.sensors import SENSORS
from eval.bands import Channel, stand_ins
from eval.datasets import EvalDataset, Split
from eval.encoders import load_model
from eval.features import Trial, extract
from eval.joining import join, received_table
from eval.reading import VIEW, batches

CPU = torch.device("cpu")
S2 = SENSORS["sentinel2_l2a"].band_names
L1C = SENSORS["sentinel2_l1c"].band_names
VIT = "embed_dim=16&depth=2&num_heads=2&img_size=16&patch_size=8"


def optical(sensor="sentinel2_l2a", bands=S2, gsd=10, unit="reflectance", scale=1e-4):
    return ImageSpec(sensor, gsd, tuple(bands), "uint16", unit, scale, 0.0, None)


RADAR = ImageSpec("sentinel1_rtc", 10, ("VH", "VV"), "float32", "linear_power")


def dataset(*specs, count=6, side=16, **options):
    """A data set of noise around 0.1 to 0.3 whose bands rise in their order."""

    def read(split, i):
        rng = np.random.default_rng([i, len(split)])
        images = {}
        for spec in specs:
            levels = np.arange(1, len(spec.bands) + 1)[:, None, None]
            noise = rng.uniform(0.5, 1.5, (len(spec.bands), side, side))
            stored = 1000 * noise + 100 * levels if spec.dtype == "uint16" else 0.01 * levels * noise
            images[spec.key] = stored.astype(spec.dtype)
        return Sample(f"{split}{i}", images, {s.key: s for s in specs}, labels={"scene": i % 2})

    splits = {
        name: Split([f"{name}{i}" for i in range(count)], [i % 2 for i in range(count)], lambda i, n=name: read(n, i))
        for name in ("train", "val", "test")
    }
    chosen = dict(bands=None, size=None, data_hash="x") | options
    return EvalDataset("noise", ("a", "b"), splits, tuple(specs), **chosen)


def physical(data, split="train"):
    """[N, C, H, W] in the model unit, bands of all images in a row."""
    samples = [data.splits[split][i] for i in range(len(data.splits[split]))]
    return np.stack([np.concatenate([s.specs[k].to_model(s.images[k]) for k in data.images]) for s in samples])


def seen(model, data, missing="error"):
    """What a model receives of the training split: [N, C, H, W]."""
    (batch,) = batches(data.splits["train"], join(model, data, missing), CPU, batch_size=64, workers=0)
    return batch.views[VIEW]


def test_bands_come_in_the_order_of_the_weights_with_the_published_statistics():
    data = dataset(optical())
    model = load_model(f"satmae@random?{VIT}&channel_embed=4")
    joined, view = join(model, data), seen(model, data)
    expects = ZOO["satmae"].expects
    assert [c.name for c in joined.channels] == list(expects.bands[0].names)
    assert joined.words == "two_sigma (published)"
    order = [S2.index(name) for name in expects.bands[0].names]
    x = physical(data)[:, order]
    mean, std = (np.array(v)[:, None, None] for v in (expects.mean, expects.std))
    np.testing.assert_allclose(view["imgs"], ((x - mean + 2 * std) / (4 * std)).clip(0, 1), atol=1e-5)
    assert view["chn_ids"][0].tolist() == SENSORS["sentinel2_l2a"].channel_ids(expects.bands[0].names)


def test_an_encoder_of_fixed_bands_that_was_trained_here_receives_them_in_its_order(tmp_path):
    encoder = build_encoder("vit_tiny", 4, 16, embed="conv", in_chans=3, depth=1, embed_dim=16, num_heads=2)
    table = {"B08": [0.3, 0.1], "B02": [0.1, 0.05], "B04": [0.2, 0.1]}
    norm = {"sentinel2_l2a": {"unit": "reflectance", "bands": table}}
    save_export(tmp_path / "model_final.safetensors", encoder, normalisation=norm, info={})
    data, wanted = dataset(optical()), [[0.3, 0.1], [0.1, 0.05], [0.2, 0.1]]
    for model in (load_model(str(tmp_path)), load_model(f"random:{tmp_path}")):
        mean, std = np.array(wanted).T[..., None, None]
        x = physical(data)[:, [S2.index(name) for name in table]]
        np.testing.assert_allclose(seen(model, data)["imgs"], (x - mean) / std, atol=1e-5)
    with pytest.raises(ValueError, match="noise lacks sentinel2_l2a/B08 for model"):
        join(model, dataset(optical(bands=("B02", "B03", "B04"))))


def test_radar_power_becomes_decibels_in_the_order_of_the_weights():
    data, model = dataset(optical(), RADAR), load_model(f"ssl4eo_mae_sar@random?{VIT}")
    expects, x = ZOO["ssl4eo_mae_sar"].expects, physical(data)[:, [13, 12]]
    mean, std = (np.array(v)[:, None, None] for v in (expects.mean, expects.std))
    np.testing.assert_allclose(seen(model, data)["imgs"], ((x - mean + 2 * std) / (4 * std)).clip(0, 1), atol=1e-4)


def test_joint_models_take_both_sensors():
    data, model = dataset(RADAR, optical()), load_model("croma_base_joint@random?embed_dim=16&depth=4")
    joined = join(model, dataclasses.replace(data, size=16))
    assert [str(c) for c in joined.channels[-3:]] == ["sentinel2_l2a/B12", "sentinel1_rtc/VV", "sentinel1_rtc/VH"]
    assert (joined.size, join(model, data).size) == (16, 120)
    assert extract(Trial.of(model, dataclasses.replace(data, size=16), CPU))["test"]["cls"].shape == (6, 16)


def test_reflectance_is_clipped_or_refused():
    bright = optical(bands=L1C, sensor="sentinel2_l1c", scale=1e-3)
    model = load_model(f"ssl4eo_dino@random?{VIT}")
    data = dataset(bright)
    np.testing.assert_allclose(seen(model, data)["imgs"], physical(data).clip(0, 1), atol=1e-5)
    with pytest.raises(ValueError, match="sentinel2_l1c/B01 is in dn; clipping to 0..1 needs reflectance"):
        join(model, dataset(optical(bands=L1C, sensor="sentinel2_l1c", unit="dn")))


def test_statistics_of_another_unit_do_not_apply():
    data, model = dataset(optical()), load_model(f"dinov2_vits14@random?{VIT}")
    joined = join(model, data)
    assert [c.name for c in joined.channels] == ["B04", "B03", "B02"]
    assert joined.words == "standardise (dataset; published: dn)"
    x = seen(model, data)["imgs"]
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    pictures = dataset(ImageSpec("rgb", 1, ("blue", "green", "red"), "uint16", "dn"))
    assert join(model, pictures).words == "standardise (published)"


@pytest.mark.parametrize(
    ("expected", "sensor", "found"),
    [
        ("prithvi", "sentinel2_l2a", "B02 B03 B04 B8A B11 B12"),
        ("prithvi", "landsat8", "B2 B3 B4 B5 B6 B7"),
        ("prithvi", "hls_s30", "B02 B03 B04 B8A B11 B12"),
        ("scalemae", "naip", "red green blue"),
        ("scalemae", "planetscope", "red green blue"),
        ("satmae", "hls_l30", "B02 B03 B04 - - - - B05 B06 B07"),
        ("ssl4eo_mae", "sentinel2_l2a", "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 - B11 B12"),
        ("ssl4eo_mae_sar", "sentinel2_l2a", "- -"),
        ("satmae", "sentinel1_rtc", "- - - - - - - - - -"),
    ],
)
def test_other_sensors_stand_in_by_wavelength(expected, sensor, found):
    spec = ImageSpec(sensor, 10, SENSORS[sensor].band_names, "float32", SENSORS[sensor].unit)
    channels = [Channel(spec, name) for name in spec.bands]
    names = [c.name if c else "-" for b in ZOO[expected].expects.bands for c in stand_ins(b, channels)]
    assert " ".join(names) == found


def test_every_sensor_stands_in_for_itself():
    for release in ZOO.values():
        for bands in release.expects.bands:
            sensor = SENSORS[bands.sensor]
            spec = ImageSpec(bands.sensor, 10, sensor.band_names, "float32", bands.unit)
            assert [c.name for c in stand_ins(bands, [Channel(spec, n) for n in spec.bands])] == list(bands.names)


def test_a_band_that_the_data_lacks():
    data, model = dataset(optical()), load_model(f"ssl4eo_mae@random?{VIT}")
    for missing, advice in (("error", "or set model.missing=zero"), ("drop", "none can be dropped")):
        with pytest.raises(ValueError, match=f"dataset noise lacks sentinel2_l1c/B10 for model ssl4eo.*{advice}"):
            join(model, data, missing)
    view = seen(model, data, "zero")
    at = L1C.index("B10")
    assert view["spec_masks"].any(0).nonzero().flatten().tolist() == [at]
    assert not view["imgs"][:, at].any() and view["imgs"].shape[1] == 13
    rest = [i for i in range(13) if i != at]
    np.testing.assert_allclose(view["imgs"][:, rest], physical(data).clip(0, 1), atol=1e-5)
    received = Trial.of(model, data, CPU, missing="zero").received
    assert [r["expected"] for r in received if r["band"] == "zeros"] == ["sentinel2_l1c/B10"]
    with pytest.raises(ValueError, match="lacks sentinel1_grd/VV, sentinel1_grd/VH.*evaluate the model on data"):
        join(load_model(f"ssl4eo_mae_sar@random?{VIT}"), data, "zero")
    with pytest.raises(ValueError, match="model.missing is 'zeros'; did you mean 'zero'"):
        join(model, data, "zeros")


@pytest.mark.parametrize("sensor", ["enmap", "landsat8", "sentinel1_grd"])
def test_models_by_wavelength_take_any_sensor(sensor):
    bands = SENSORS[sensor].band_names
    unit = SENSORS[sensor].unit
    data = dataset(ImageSpec(sensor, 30, bands, "uint16", unit, 1e-4, 0.0, None), count=2)
    for model in (f"dofa@random?{VIT}&wave_dim=8", f"panopticon_vitb14@random?{VIT}&attn_dim=16&attn_heads=2"):
        trial = Trial.of(load_model(model), data, CPU)
        assert [r["id"] for r in trial.received] == SENSORS[sensor].channel_ids()
        assert (trial.joined.words, trial.example["imgs"].shape[-1]) == ("standardise (dataset)", 16)


def test_what_has_no_wavelength_is_refused_by_name():
    height = ImageSpec("dem", 10, ("elevation",), "uint16", "metre")
    with pytest.raises(ValueError, match="by wavelength or polarisation and cannot take dem/elevation"):
        join(load_model(f"dofa@random?{VIT}&wave_dim=8"), dataset(optical(), height))


def test_models_by_wavelength_go_without_what_has_none():
    height = ImageSpec("dem", 10, ("elevation",), "uint16", "metre")
    model, data = load_model(f"dofa@random?{VIT}&wave_dim=8"), dataset(optical(), height)
    joined = join(model, data, "drop")
    assert joined.images == ["sentinel2_l2a-10m"] and [c.name for c in joined.channels] == list(S2)
    named = dataclasses.replace(data, bands=("elevation", "B08", "B02"))
    assert join(model, named, "drop").bands == ("B08", "B02")
    with pytest.raises(ValueError, match="cannot take dem/elevation"):
        join(model, dataset(height), "drop")


def test_what_becomes_of_images_of_another_size():
    data, chosen = dataset(optical()), dataset(optical(), size=24)
    model = load_model(f"dofa@random?{VIT}&wave_dim=8")  # made for 16 pixels
    ours = load_model(f"random:vit_tiny?{VIT}&attn_dim=32&attn_heads=2")

    def sizes(*arguments):
        joined = join(*arguments)
        return joined.size, joined.window, joined.sizing

    assert sizes(model, data) == sizes(model, data, "error", "resize") == (16, None, "resized to 16")
    assert sizes(model, chosen) == (24, None, "resized to 24")
    assert sizes(model, data, "error", "tile") == (None, 16, "tiles of 16")
    assert sizes(model, chosen, "error", "tile") == (24, 16, "tiles of 16")
    assert sizes(model, data, "error", "interpolate") == (None, None, "positions interpolated")
    assert sizes(ours, data) == (None, None, "positions interpolated")
    assert sizes(ours, data, "error", "resize") == (16, None, "resized to 16")
    for any_size in map(load_model, ("pixelstats", "rcf", "unet", "vit_scratch")):
        assert sizes(any_size, data, "error", "tile", 12) == (None, 12, "tiles of 12")
        assert sizes(any_size, data, "error", "tile") == (None, None, "whole images")
    assert sizes(ours, data, "error", "tile", 12) == (None, 16, "tiles of 16")
    with pytest.raises(ValueError, match="pixelstats was made for no size: model.size=resize cannot be"):
        join(load_model("pixelstats"), data, "error", "resize")
    with pytest.raises(ValueError, match="model.size is 'resized'; did you mean 'resize'"):
        join(model, data, "error", "resized")


def test_what_is_received_can_be_looked_at():
    data, out = dataset(optical(), RADAR), io.StringIO()
    model = load_model(f"ssl4eo_mae@random?{VIT}")
    joined = join(model, data, "zero")
    Console(file=out, width=120).print(received_table(joined.received(seen(model, data, "zero")["imgs"])))
    lines = {line.split("│")[1].strip(): line for line in out.getvalue().splitlines() if line.startswith("│")}
    assert list(lines) == [f"sentinel2_l1c/{name}" for name in L1C]
    assert "zeros" in lines["sentinel2_l1c/B10"] and "sentinel2_l2a/B02" in lines["sentinel2_l1c/B02"]
    assert " 492 " in lines["sentinel2_l1c/B02"] or " 493 " in lines["sentinel2_l1c/B02"]


def test_a_band_stored_twice_is_ambiguous():
    data = dataset(optical(), optical(bands=("B05",), gsd=20))
    model = load_model(f"satmae@random?{VIT}&channel_embed=4")
    assert join(model, data).images == ["sentinel2_l2a-10m"]  # the first image holds all
    data = dataset(optical(bands=S2[:-1]), optical(bands=("B05", "B12"), gsd=20))
    with pytest.raises(ValueError, match="holds sentinel2_l2a/B05 in several images; name one"):
        join(model, data)


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        ((1e3, 1.0), "mean -999"),
        ((0.12, 1e-5), "deviation"),
        ((0.1, np.nan), "mean nan"),
        ((1e-3, 1e3), r"deviation \d.*e-05"),  # as of a scale that is far too small
    ],
)
def test_impossible_values_name_the_band(statistics, complaint):
    data, model = dataset(optical(bands=("B02", "B03"))), load_model(f"random:vit_tiny?{VIT}&attn_dim=32&attn_heads=2")
    table = {"B02": (0.1, 0.05), "B03": statistics}
    wrong = dataclasses.replace(model, normalisation=Normalisation({"sentinel2_l2a": table},
                                                                   {"sentinel2_l2a": "reflectance"}))  # fmt: skip
    with pytest.raises(ValueError, match=f"band sentinel2_l2a/B03 reaches the encoder with .*{complaint}"):
        Trial.of(wrong, data, CPU)


def test_a_band_without_contrast_is_named():
    model = load_model(f"ssl4eo_mae@random?{VIT}")
    for scale, std in ((1.0, "0"), (1e-8, r"\d.*e-06")):  # all clipped to 1; hardly more than 0
        data = dataset(optical(bands=L1C, sensor="sentinel2_l1c", scale=scale))
        with pytest.raises(ValueError, match=f"band sentinel2_l1c/B01 .* deviation {std} .*clip to 0..1"):
            Trial.of(model, data, CPU)


def test_what_was_received_is_what_the_model_saw():
    data, model = dataset(optical()), load_model("pixelstats")
    x = seen(model, data)["imgs"]
    received = Trial.of(model, data, CPU).received
    assert [r["band"] for r in received] == data.band_names == [r["expected"] for r in received]
    assert [r["unit"] for r in received] == ["reflectance"] * 12
    np.testing.assert_allclose([r["mean"] for r in received], x.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose([r["std"] for r in received], x.transpose(0, 1).flatten(1).std(1), rtol=1e-4)


def test_filters_are_generated_once_per_sensor():
    model, calls = load_model(f"dofa@random?{VIT}&wave_dim=8"), []
    model.network.encoder.patch_embed.weight_generator.register_forward_hook(lambda *_: calls.append(1))
    for times, data in enumerate((dataset(optical()), dataset(optical(bands=("B02", "B08")))), 1):
        extract(Trial.of(model, data, CPU, batch_size=2))  # nine batches
        assert len(calls) == times
