from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dinov2 import distributed
from dinov2.data.views import render
from dinov2.objectives.two_view import enqueue
from dinov2.train.build import build
from tests import tiny
from tests.ranks import assert_rank_law


def two_steps(path: str, folder: str) -> dict[str, torch.Tensor]:
    """Queue and gradients of the second step: what the first one enqueued is in them."""
    parts = build(tiny.config(Path(folder), "moco+queue", Path(path)))
    batches = parts.stream.batches(0)
    for at in range(2):
        parts.objective.zero_grad()
        now = parts.schedules.now(at)
        loss = parts.objective(render(next(batches), parts.device), now)["loss"]
        loss.backward()
        parts.objective.after_step(now)
    distributed.average_gradients(parts.objective.parameters())
    grads = {name: p.grad for name, p in parts.objective.named_parameters() if p.requires_grad}
    return {**grads, "loss": distributed.mean(loss.detach()), "queue": parts.objective.queue}


def test_ranks_fill_the_queue_as_one_rank_does(tmp_path):
    """6 keys into 8 rows: the second batch is cut at the end, so the order of the ranks' keys shows."""
    assert_rank_law(two_steps, str(tiny.shards(tmp_path / "shards")), str(tmp_path))


def test_keys_replace_the_oldest_rows():
    queue, pointer = torch.zeros(5, 2), torch.zeros(1, dtype=torch.long)
    for number in range(1, 5):
        enqueue(queue, pointer, torch.tensor([[2.0 * number, 0.0], [0.0, 3.0]]) * torch.tensor([1.0, -1.0]))
        assert pointer.item() == [2, 4, 0, 2][number - 1]
    assert queue.tolist() == [[1, 0], [0, -1], [1, 0], [0, -1], [1, 0]]


def test_keys_enter_after_the_step_only_and_from_every_micro_batch(tmp_path):
    parts = build(tiny.config(tmp_path, "moco+queue+accumulated", tiny.shards(tmp_path / "shards")))
    objective, batches, now = parts.objective, parts.stream.batches(0), parts.schedules.now(0)
    before = objective.queue.clone()
    keys = []
    for _ in range(parts.stream.accumulation):
        batch = render(next(batches), parts.device)
        with torch.no_grad():
            keys.append(objective.teacher(batch.views["crop"]).chunk(2)[1])
        objective(batch, now)
        assert torch.equal(objective.queue, before)
    objective.after_step(now)
    torch.testing.assert_close(objective.queue[:6], F.normalize(torch.cat(keys), dim=1))
    assert torch.equal(objective.queue[6:], before[6:]) and objective.pointer.item() == 6


def test_the_teacher_drops_no_path_and_normalises_by_the_batch(tmp_path):
    cfg = tiny.config(tmp_path, "byol", tiny.shards(tmp_path / "shards"))
    cfg.model.drop_path = 0.5
    parts = build(cfg)
    objective = parts.objective
    crops = render(next(parts.stream.batches(0)), parts.device).views["crop"]
    first, second = objective.embed(crops), objective.embed(crops)
    assert torch.equal(first["teacher"], second["teacher"]) and not torch.equal(first["student"], second["student"])
    assert all(m.training for m in objective.teacher[1].modules())


def test_batches_that_cannot_work_are_one_sentence(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    cfg = tiny.config(tmp_path, "moco+queue", path)
    cfg.data.batch_size = 12
    with pytest.raises(ValueError, match=r"objective\.queue 8 is smaller than data\.batch_size 12"):
        build(cfg)
    cfg = tiny.config(tmp_path, "simclr", path)
    cfg.objective.temperature = 0.0
    with pytest.raises(ValueError, match=r"objective\.temperature 0\.0 must be greater than 0"):
        build(cfg)
    cfg = tiny.config(tmp_path, "barlow", path)
    cfg.data.micro_batch = 1
    with pytest.raises(ValueError, match="barlow compares samples of a batch"):
        build(cfg)


def test_small_batches_name_the_remedy(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    assert "fewer than 256" in build(tiny.config(tmp_path, "simclr", path)).remedy
    assert "objective.queue" in build(tiny.config(tmp_path, "moco", path)).remedy
    assert build(tiny.config(tmp_path, "moco+queue", path)).remedy is None
    assert build(tiny.config(tmp_path, "mae", path)).remedy is None
