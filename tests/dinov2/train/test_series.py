"""Pixel series through the whole trainer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov2 import distributed
from dinov2.data.render import render
from dinov2.models.export import load_export
from dinov2.models.timeseries import SeriesEncoder
from dinov2.models.zoo.tessera import RELEASES
from dinov2.train import schema
from dinov2.train.build import build, build_objective
from dinov2.train.dry_run import dry_run
from dinov2.train.trainer import train
from tests import tiny_series
from tests.ranks import assert_rank_law
from tests.tiny import write_config


def gradients(path: str, objective: str, folder: str) -> dict[str, torch.Tensor]:
    """Loss and gradients of the second batch, in float64."""
    own = Path(folder) / str(distributed.rank())
    own.mkdir(exist_ok=True)
    parts = build(tiny_series.config(own, objective, Path(path)))
    batch = render(next(parts.stream.batches(1)), parts.device)
    view = {k: v.double() if v.is_floating_point() else v for k, v in batch.views["crop"].items()}
    batch.views["crop"].update(view)
    terms = parts.objective.double()(batch, parts.schedules.now(1))
    terms["loss"].backward()
    distributed.average_gradients(parts.objective.parameters())
    grads = {name: p.grad for name, p in parts.objective.named_parameters() if p.requires_grad}
    return {"loss": distributed.mean(terms["loss"].detach()), **grads}


@pytest.mark.distributed
@pytest.mark.parametrize("objective", ["barlow", pytest.param("moco", marks=pytest.mark.slow)])
def test_ranks_equal_one_rank_with_pixels_of_one_sensor_among_them(objective, tmp_path):
    assert_rank_law(gradients, str(tiny_series.shards(tmp_path / "shards")), objective, str(tmp_path), worlds=(2,))


def test_a_resumed_run_equals_an_uninterrupted_one_and_its_export_loads(tmp_path):
    cfg = tiny_series.config(tmp_path, "barlow", tiny_series.shards(tmp_path / "shards"), probe="crop")
    whole = load_file(train(cfg, tmp_path / "whole"))
    train(cfg, tmp_path / "parts", stop_at=3)
    path = train(cfg, tmp_path / "parts")
    assert all(torch.equal(value, whole[key]) for key, value in load_file(path).items())
    encoder, header = load_export(path)
    assert isinstance(encoder, SeriesEncoder) and encoder.inputs["s2"] == ["sentinel2_l2a", "B02", "B04", "B08"]
    assert header["normalisation"]["sentinel1_rtc"]["unit"] == "db"


def test_the_loss_falls(tmp_path):
    cfg = tiny_series.config(tmp_path, "barlow", tiny_series.shards(tmp_path / "shards", 60), steps=60)
    cfg.data.batch_size, cfg.optim.base_lr = 30, 3e-3
    train(cfg, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_dry_run_counts_the_parameters(tmp_path, capsys):
    facts = dry_run(tiny_series.config(tmp_path, "barlow", tiny_series.shards(tmp_path / "shards")))
    assert facts["trainable parameters"] > 1000 and "dry run" in capsys.readouterr().out


def test_training_goes_on_from_the_weights_of_a_run(tmp_path):
    cfg = tiny_series.config(tmp_path, "barlow", tiny_series.shards(tmp_path / "shards"), steps=2)
    train(cfg, tmp_path / "run")
    cfg.model.weights, cfg.train.seed = str(tmp_path / "run"), 5
    held = load_file(tmp_path / "run" / "model_final.safetensors")
    found = build(cfg).objective.encoder
    assert found.training and all(torch.equal(v, held[k]) for k, v in found.state_dict().items())
    train(cfg, tmp_path / "more")
    after = load_file(tmp_path / "more" / "model_final.safetensors")
    assert held.keys() == after.keys() and not torch.equal(held["dim_reducer.0.weight"], after["dim_reducer.0.weight"])
    cfg.model.days, cfg.series.optical_bands = "raw", ["B04", "B02", "B08"]
    with pytest.raises(ValueError, match="has inputs .*'B02', 'B04', 'B08'.*, not .*; days 'cyclic', not 'raw': set"):
        build(cfg)


@pytest.mark.slow
def test_released_weights_are_a_start_where_an_export_can_hold_them(tmp_path):
    for name in ("btfm_v1", "tessera_v1_1_mpc"):
        torch.save(RELEASES[name].build().state_dict(), tmp_path / f"{name}.pt")
    raw = tiny_series.raw_config("barlow", tiny_series.shards(tmp_path / "shards"))
    raw["series"] = {}
    sizes = {"embed_dim": 128, "width": 512, "depth": 8, "num_heads": 8, "days": "raw"}
    raw["model"] = {"arch": "timeseries", "weights": f"btfm_v1@{tmp_path}/btfm_v1.pt", **sizes}
    encoder = build_objective(schema.load(write_config(tmp_path / "c.yaml", raw))).encoder
    held = torch.load(tmp_path / "btfm_v1.pt", weights_only=True)
    assert all(torch.equal(v, held[k]) for k, v in encoder.state_dict().items())
    assert encoder.config["hidden"] == 4096 and encoder.config["padding"] == "repeat"  # which no option names
    raw["model"]["weights"] = f"tessera_v1_1_mpc@{tmp_path}/tessera_v1_1_mpc.pt"
    with pytest.raises(ValueError, match="does not fit this architecture; .*temporal_context"):
        build_objective(schema.load(write_config(tmp_path / "c.yaml", raw)))


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("objective", "name", "mae", "objective mae has no views of pixel series"),
        ("objective", "size", 32, "objective.size is of images"),
        ("model", "weights", "runs/x", "there is no such exported encoder"),
        ("model", "pooling", "max", "pooling 'max' is not one of"),
        ("series", "optical_bands", ["B02", "B8A"], "no band B8A, which the encoder sees"),
        ("series", "radar", "sentinel1", "unknown sensor 'sentinel1'"),
    ],
)
def test_what_cannot_work_is_one_sentence(part, key, value, message, tmp_path):
    raw = tiny_series.raw_config("barlow", tiny_series.shards(tmp_path / "shards"))
    if (part, key) == ("objective", "name"):
        raw["objective"] = {"name": value, "size": 8}
    else:
        raw[part] = raw[part] | {key: value}
    with pytest.raises(ValueError, match=message):
        parts = build(schema.load(write_config(tmp_path / "c.yaml", raw)))
        next(parts.stream.batches(0))
