import io
import weakref

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dinov2.models.zoo import ZOO
from eval.costs import NOMINAL_BANDS, cost, encoder_flops, encoder_memory, list_models, model_cost
from eval.encoders import load_model
from eval.networks import Model
from eval.users import UsersEncoder
from tests.dinov2.models.zoo.published import channels, tiny


def attention(name, encoder, side):
    """Scores and values of the two blocks' attention, which the counter leaves out on a CPU unless there is a mask."""
    places = (side // 8) ** 2
    tokens = {"SpectralGPT": 4 * places, "SatMAE": 3 * places + 1, "DINOv2 with registers": places + 5, "CROMA": 0}
    return 2 * 4 * tokens.get(ZOO[name].family, places + 1) ** 2 * 32


MEASURED = ("dinov2_vits14", "dinov2_vits14_reg", "dinov2_vitg14", "dofa", "croma_base_optical", "croma_base_sar",
            "croma_base_joint", "prithvi", "scalemae", "ssl4eo_moco", "spectralgpt_plus", "satmae",
            "panopticon_vitb14")  # fmt: skip


def batch_of(name, side, images):
    """Images as the model takes them, of 5 bands where it takes any."""
    anything = not ZOO[name].expects.bands
    c = 5 if anything else channels(name)
    imgs = torch.randn(images, c, side, side)
    return {"imgs": imgs, "chn_ids": torch.arange(500, 500 + c).repeat(images, 1)} if anything else imgs


@pytest.mark.parametrize("name", MEASURED)
@torch.no_grad()
def test_the_written_count_equals_the_measured_one(name):
    encoder, side = tiny(name).eval(), 48
    x, c = batch_of(name, side, 1), 5
    encoder(x)  # what is kept between images is made
    with FlopCounterMode(display=False) as counter:
        encoder(x)
    measured = counter.get_total_flops() + attention(name, encoder, side)
    if name == "panopticon_vitb14":  # per batch: what the channels add to scores (4 heads) and values
        measured -= 2 * c * (24 * 4 + 24 * 24)
    assert encoder_flops(encoder, side, c) == measured


class Alive(TorchDispatchMode):
    """``peak``: most bytes of tensors that were alive at once, ``inputs`` and all that operations give."""

    def __init__(self, inputs):
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0
        self.count(inputs)

    def count(self, tensors):
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())

    def forget(self, storage, nbytes):
        self.known.discard(storage)
        self.now -= nbytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count(out)
        return out


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("side", [32, 96])
@torch.no_grad()
def test_the_memory_is_what_a_forward_takes(name, side):
    """Within an eighth of the bytes alive at the peak, per image: of 16 images against 8."""
    encoder, x = tiny(name).eval(), {b: batch_of(name, side, b) for b in (8, 16)}

    def peak(x):
        encoder(x)  # what is kept between images is made
        with Alive(x) as alive:
            encoder(x)
        return alive.peak

    measured = (peak(x[16]) - peak(x[8])) / 8
    assert encoder_memory(encoder, side, 5) == pytest.approx(measured, rel=1 / 8)


def test_known_sizes():
    """ViT-B/16 at 224 pixels: 86 million parameters and 35 GFLOP (Dosovitskiy et al. 2021 and its usual count)."""
    vit_s = cost("ssl4eo_moco")
    assert vit_s.parameters == pytest.approx(22, rel=0.1) and vit_s.gflops == pytest.approx(9.2, rel=0.1)
    large = cost("scalemae")
    assert large.parameters == pytest.approx(304, rel=0.01) and large.gflops == pytest.approx(123, rel=0.02)


def test_the_table_names_every_model():
    out = io.StringIO()
    list_models(Console(file=out, width=200))
    lines = {line.split("│")[1].strip(): line for line in out.getvalue().splitlines() if line.startswith("│")}
    assert lines.keys() == ZOO.keys()
    assert "12 sentinel2_l2a + 2 sentinel1_grd" in lines["croma_base_joint"] and "MIT" in lines["croma_base_joint"]
    assert f"any (cost: {NOMINAL_BANDS})" in lines["dofa"]


def view(bands, side, images=2):
    return {"imgs": torch.randn(images, bands, side, side), "chn_ids": torch.arange(500, 500 + bands).repeat(images, 1)}


def test_what_a_model_costs_on_the_images_at_hand():
    vit = "patch_size=8&img_size=16&embed_dim=32&depth=2&num_heads=4"
    model = load_model(f"random:vit_tiny?{vit}&attn_dim=32&attn_heads=2")
    found = model_cost(model, view(4, 48))
    assert found["flops"] == encoder_flops(model.network.encoder, 48, 4)
    assert found["parameters"] == sum(p.numel() for p in model.network.parameters())
    assert model_cost(load_model("pixelstats"), view(4, 48)) == {"parameters": 0, "flops": 0}
    x = view(3, 16)
    rcf, unet = (load_model(name).fitted(x) for name in ("rcf?features=6", "unet?width=2&depth=1"))
    assert model_cost(rcf, x) == {"parameters": 0, "flops": 2 * 14 * 14 * 3 * 27}  # three filters of 3 x 3 x 3
    by_hand = 2 * 16 * 16 * 9 * (3 * 2 + 2 * 2) + 2 * 8 * 8 * 9 * (2 * 2 + 2 * 2)  # two levels of two convolutions
    assert model_cost(unet, x)["flops"] == by_hand
    prithvi = load_model(f"prithvi@random?{vit}")
    series = {"imgs": torch.randn(1, 6, 3, 32, 32), "chn_ids": torch.zeros(1, 6)}
    assert model_cost(prithvi, series)["flops"] > 3 * model_cost(prithvi, view(6, 32))["flops"]


class MapsOnly(torch.nn.Module):
    """What a user needs to give for decoders."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 4, 4)

    def maps(self, view):
        return [self.conv(view["imgs"])]


def test_an_encoder_that_only_gives_maps_costs_what_its_maps_do():
    model = Model("mine", "pretrained", "-", UsersEncoder(MapsOnly(), "mine"))
    x = view(3, 16)
    assert model_cost(model, x, maps=True) == {"parameters": 5 * 3 * 16 + 5, "flops": 2 * 4 * 4 * 5 * 3 * 16}
