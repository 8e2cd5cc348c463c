import json

import pytest
import torch

from dinov2.train import checkpoint
from dinov2.train.probe import OnlineProbe
from dinov2.train.trainer import train
from tests import tiny


def probe(tmp_path, name):
    path = checkpoint.latest(tmp_path / name)
    return torch.load(path / checkpoint.REST, weights_only=True)["probe"]["network"]


def test_a_probe_leaves_the_weights_as_they_are_bit_for_bit(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    cfg = tiny.config(tmp_path, "dino", path)
    train(cfg, tmp_path / "without")
    cfg.train.probe = "scene"
    train(cfg, tmp_path / "with")
    without, probed = (
        checkpoint.read(checkpoint.latest(tmp_path / name), "objective.") for name in ("without", "with")
    )
    assert all(torch.equal(t, probed[k]) for k, t in without.items())
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["probe/scene"] <= 1 for line in lines if "loss" in line)


def test_a_resumed_probe_goes_on_and_may_be_added_later(tmp_path):
    cfg = tiny.config(tmp_path, "simclr+accumulated", tiny.shards(tmp_path / "shards"), probe="scene")
    train(cfg, tmp_path / "whole")
    train(cfg, tmp_path / "parts", stop_at=3)
    train(cfg, tmp_path / "parts")
    whole, parts = (probe(tmp_path, name) for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole) and whole["1.weight"].any()
    cfg.train.probe = None
    train(cfg, tmp_path / "later", stop_at=3)
    cfg.train.probe = "scene"
    train(cfg, tmp_path / "later")
    assert probe(tmp_path, "later")["1.weight"].any()


def test_a_probe_of_another_label_begins_anew():
    saved, same, other = (
        OnlineProbe(label, classes, 4, torch.device("cpu")) for label, classes in (("a", 2), ("a", 2), ("b", 3))
    )
    saved.learn(torch.randn(8, 4), [{"a": torch.arange(8) % 2}], 8)
    for probe in (same, other):
        probe.load_state_dict(saved.state_dict())
    assert torch.equal(same.network[1].weight, saved.network[1].weight) and saved.network[1].weight.any()
    assert not other.network[1].weight.any()


def test_it_learns_what_is_linear_and_leaves_out_what_has_no_label():
    generator = torch.Generator().manual_seed(0)
    probe = OnlineProbe("side", 2, 4, torch.device("cpu"))
    for step in range(200):
        x = torch.randn(2, 8, 4, generator=generator)  # two crops of eight samples in two micro-batches
        side = (x.mean(0)[:, 1] > 0).long()
        x[:, :, 2] = side  # a feature of both crops that tells
        side[:2] = -1
        probe.learn(x.flatten(0, 1), [{"side": side[:4]}, {"side": side[4:]}], 4)
        if step == 99:
            early = probe.accuracy()
    assert 0.9 < probe.accuracy() and early < 0.95
    before = probe.network[1].weight.clone()
    probe.learn(torch.randn(8, 4), [{}], 8)
    assert torch.isfinite(probe.network[1].weight).all() and probe.accuracy() != probe.accuracy()  # nothing was seen
    torch.testing.assert_close(probe.network[1].weight, before, rtol=0, atol=0.05)


def test_a_label_that_the_shards_do_not_describe_is_named(tmp_path):
    cfg = tiny.config(tmp_path, "mae", tiny.shards(tmp_path / "shards"), probe="scenes")
    with pytest.raises(ValueError, match=r"train\.probe: .*'scenes'.*did you mean 'scene'"):
        train(cfg, tmp_path / "run")
