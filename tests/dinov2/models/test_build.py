import json

import pytest
import torch

from dinov2.models import build_encoder

OPTIONS = {
    "spectral": dict(attn_dim=48, attn_heads=4, attn_bias=True, attn_norm=True, terrain=True, registers=1),
    "conv": dict(embed="conv", in_chans=6, layer_scale=1e-5, ffn="swiglu"),
    "default": {},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_config_rebuilds_the_architecture(case: str) -> None:
    encoder = build_encoder("vit_tiny", 8, 32, depth=1, **OPTIONS[case])
    again = build_encoder(**json.loads(json.dumps(encoder.config)))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    assert again.config == encoder.config


def test_published_sizes() -> None:
    """Panopticon's embedding has 12,847,872 parameters; the ViT-B behind it 85.8 M with a 37 x 37 position grid."""
    with torch.device("meta"):
        encoder = build_encoder("vit_base", img_size=518, layer_scale=1e-5)
        giant = build_encoder("vit_giant2", img_size=518, embed="conv", depth=1, ffn="swiglu")
    assert sum(p.numel() for p in encoder.patch_embed.parameters()) == 12_847_872
    assert sum(p.numel() for p in encoder.parameters()) == 98_976_000 - 768  # without the released mask token
    assert giant.blocks[0].mlp.w3.weight.shape == (1536, 4096)


def test_none_keeps_the_size() -> None:
    assert build_encoder("vit_tiny", 8, 32, depth=1, embed_dim=None, num_heads=None).embed_dim == 192


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="vit_huge"), "unknown encoder 'vit_huge'; known: vit_tiny"),
        (dict(embed="wavelet"), "unknown patch embedding 'wavelet'"),
        (dict(dropp_path=0.1), "dropp_path"),
        (dict(in_chans=3), "in_chans"),
        (dict(embed="conv", attn_dim=48), "attn_dim"),
    ],
)
def test_unknown_names_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(**{"name": "vit_tiny", "depth": 1, **arguments})
