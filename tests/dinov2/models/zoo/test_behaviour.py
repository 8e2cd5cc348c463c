"""What each released model does differently, against counts by hand and invariances."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dinov2.models.zoo import load_encoder
from dinov2.models.zoo.croma import alibi
from dinov2.models.zoo.dofa import SAR_NM
from dinov2.models.zoo.prithvi import fixed_positions
from dinov2.sensors import SENSORS
from tests.dinov2.models.zoo.published import SIZES, example, tiny

# ---- DOFA


@pytest.fixture
def dofa():
    return tiny("dofa").eval()


def counted(dofa) -> list:
    """Grows by one whenever the weight generator runs."""
    calls: list = []
    dofa.patch_embed.weight_generator.register_forward_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
def test_dofa_generates_filters_once_per_set_of_channels(dofa) -> None:
    calls, x = counted(dofa), example("dofa")
    first = dofa(x)
    assert torch.equal(dofa(x), first) and len(calls) == 1
    dofa({"imgs": x["imgs"][:, :2], "chn_ids": x["chn_ids"][:, :2]})
    dofa(x)
    assert len(calls) == 2
    with torch.enable_grad():
        torch.testing.assert_close(dofa(x), first)
    assert len(calls) == 3


@torch.no_grad()
def test_dofa_forgets_its_filters_when_a_parameter_changes(dofa) -> None:
    x = example("dofa")
    before = dofa(x)
    dofa.patch_embed.fclayer.w1.weight.add_(0.5)
    changed = dofa(x)
    assert not torch.allclose(changed, before)
    dofa.patch_embed._kept.clear()
    assert torch.equal(dofa(x), changed)


@torch.no_grad()
def test_dofa_filters_kept_under_autocast_serve_without_it(dofa) -> None:
    x = example("dofa")
    expected = dofa(x)
    dofa.patch_embed._kept.clear()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(dofa(x).float(), expected, atol=0.2, rtol=0)
    assert torch.equal(dofa(x), expected)


@torch.no_grad()
def test_dofa_hidden_channels_do_not_count(dofa) -> None:
    x = example("dofa")
    padded = {
        "imgs": torch.cat([x["imgs"], torch.randn(2, 2, 32, 32)], 1),
        "chn_ids": F.pad(x["chn_ids"], (0, 2)),
        "spec_masks": torch.tensor([[False] * 3 + [True] * 2] * 2),
    }
    torch.testing.assert_close(dofa(padded), dofa(x))


@torch.no_grad()
def test_dofa_takes_images_of_different_sensors_in_one_batch(dofa) -> None:
    imgs, ids = torch.randn(3, 3, 32, 32), torch.tensor([[665, 560, 490], [-1, -2, 865], [665, 560, 490]])
    each = [dofa({"imgs": imgs[i : i + 1], "chn_ids": ids[i : i + 1]}) for i in range(3)]
    torch.testing.assert_close(dofa({"imgs": imgs, "chn_ids": ids}), torch.cat(each))


@torch.no_grad()
def test_dofa_radar_and_order_of_channels(dofa) -> None:
    imgs = torch.randn(1, 2, 32, 32)
    radar = dofa.patch_embed({"imgs": imgs, "chn_ids": torch.tensor([[-1, -6]])})
    torch.testing.assert_close(radar, dofa.patch_embed.embed(imgs, torch.tensor([SAR_NM, SAR_NM])))
    ids = torch.tensor([[490, 865]])
    swapped = dofa({"imgs": imgs.flip(1), "chn_ids": ids.flip(1)})
    torch.testing.assert_close(swapped, dofa({"imgs": imgs, "chn_ids": ids}))
    with pytest.raises(ValueError, match="unknown channel id 0"):
        dofa({"imgs": imgs, "chn_ids": torch.tensor([[490, 0]])})


@pytest.mark.parametrize("sensor", ["landsat8", "enmap", "sentinel1_grd", "hls_l30"])
@torch.no_grad()
def test_dofa_takes_any_sensor(dofa, sensor: str) -> None:
    ids = torch.tensor([SENSORS[sensor].channel_ids()])
    x = {"imgs": torch.randn(1, ids.shape[1], 32, 32), "chn_ids": ids}
    assert dofa(x).isfinite().all() and [m.shape for m in dofa.maps(x, [0, 1])] == [(1, 32, 4, 4)] * 2


@torch.no_grad()
def test_dofa_embedding_is_the_normalised_mean(dofa) -> None:
    embedding = dofa(example("dofa"))
    torch.testing.assert_close(embedding.mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(embedding.std(1, correction=0), torch.ones(2), atol=1e-4, rtol=0)


@torch.no_grad()
def test_dofa_is_the_padded_convolution(dofa) -> None:
    embed, imgs, nm = dofa.patch_embed, torch.randn(2, 3, 24, 40), torch.tensor([490.0, 560.0, 665.0])
    weight, bias = embed.generate(nm)
    expected = F.conv2d(imgs, weight.T.unflatten(1, (3, 8, 8)), bias, stride=8, padding=1)
    torch.testing.assert_close(embed.embed(imgs, nm), expected.flatten(2).mT)


@pytest.mark.parametrize("name", ["dofa", "prithvi", "satmae", "ssl4eo_mae"])
@torch.no_grad()
def test_kept_patches_are_those_of_all(name: str) -> None:
    embed, x = tiny(name).eval().patch_embed, example(name)
    keep = torch.tensor([[3, 0], [15, 7]])
    every = embed(x, None)
    torch.testing.assert_close(embed(x, keep), torch.stack([every[0, [3, 0]], every[1, [15, 7]]]))


# ---- CROMA


def test_alibi_by_hand() -> None:
    bias = alibi(2, 3, 16)
    assert bias.shape == (16, 6, 6)
    # patches 0 (row 0, column 0) and 5 (row 1, column 2); heads 1 and 16 of 16
    assert bias[0, 0, 5].item() == pytest.approx(-math.sqrt(5) * 2**-0.5)
    assert bias[15, 5, 0].item() == pytest.approx(-math.sqrt(5) * 2**-8)
    assert torch.equal(bias, bias.mT) and not bias.diagonal(dim1=1, dim2=2).any()


@torch.no_grad()
def test_croma_joint_reads_optical_then_radar() -> None:
    joint = tiny("croma_base_joint").eval()
    x = example("croma_base_joint")
    bias = alibi(4, 4, 16)
    radar = joint.parts["s1_encoder"](x[:, 12:], bias)
    *_, last = joint.parts["joint_encoder"].steps(radar, bias, joint.parts["s2_encoder"](x[:, :12], bias))
    torch.testing.assert_close(joint(x), joint.parts["joint_encoder"].norm(last).mean(1))
    pairs = joint.get_intermediate_layers(x, n=2, return_class_token=True)
    torch.testing.assert_close(pairs[-1][1], joint(x))


@torch.no_grad()
def test_croma_flipped_image_gives_flipped_map() -> None:
    """Distances alone tell places apart, so flipping whole patches flips the map."""
    model, x = tiny("croma_base_optical").eval(), example("croma_base_optical", 32, 24)
    patches = x.unflatten(3, (3, 8))
    flipped = patches.flip(3).flatten(3)
    torch.testing.assert_close(model.maps(flipped, [1, 3])[1], model.maps(x, [1, 3])[1].flip(3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(flipped), model(x), atol=1e-4, rtol=1e-4)


# ---- Prithvi


@torch.no_grad()
def test_prithvi_shorter_series() -> None:
    model, x = tiny("prithvi").eval(), example("prithvi")
    assert torch.equal(model(x[:, :, 0]), model(x[:, :, :1]))
    assert model.maps(x, [1])[0].shape == (2, 32, 3, 4, 4) and model.maps(x[:, :, 0], [1])[0].shape == (2, 32, 4, 4)
    native = model.pos_embed[:, 1:]
    assert torch.equal(model.positions((3, 4, 4))[1], native)
    assert torch.equal(model.positions((2, 4, 4))[1], native[:, :32])


@torch.no_grad()
def test_prithvi_positions_in_space_and_time() -> None:
    """Released ones are 3-D sine and cosine: those of further dates are the formula's, other grids are resized."""
    model: Any = load_encoder("prithvi", "random", **SIZES["Prithvi"])
    native = fixed_positions(32, 3, 4).float()
    assert torch.equal(model.pos_embed[0], torch.cat([torch.zeros(1, 32), native]))
    torch.testing.assert_close(model.positions((5, 4, 4))[1][0], fixed_positions(32, 5, 4).float())
    # date 2, row 1, column 3, by hand: 12 features of the column, 12 of the row, 8 of the date
    found = native.unflatten(0, (3, 4, 4))[2, 1, 3]
    for start, width, number in ((0, 12, 3), (12, 12, 1), (24, 8, 2)):
        angles = number / 10000 ** (torch.arange(width // 2) / (width / 2))
        torch.testing.assert_close(found[start : start + width], torch.cat([angles.sin(), angles.cos()]))
    larger = model.positions((5, 8, 8))[1][0].unflatten(0, (5, 8, 8))
    torch.testing.assert_close(larger[..., 24:].mean((1, 2)), fixed_positions(32, 5, 1)[:, 24:].float())
    x = torch.randn(1, 6, 5, 32, 48)
    assert model(x).shape == (1, 32) and model.maps(x, [1])[0].shape == (1, 32, 5, 4, 6)
    with pytest.raises(ValueError, match="positions need embed_dim to be a multiple of 16, not 24"):
        load_encoder("prithvi", "random", **{**SIZES["Prithvi"], "embed_dim": 24})


@torch.no_grad()
def test_fine_tuned_prithvi_sees_dates_and_bands_as_in_its_training() -> None:
    model, plain = tiny("prithvi_crops").eval(), tiny("prithvi").eval()
    plain.load_state_dict(model.state_dict())
    x, numbers = example("prithvi_crops"), torch.arange(18.0)
    stack = numbers.view(3, 6).mT[None, :, :, None, None].expand(1, 6, 3, 32, 32)  # channel t * 6 + c of date t, band c
    seen: list[torch.Tensor] = []
    hook = model.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(stack)
    hook.remove()
    assert torch.equal(seen[0][0, :, :, 0, 0], numbers.view(6, 3))
    shuffled = x.transpose(1, 2).reshape(2, 18, 32, 32).reshape(2, 6, 3, 32, 32)
    assert torch.equal(model(x), plain(shuffled))
    normed = plain.get_intermediate_layers(shuffled, n=[1], reshape=True)[0]
    assert torch.equal(model.maps(x, [1])[0], normed)  # after the final norm
    with pytest.raises(ValueError, match="a series of 2 dates: this model was fine-tuned on 3, no others"):
        model(x[:, :, :2])


@torch.no_grad()
def test_prithvi_accepts_both_namings() -> None:
    model, x = tiny("prithvi").eval(), example("prithvi")
    state = model.state_dict()
    bare = {**state, "mask_token": torch.ones(1), "decoder_pos_embed": torch.ones(1)}
    assert torch.equal(tiny("prithvi", bare)(x), model(x))


# ---- Scale-MAE


@torch.no_grad()
def test_scalemae_positions_count_in_metres() -> None:
    fine, coarse = tiny("scalemae", gsd=1.0), tiny("scalemae", gsd=2.0)
    every_second = fine.positions((6, 8))[1][0].unflatten(0, (6, 8))[::2, ::2].flatten(0, 1)
    torch.testing.assert_close(coarse.positions((3, 4))[1][0], every_second)
    assert not coarse.positions((3, 4))[0].any()


# ---- band groups: SatMAE, SpectralGPT


@pytest.mark.parametrize("name, groups", [("satmae", 3), ("spectralgpt", 4)])
@torch.no_grad()
def test_maps_hold_the_groups_one_after_the_other(name: str, groups: int) -> None:
    model, x = tiny(name).eval(), example(name, 24, 32)
    [tokens] = model.get_intermediate_layers(x, n=[1], norm=False)
    [maps] = model.maps(x, [1])
    assert maps.shape == (2, groups * 32, 3, 4)
    torch.testing.assert_close(maps[:, 32:64, 1, 2], tokens[:, 12 + 4 + 2])  # group 1, row 1, column 2


@torch.no_grad()
def test_satmae_groups_pick_their_bands() -> None:
    model, x = tiny("satmae").eval(), example("satmae")
    tokens = model.patch_embed(x).unflatten(1, (3, 16))
    changed = x.clone()
    changed[:, 6] += 1.0  # B08 belongs to the first group
    differs = (model.patch_embed(changed).unflatten(1, (3, 16)) != tokens).flatten(2).any(2).any(0)
    assert differs.tolist() == [True, False, False]


@torch.no_grad()
def test_spectralgpt_embedding_is_the_mean_token() -> None:
    model, x = tiny("spectralgpt").eval(), example("spectralgpt")
    torch.testing.assert_close(model(x), model.get_intermediate_layers(x)[0].mean(1))
