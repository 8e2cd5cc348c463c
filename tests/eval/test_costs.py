import io

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from dinov2.models.zoo import ZOO
from eval.costs import NOMINAL_BANDS, cost, encoder_flops, list_models
from tests.dinov2.models.zoo.published import channels, tiny


def attention(name, encoder, side):
    """Scores and values of the two blocks' attention, which the counter leaves out on a CPU unless there is a mask."""
    places = (side // 8) ** 2
    tokens = {"SpectralGPT": 4 * places, "SatMAE": 3 * places + 1, "DINOv2 with registers": places + 5, "CROMA": 0}
    return 2 * 4 * tokens.get(ZOO[name].family, places + 1) ** 2 * 32


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg", "dinov2_vitg14", "dofa", "croma_base_optical",
                                  "croma_base_sar", "croma_base_joint", "prithvi", "scalemae", "ssl4eo_moco",
                                  "spectralgpt_plus", "satmae", "panopticon_vitb14"])  # fmt: skip
@torch.no_grad()
def test_the_written_count_equals_the_measured_one(name):
    encoder, side = tiny(name).eval(), 48
    anything = not ZOO[name].expects.bands
    c = 5 if anything else channels(name)
    imgs = torch.randn(1, c, side, side)
    x = {"imgs": imgs, "chn_ids": torch.arange(500, 500 + c)[None]} if anything else imgs
    encoder(x)  # what is kept between images is made
    with FlopCounterMode(display=False) as counter:
        encoder(x)
    measured = counter.get_total_flops() + attention(name, encoder, side)
    if name == "panopticon_vitb14":  # per batch: what the channels add to scores (4 heads) and values
        measured -= 2 * c * (24 * 4 + 24 * 24)
    assert encoder_flops(encoder, side, c) == measured


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
