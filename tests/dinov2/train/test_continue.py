"""Continued pretraining: where weights come from, what stays fixed, and the guard."""

import json
import math

import pytest
import torch

from dinov2.models import build_encoder
from dinov2.models.export import load_export, save_export
from dinov2.train import checkpoint
from dinov2.train.build import build, build_objective
from dinov2.train.export import export_checkpoint
from dinov2.train.trainer import train
from tests import tiny


@pytest.fixture
def shards(tmp_path):
    return tiny.shards(tmp_path / "shards")


@pytest.fixture
def run(tmp_path, shards):
    """A finished run to start from."""
    train(tiny.config(tmp_path, "simclr", shards), tmp_path / "run")
    return tmp_path / "run"


def weights(path):
    return load_export(path / "model_final.safetensors")[0].state_dict()


def test_a_run_starts_from_another_runs_encoder(run, tmp_path, shards):
    cfg = tiny.config(tmp_path, "dino", shards)
    cfg.model.weights = str(run)
    objective = build(cfg).objective
    for encoder in (objective.encoder, objective.teacher_encoder):
        assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in weights(run).items())


def test_parts_named_fresh_keep_their_own_start_and_the_rest_is_strict(run, tmp_path, shards):
    cfg = tiny.config(tmp_path, "simclr", shards)
    own = build(cfg).objective.encoder.state_dict()
    cfg.model.weights, cfg.model.fresh, cfg.model.attn_dim = str(run), ["patch_embed."], 48
    found, start = build(cfg).objective.encoder.state_dict(), weights(run)
    assert torch.equal(found["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"])
    assert not torch.equal(own["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"])
    assert found["patch_embed.proj.weight"].shape == (24, 48)
    cfg.model.weights = None
    with pytest.raises(ValueError, match=r"model\.fresh says what does not come from model\.weights: set both"):
        build(cfg)
    cfg.model.weights, cfg.model.fresh = str(run), ["patch_embedding"]
    with pytest.raises(ValueError, match=r"model\.fresh: .*'patch_embedding'"):
        build(cfg)
    cfg.model.fresh, cfg.model.attn_dim, cfg.model.embed_dim = [], 24, 48
    with pytest.raises(
        ValueError, match=r"run does not fit this architecture; other shapes: .* is \(.*, the model has"
    ):
        build(cfg)


def test_released_weights_bring_the_mask_token(tmp_path, shards):
    cfg = tiny.config(tmp_path, "dino", shards)
    cfg.model.update({"patch_size": 14, "image_size": 518, "arch": "vit_small", "embed": "conv", "in_chans": 3})
    cfg.model.update({"embed_dim": None, "depth": None, "num_heads": None})
    cfg.objective.update({"global_size": 28, "local_size": 14})
    state = build_objective(cfg).encoder.state_dict()
    token = torch.randn(1, 384)
    torch.save({**state, "mask_token": token}, tmp_path / "released.pth")
    cfg.model.weights = f"dinov2_vits14@{tmp_path}/released.pth"
    assert torch.equal(build_objective(cfg).mask_token, token)


def test_heads_warm_up_behind_a_frozen_backbone(run, tmp_path, shards):
    cfg = tiny.config(tmp_path, "dino", shards)
    cfg.model.weights, cfg.optim.freeze = str(run), {r"^encoder\.": 4}
    train(cfg, tmp_path / "warm", stop_at=4)
    held = checkpoint.read(checkpoint.latest(tmp_path / "warm"), "objective.")
    assert all(torch.equal(v, held[f"encoder.{k}"]) for k, v in weights(run).items())
    train(cfg, tmp_path / "warm")
    moved = checkpoint.read(checkpoint.latest(tmp_path / "warm"), "objective.")
    assert not torch.equal(moved["encoder.blocks.0.mlp.fc1.weight"], held["encoder.blocks.0.mlp.fc1.weight"])


def test_a_frozen_file_teaches_another_architecture(run, tmp_path, shards):
    cfg = tiny.config(tmp_path, "dino", shards)
    cfg.objective.teacher_weights, cfg.objective.centering = str(run), "sinkhorn"
    cfg.model.depth, cfg.model.embed_dim = 1, 16
    before = build(cfg).objective
    train(cfg, tmp_path / "student")
    after = checkpoint.read(checkpoint.latest(tmp_path / "student"), "objective.")
    frozen = {k: v for k, v in before.state_dict().items() if k.startswith("teacher_")}
    assert len(frozen) > 20 and all(torch.equal(v, after[k]) for k, v in frozen.items())
    assert all(torch.equal(v, after[f"teacher_encoder.{k}"]) for k, v in weights(run).items())
    exported = weights(tmp_path / "student")
    assert all(torch.equal(v, after[f"encoder.{k}"]) for k, v in exported.items())
    assert not torch.equal(exported["cls_token"], before.encoder.cls_token)
    cfg.model.patch_size = 8
    with pytest.raises(ValueError, match=r"teacher_weights .* set model\.patch_size=4"):
        build(cfg)


def test_the_guard_stops_a_run_that_forgets(tmp_path, shards):
    options = {"evaluations": ["injected"], "evaluate_every": 2, "guard": "eval/knn", "guard_drop": 0.1}
    cfg = tiny.config(tmp_path, "simclr", shards, **options)
    quality = {0: 0.8, 2: 0.75, 4: 0.69, 6: 0.9}
    for _ in range(2):  # nor does the same command go on
        with pytest.raises(
            ValueError, match=r"step 4: eval/knn fell from 0\.800 to 0\.690, more than train\.guard_drop 0\.1"
        ):
            train(cfg, tmp_path / "run", evaluate=lambda path, step: {"eval/knn": quality[step]})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/knn" in line] == [0, 2]
    cfg.train.guard_drop = 0.2  # resumed with the start of its first run in mind
    train(cfg, tmp_path / "run", evaluate=lambda path, step: {"eval/knn": quality[step]})
    cfg.train.guard = "eval/knm"
    with pytest.raises(ValueError, match=r"train\.guard: no evaluation gives 'eval/knm'; there are eval/knn"):
        train(cfg, tmp_path / "other", evaluate=lambda path, step: {"eval/knn": quality[step]})
    for lacking in ({"evaluate_every": 0}, {"evaluations": []}):
        with pytest.raises(ValueError, match=r"set train\.evaluations and train\.evaluate_every"):
            build(tiny.config(tmp_path, "simclr", shards, **options | lacking))


def test_another_metric_is_guarded_from_a_start_of_its_own(tmp_path, shards):
    options = {"evaluations": ["injected"], "evaluate_every": 2, "guard": "eval/knn"}
    cfg = tiny.config(tmp_path, "simclr", shards, **options)
    values = {"eval/knn": 0.9, "eval/linear": 0.5}
    train(cfg, tmp_path / "run", evaluate=lambda path, step: values, stop_at=3)
    cfg.train.guard = "eval/linear"
    with pytest.raises(ValueError, match=r"step 6: eval/linear fell from 0\.500 to nan"):
        train(
            cfg, tmp_path / "run", evaluate=lambda path, step: values | ({"eval/linear": math.nan} if step == 6 else {})
        )


def test_a_checkpoint_exports_what_the_run_does_without_the_files_it_began_from(tmp_path, shards):
    cfg = tiny.config(tmp_path, "simclr", shards)
    released = build_encoder(**{**build(cfg).objective.encoder.config, "interpolate_offset": 0.1})
    save_export(tmp_path / "start.safetensors", released, normalisation={}, info={})
    cfg = tiny.config(tmp_path, "dino", shards)
    cfg.model.weights = cfg.objective.teacher_weights = str(tmp_path / "start.safetensors")
    final, at_end = load_export(train(cfg, tmp_path / "run"))
    (tmp_path / "start.safetensors").unlink()
    found, about = load_export(export_checkpoint(checkpoint.latest(tmp_path / "run"), tmp_path / "again.safetensors"))
    assert about == at_end and about["encoder"]["interpolate_offset"] == 0.1
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in final.state_dict().items())
