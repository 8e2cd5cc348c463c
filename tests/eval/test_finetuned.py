"""Prithvi's released fine-tuned models: read strictly, equal to their layers written out, predicting and scored."""

import json

import pytest
import rasterio
import torch
import torch.nn.functional as F

from dinov2.models.zoo import load_encoder
from eval.finetuned import TASKS, finetuned, is_finetuned
from eval.main import main
from eval.predict import main as predict
from tests.eval.test_finetune import burn_scars, config, tif

SIZES = "?img_size=32&embed_dim=32&depth=2&num_heads=4"
OPTIONS = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4}


def published(name: str) -> dict[str, torch.Tensor]:
    """A tiny file's tensors under the names that mmsegmentation gave them."""
    torch.manual_seed(0)
    encoder = load_encoder(name, "random", **OPTIONS)
    dates, classes = (3 if name == "prithvi_crops" else 1), len(TASKS[name].classes)
    width = 32 * dates
    shapes = {"decode_head.conv_seg.weight": (classes, 8, 1, 1), "decode_head.conv_seg.bias": (classes,)}
    shapes["decode_head.convs.0.conv.weight"] = (8, width, 3, 3)
    for stage in ("fpn1", "fpn2"):
        for layer in (0, 3):
            shapes |= {f"neck.{stage}.{layer}.weight": (width, width, 2, 2), f"neck.{stage}.{layer}.bias": (width,)}
        shapes |= {f"neck.{stage}.1.ln.{part}": (width,) for part in ("weight", "bias")}
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"decode_head.convs.0.bn.{part}"] = (8,)
    state = {f"backbone.{k}": v + 0.1 * torch.randn_like(v) for k, v in encoder.state_dict().items()}
    state |= {k: 0.3 * torch.randn(shape) for k, shape in shapes.items()}
    state["decode_head.convs.0.bn.running_var"].abs_()
    state["decode_head.convs.0.bn.num_batches_tracked"] = torch.tensor(5)
    return {**state, "auxiliary_head.conv_seg.weight": torch.ones(classes, 8, 1, 1)}


def save(name: str, path, state) -> str:
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "optimizer": {}}, path)
    return f"{name}@{path}{SIZES}"


@torch.no_grad()
def layers(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Neck and head as published, on tokens ``[B, 1 + T * 4, D]`` -> ``[B, K, 32, 32]``."""
    x = tokens[:, 1:].mT.reshape(len(tokens), -1, 2, 2)  # channel d * T + t
    for stage in ("neck.fpn1", "neck.fpn2"):
        part = {k.removeprefix(f"{stage}."): v for k, v in state.items() if k.startswith(stage)}
        x = F.conv_transpose2d(x, part["0.weight"], part["0.bias"], stride=2)
        norm = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], part["1.ln.weight"], part["1.ln.bias"], 1e-6)
        x = F.conv_transpose2d(F.gelu(norm.permute(0, 3, 1, 2)), part["3.weight"], part["3.bias"], stride=2)
    part = {k.removeprefix("decode_head."): v for k, v in state.items() if k.startswith("decode_head.")}
    x = F.conv2d(x, part["convs.0.conv.weight"], padding=1)
    names = ("running_mean", "running_var", "weight", "bias")
    x = F.batch_norm(x, *(part[f"convs.0.bn.{name}"] for name in names)).relu()
    return F.conv2d(x, part["conv_seg.weight"], part["conv_seg.bias"])


@pytest.mark.parametrize("name", TASKS)
def test_the_released_layers(name, tmp_path):
    state = published(name)
    trained = finetuned(save(name, tmp_path / "weights.pth", state))
    frames = trained.frames
    imgs = torch.randn(2, *([frames] if frames > 1 else []), 6, 32, 32)
    view = {"imgs": imgs, "chn_ids": torch.tensor(trained.example[1]).repeat(2, *([frames] if frames > 1 else []), 1)}
    x = imgs.transpose(1, 2) if frames > 1 else imgs
    features = trained.model.network.encoder.forward_features(x)
    tokens = torch.cat([features["cls"][:, None], features["patches"]], 1)
    torch.testing.assert_close(trained.predict(view), layers(state, tokens), rtol=1e-4, atol=1e-5)
    assert (trained.joined.window, trained.side, trained.kind) == (32, 32, "segmentation")


def test_files_are_read_strictly(tmp_path):
    state = published("prithvi_burn_scars")
    for change, message in (
        ({"neck.fpn2.3.bias": None}, "missing keys: decoder.neck.7.bias"),
        ({"decode_head.gate": torch.ones(1)}, "unknown keys: decode_head.gate"),
        ({"backbone.norm.bias": None}, "missing keys: norm.bias"),
        ({"neck.fpn1.1.ln.bias": torch.ones(3)}, "other shapes: decoder.neck.1.bias"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            finetuned(save("prithvi_burn_scars", tmp_path / "weights.pth", changed))
    renamed = {k.replace("backbone.", "backbone.encoder."): v for k, v in state.items()}
    finetuned(save("prithvi_burn_scars", tmp_path / "weights.pth", renamed))
    assert not is_finetuned("prithvi@x.pth") and not is_finetuned("prithvi_burn_scars")
    with pytest.raises(ValueError, match="prithvi_crops@random.*: name the file that holds the head"):
        finetuned(f"prithvi_crops@random{SIZES}")


def test_maps_of_files(tmp_path):
    """Three dates of six bands in one file, and six bands of reflectance."""
    for name, count in (("prithvi_burn_scars", 6), ("prithvi_crops", 18)):
        obj = save(name, tmp_path / f"{name}.pth", published(name))
        pixels = torch.rand(count, 50, 40).mul(0.3 if count == 6 else 3000).numpy()
        tif(tmp_path / f"{name}.tif", pixels if count == 6 else pixels.astype("int16"))
        given = ["--bands", *map(str, range(count))]
        if count == 18:
            given += ["--dates", "2022-03-01", "2022-06-01", "2022-09-01"]
        out = ["--output", str(tmp_path / "out")]
        assert predict(["--model-obj", obj, "--input", str(tmp_path / f"{name}.tif"), *out, *given]) == 0
        with rasterio.open(tmp_path / "out" / f"{name}_pred.tif") as found:
            assert (found.shape, found.crs.to_epsg(), found.dtypes) == ((50, 40), 32633, ("int16",))
            classes = TASKS[name].classes
            assert 0 <= found.read(1).min() and found.read(1).max() < len(classes)
            assert classes[-1] in str(found.tags())


def test_scored_without_training(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    burn_scars(tmp_path / "data")
    obj = save("prithvi_burn_scars", tmp_path / "weights.pth", published("prithvi_burn_scars"))
    given = ["--model-obj", obj, "--config-obj", config("hls_burn_scars"), "--output-dir", str(tmp_path / "out")]
    given += [f"dataset.root={tmp_path / 'data'}", "model.normalisation=model", "model.stride=16", "resamples=10"]
    assert main([*given, "task.train=released"]) == 0
    row = json.loads(next((tmp_path / "out").rglob("seed-0.json")).read_text())
    assert (row["n"], row["chosen"], row["normalisation"]) == (3, {"train": "released"}, "standardise (published)")
    assert not list((tmp_path / "out").rglob("*.safetensors"))
