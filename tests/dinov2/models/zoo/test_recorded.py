"""Outputs of other implementations on tiny models (record.py)."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dinov2.models.zoo import load_released

SIZES = dict(embed_dim=16, depth=2, num_heads=2, img_size=16, patch_size=4)


def recorded(name: str) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {"state": {}, "in": {}, "out": {}}
    for key, value in load_file(Path(__file__).parent / "recorded" / f"{name}.safetensors").items():
        part, _, rest = key.partition("/")
        parts[part][rest] = value
    return parts


@torch.no_grad()
def test_remoteclip_equals_clip() -> None:
    file = recorded("remoteclip")
    model: Any = load_released("remoteclip_vitb32", file["state"], projection=8, **SIZES)[0]
    x, out = file["in"]["x"], file["out"]
    torch.testing.assert_close(model(x), out["embedding"], atol=1e-5, rtol=1e-5)
    for ours, i in zip(model.maps(x, [0, 1]), (0, 1), strict=True):
        wanted = out[f"tokens/{i}"][:, 1:].mT.unflatten(2, (4, 4))
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_dinov3_equals_dinov3() -> None:
    file = recorded("dinov3")
    model, beside = load_released("dinov3_vitl16_sat", file["state"], **SIZES)
    found: Any = model.forward_features(file["in"]["x"])  # type: ignore[operator]
    tokens = torch.cat([found["cls"][:, None], found["registers"], found["patches"]], 1)
    torch.testing.assert_close(tokens, file["out"]["tokens"], atol=1e-5, rtol=1e-5)
    assert beside["mask_token"].shape == (1, 16)


@torch.no_grad()
def test_dinov3_positions_by_hand() -> None:
    file = recorded("dinov3")
    model: Any = load_released("dinov3_vitl16_sat", file["state"], **SIZES)[0]
    cos, sin = model.rope_embed((2, 4))  # heads of 8: periods 1 and 10
    turns = torch.tensor([0.5, 0.5 / 10, -0.25, -0.25 / 10])  # row 1 of 2 is at 0.5, column 1 of 4 at -0.25
    torch.testing.assert_close(cos[5], (2 * torch.pi * turns).cos().tile(2))
    torch.testing.assert_close(sin[5], (2 * torch.pi * turns).sin().tile(2), atol=1e-6, rtol=0)
    assert model.get_intermediate_layers(file["in"]["x"], n=[0, 1], reshape=True)[0].shape == (2, 16, 3, 5)
