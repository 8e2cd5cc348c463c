import re
import sys
from pathlib import Path

import pytest
import torch

from dinov2.models.zoo.release import Bands
from eval.encoders import expand_models, fresh, load_model, name_of, seeded

MODULE = '''
import torch
from torch import nn
from dinov2.models import build_encoder
from dinov2.models.zoo.release import Bands, Expects


class Mean(nn.Module):
    """Patch means of three fixed bands, projected."""

    expects = Expects(bands=(Bands("sentinel2_l2a", ("B04", "B03", "B02"), "reflectance"),), scaling="clip",
                      size=32, patch=8, layers=(0,), dim=5, embedding="mean")

    def __init__(self, dim):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 8, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, view):
        return self.maps(view)[0].mean((2, 3))

    def maps(self, view):
        return [self.dropout(self.patch_embed(view["imgs"]))]


class Wrong(nn.Module):
    def forward(self, view):
        return view["imgs"]


def build(dim=5):
    return Mean(dim)


def wrong():
    return Wrong()


def transformer():
    return build_encoder("vit_tiny", 8, 16, depth=2, embed_dim=16, num_heads=2, attn_dim=16, attn_heads=2)


def nothing():
    return {}
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The module above under a name of this test alone."""
    name = f"my_encoders_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield f"py:{name}"
    sys.modules.pop(name, None)


def view(b=2, c=3, size=16):
    imgs = torch.randn(b, c, size, size, generator=torch.Generator().manual_seed(0))
    return {"imgs": imgs, "chn_ids": torch.tensor([664, 559, 493, 827])[:c].repeat(b, 1)}


@torch.no_grad()
def test_a_users_module_is_a_model(mine):
    x, model = view(), load_model(f"{mine}:build?dim=7")
    again = load_model(f"{mine}:build?dim=7")
    encoder = model.network.encoder
    torch.testing.assert_close(model.embed(x), encoder.patch_embed(x["imgs"]).mean((2, 3)))  # without dropout
    assert [m.shape for m in model.maps(x)] == [(2, 7, 2, 2)] and model.widths(x) == [7]
    assert (model.name, model.role, model.native) == (f"{mine}:build?dim=7", "pretrained", 32)
    assert model.digest == again.digest != load_model(f"{mine}:build").digest
    assert model.expects.bands == (Bands("sentinel2_l2a", ("B04", "B03", "B02"), "reflectance"),)
    assert len(model.unfreeze("patch_embed")) == 2
    assert expand_models(f"{mine}:build;pixelstats") == [f"{mine}:build", "pixelstats"]
    assert name_of(f"{mine}:build") == f"{mine}:build" and not seeded(f"{mine}:build")


@torch.no_grad()
def test_a_users_transformer_has_every_pooling(mine):
    x, model = view(), load_model(f"{mine}:transformer")
    assert list(model.features(x)) == ["cls", "mean", "cls+mean", "cls4", "cls4+mean"]
    torch.testing.assert_close(model.embed(x), model.network.encoder(x))
    assert model.widths(x) == [16, 16]


@torch.no_grad()
def test_the_example_of_the_page_of_models(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[2] / "docs/models.md").read_text()
    (code,) = re.findall(r"```python\n(# my_encoders.py.*?)```", text, re.S)
    (tmp_path / "my_encoders.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = load_model("py:my_encoders:build")
    sys.modules.pop("my_encoders")
    assert model.embed(view()).shape == (2, 32) and [m.shape for m in model.maps(view())] == [(2, 32, 2, 2)]
    assert len(model.unfreeze("patch_embed")) == 2 and model.expects.bands[0].names == ("B04", "B03", "B02")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: load_model("py:nowhere_at_all:build"), "No module named 'nowhere_at_all'; write py:package.module"),
        (lambda m: load_model(f"{m}:biuld"), "has no attribute 'biuld'"),
        (lambda m: load_model("py:"), "write py:package.module:function"),
        (lambda m: load_model(f"{m}:nothing"), "the function returned a dict, not a torch.nn.Module"),
        (
            lambda m: load_model(f"{m}:wrong").embed(view()),
            r"forward should give tensors \[2, D\], not \[2, 3",
        ),
        (lambda m: load_model(f"{m}:wrong").maps(view()), "has no method maps"),
        (lambda m: load_model(f"{m}:build?width=3"), "unexpected keyword argument 'width'"),
        (lambda m: fresh(f"{m}:build"), "no architecture that random weights could be drawn for"),
    ],
)
def test_what_is_no_encoder_is_one_sentence(mine, call, message):
    with pytest.raises(ValueError, match=message):
        call(mine)
