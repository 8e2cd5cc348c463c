"""FSDP2 = the replicated mode = one process, for every objective; checkpoints pass between all of them."""

import json
from pathlib import Path

import pytest
import torch

from dinov2.train import checkpoint, trainer
from dinov2.train.build import build
from dinov2.train.parallel import is_sharded, whole
from tests import tiny
from tests.ranks import assert_equal, run_ranks

ALL = [*sorted(tiny.OBJECTIVES), "moco+queue", "dino+accumulated", "byol+exact", "simclr+exact"]
FEW = ["dino", "byol+exact"]
Trained = tuple[dict[str, torch.Tensor], dict[str, list[float]]]


def config(folder: Path, name: str, shard_set: str, **options):
    """Biases stay: before a normalisation their gradient is rounding, which AdamW would scale up to whole steps.

    The rate is low, because rounding grows with every step through batch normalisation of six samples.
    """
    cfg = tiny.config(folder, name, Path(shard_set), **options)
    cfg.optim.freeze, cfg.optim.base_lr = {"bias$": 100}, 1e-4
    cfg.model.drop_path = 0.0
    return cfg


def trained(folder: str, shard_set: str, names: list[str], options: dict) -> Trained:
    """Weights and losses after five steps of each objective: one start of the processes serves them all."""
    weights, losses = {}, {}
    for name in names:
        run = Path(folder) / f"{name} {options} {trainer.distributed.world()}"
        trainer.train(config(Path(folder), name, shard_set, steps=5, **options), run)
        state = checkpoint.read(checkpoint.latest(run), "objective.")
        weights |= {f"{name} {k}": v for k, v in state.items() if v.is_floating_point()}
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    return weights, losses


def assert_modes_agree(tmp_path: Path, names: list[str]) -> None:
    path = str(tiny.shards(tmp_path / "shards"))
    expected, losses = trained(str(tmp_path), path, names, {})
    for options in ({}, {"parallel": "fsdp"}, {"parallel": "fsdp", "activation_checkpointing": True}):
        weights, found = run_ranks(trained, 2, str(tmp_path), path, names, options, timeout=300)[0]
        for name in names:
            assert found[name] == pytest.approx(losses[name], rel=1e-4), (name, options)
            mine = {k: v for k, v in weights.items() if k.startswith(f"{name} ")}
            assert_equal(mine, {k: expected[k] for k in mine}, f" with {options}")


@pytest.mark.distributed
def test_sharded_equals_replicated_equals_alone(tmp_path):
    assert_modes_agree(tmp_path, FEW)


@pytest.mark.distributed
@pytest.mark.slow
def test_sharded_equals_replicated_equals_alone_for_every_objective(tmp_path):
    assert_modes_agree(tmp_path, ALL)


@pytest.mark.distributed
def test_sharded_equals_alone_in_bfloat16(tmp_path):
    path, options = str(tiny.shards(tmp_path / "shards")), {"precision": "bfloat16"}
    expected, losses = trained(str(tmp_path), path, ["mae"], options)
    sharded = {**options, "parallel": "fsdp"}
    weights, found = run_ranks(trained, 2, str(tmp_path), path, ["mae"], sharded, timeout=300)[0]
    assert found["mae"] == pytest.approx(losses["mae"], rel=1e-3)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=1e-3)


def resumed(folder: str, shard_set: str, saved: str, mode: str) -> dict[str, torch.Tensor]:
    """What a run in another mode holds after loading."""
    cfg = config(Path(folder), "dino", shard_set, parallel=mode)
    parts = build(cfg)
    assert trainer.resume(cfg, Path(saved), parts) == 2
    tensors = trainer.tensors(parts)
    assert any(map(is_sharded, tensors.values())) == (mode == "fsdp" and trainer.distributed.world() > 1)
    return {name: whole(tensor).clone() for name, tensor in tensors.items()}


def begun(folder: str, shard_set: str, run: str, mode: str) -> int:
    trainer.train(config(Path(folder), "dino", shard_set, parallel=mode), Path(run), stop_at=2)
    return 0


@pytest.mark.distributed
@pytest.mark.slow
def test_checkpoints_pass_between_ranks_and_modes_exactly(tmp_path):
    path = str(tiny.shards(tmp_path / "shards"))
    layouts = [(1, "ddp"), (2, "ddp"), (3, "ddp"), (2, "fsdp"), (3, "fsdp")]
    for world, mode in layouts:
        run = str(tmp_path / f"{mode}-{world}")
        run_ranks(begun, world, str(tmp_path), path, run, mode)
        saved = checkpoint.read(checkpoint.latest(Path(run)))  # in one process, without a group
        for others, other_mode in layouts:
            for held in run_ranks(resumed, others, str(tmp_path), path, run, other_mode):
                assert held.keys() == saved.keys()
                assert all(torch.equal(held[k], saved[k]) for k in saved), (world, mode, others, other_mode)


def stopped_and_not(folder: str, shard_set: str) -> list[dict[str, torch.Tensor]]:
    found = []
    for stops in ([None], [3, None]):
        run = Path(folder) / f"{len(stops)}-parts"
        for stop in stops:
            trainer.train(config(Path(folder), "dino", shard_set, parallel="fsdp"), run, stop_at=stop)
        found.append(checkpoint.read(checkpoint.latest(run)))
    return found


@pytest.mark.distributed
def test_a_sharded_run_resumes_bit_for_bit(tmp_path):
    whole_run, parts = run_ranks(stopped_and_not, 2, str(tmp_path), str(tiny.shards(tmp_path / "shards")))[0]
    assert all(torch.equal(parts[k], v) for k, v in whole_run.items())


def test_an_unknown_mode_is_refused(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"), parallel="zero")
    with pytest.raises(ValueError, match="train.parallel 'zero' is not one of ddp, fsdp"):
        build(cfg)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(tmp_path):
    path = str(tiny.shards(tmp_path / "shards"))
    plain, compiled = (trained(str(tmp_path), path, ["mae"], o)[0] for o in ({}, {"compile": True}))
    assert_equal(compiled, plain)
