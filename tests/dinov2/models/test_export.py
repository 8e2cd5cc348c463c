import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov2.models import build_encoder
from dinov2.models.export import from_pretrained, load_export, read_export_info, save_export, save_pretrained

NORMALISATION = {"sentinel2_l2a": {"unit": "reflectance", "bands": {"B02": [0.1, 0.05]}}}
INFO = {"step": 7, "sensors": ["sentinel2_l2a"], "config": {"optim": {"base_lr": 1e-3}}}


@pytest.fixture
def encoder():
    return build_encoder("vit_tiny", 4, 8, depth=1, embed_dim=16, num_heads=2, attn_dim=24, attn_heads=4, registers=1)


@pytest.fixture
def path(encoder, tmp_path):
    save_export(tmp_path / "e.safetensors", encoder, normalisation=NORMALISATION, info=INFO)
    return tmp_path / "e.safetensors"


def test_round_trip_is_bitwise(encoder, path) -> None:
    again, header = load_export(path)
    x = {"imgs": torch.randn(2, 2, 8, 8), "chn_ids": torch.tensor([[443, -1]] * 2)}
    assert torch.equal(again(x), encoder.eval()(x)) and not again.training
    assert header == {"encoder": encoder.config, "normalisation": NORMALISATION, "info": INFO}
    assert again.config == encoder.config


def test_only_the_export_remains_in_the_folder(path) -> None:
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_others_may_read_it_as_any_new_file(path) -> None:
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_header_is_readable_without_the_weights(path) -> None:
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length)
        file.write(b"\0" * 64)
    assert read_export_info(path)["info"] == INFO


def test_failed_write_keeps_the_previous_export(encoder, path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_export(path, encoder, normalisation=NORMALISATION, info={"not json": torch.ones(1)})
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_unwritable_place_is_one_sentence(encoder, tmp_path) -> None:
    with pytest.raises(OSError, match="nowhere/e.safetensors could not be written"):
        save_export(tmp_path / "nowhere" / "e.safetensors", encoder, normalisation={}, info={})


def rewrite(path, change, **metadata) -> None:
    tensors, header = load_file(path), read_export_info(path)
    change(tensors)
    texts = {k: json.dumps(v) for k, v in header.items()}
    save_file(tensors, path, {"format": "eossl-encoder/1", **texts, **metadata})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("norm.bias"), "missing keys: norm.bias"),
        (lambda t: t.update(head=torch.ones(1)), "unknown keys: head"),
        (lambda t: t.update(cls_token=torch.ones(1, 1, 8)), r"cls_token is \(1, 1, 8\), the model has \(1, 1, 16\)"),
    ],
)
def test_weights_of_another_architecture_are_refused(path, change, message: str) -> None:
    rewrite(path, change)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        load_export(path)


def test_other_files_are_refused(path, tmp_path) -> None:
    rewrite(path, lambda t: None, format="eossl-encoder/9")
    with pytest.raises(ValueError, match="format 'eossl-encoder/9', expected 'eossl-encoder/1'"):
        load_export(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path} is not a readable safetensors file"):
        load_export(path)
    with pytest.raises(ValueError, match="there is no such exported encoder"):
        load_export(tmp_path / "nothing.safetensors")


def flip(path) -> None:
    """Change the last byte of the tensors."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        (last,) = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def test_one_changed_bit_is_refused(encoder, path, tmp_path) -> None:
    flip(path)
    with pytest.raises(ValueError, match="e.safetensors is damaged or was changed: its tensors are not those"):
        load_export(path)
    save_pretrained(tmp_path / "hub", encoder, normalisation=NORMALISATION, info=INFO)
    flip(tmp_path / "hub/model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is damaged or was changed"):
        from_pretrained(tmp_path / "hub")


def test_one_changed_letter_of_the_header_is_refused(path) -> None:
    told = path.read_bytes()
    path.write_bytes(told.replace(b"reflectance", b"refIectance", 1))
    assert path.read_bytes() != told
    with pytest.raises(ValueError, match="e.safetensors is damaged or was changed: its header is not what it was"):
        read_export_info(path)


def test_folder_in_the_hugging_face_layout(encoder, tmp_path) -> None:
    save_pretrained(tmp_path / "hub", encoder, normalisation=NORMALISATION, info=INFO)
    weights = tmp_path / "hub/model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})  # as tools write it that know no header of ours
    again = from_pretrained(tmp_path / "hub")
    x = {"imgs": torch.randn(2, 2, 8, 8), "chn_ids": torch.tensor([[443, -1]] * 2)}
    assert torch.equal(again(x), encoder.eval()(x))
    other = build_encoder(**encoder.config)
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, weights)  # right names, other weights
    with pytest.raises(ValueError, match="model.safetensors is damaged or was changed"):
        from_pretrained(tmp_path / "hub")


def test_folders_that_are_no_export(encoder, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no config.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="config.json describes no exported encoder: format None"):
        from_pretrained(tmp_path)
