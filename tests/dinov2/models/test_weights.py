import pytest
import torch

from dinov2.models import build_encoder
from dinov2.models.export import save_export
from dinov2.models.weights import load_weights
from dinov2.models.zoo import load_released

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 28}


def export(path):
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny", patch_size=14, attn_dim=24, attn_heads=2, **SIZES)
    save_export(path, encoder, normalisation={}, info={})
    return encoder


def test_an_export_and_a_run_folder_are_the_same(tmp_path):
    encoder = export(tmp_path / "model_final.safetensors")
    for source in (tmp_path, tmp_path / "model_final.safetensors"):
        loaded, beside = load_weights(str(source))
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in encoder.state_dict().items()) and not beside


def test_released_weights_come_with_their_mask_token(tmp_path):
    full = load_released("dinov2_vits14", "random")[0].state_dict()
    token = torch.randn(1, 384)
    torch.save({**full, "mask_token": token}, tmp_path / "released.pth")
    loaded, beside = load_weights(f"dinov2_vits14@{tmp_path}/released.pth")
    assert torch.equal(beside["mask_token"], token)
    assert torch.equal(loaded.state_dict()["blocks.3.mlp.fc1.weight"], full["blocks.3.mlp.fc1.weight"])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such exported encoder"):
        load_weights(str(tmp_path / "absent.safetensors"))
    with pytest.raises(ValueError, match="unknown released encoder 'dinov9'"):
        load_weights(f"dinov9@{tmp_path}/x.pth")
    with pytest.raises(ValueError, match="no such weights file"):
        load_weights(f"dinov2_vits14@{tmp_path}/x.pth")
