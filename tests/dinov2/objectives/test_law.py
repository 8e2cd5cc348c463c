from dataclasses import replace

import pytest
import torch

from dinov2 import distributed
from dinov2.data.views import render
from dinov2.train.build import build
from tests import tiny
from tests.ranks import assert_rank_law


def gradients(path: str, objective: str, folder: str) -> dict[str, torch.Tensor]:
    """Loss and every gradient of the second batch of a run, as the trainer makes it on this rank."""
    from pathlib import Path

    own = Path(folder) / str(distributed.rank())  # ranks that write one file at once read halves of it
    own.mkdir(exist_ok=True)
    cfg = tiny.config(own, objective, Path(path))
    parts = build(cfg)
    with torch.no_grad():  # heads and tables that start at zero would hide what flows through them
        torch.manual_seed(1)
        for p in parts.objective.parameters():
            p += 0.05 * torch.randn_like(p)
    batch = render(next(parts.stream.batches(1)), parts.device)
    exact = {name: {**view, "imgs": view["imgs"].double()} for name, view in batch.views.items()}
    # float64: a bias before a normalisation has no gradient but rounding, which float32 would let differ
    terms = parts.objective.double()(replace(batch, views=exact), parts.schedules.now(1))
    terms["loss"].backward()
    distributed.average_gradients(parts.objective.parameters())
    grads = {name: p.grad for name, p in parts.objective.named_parameters() if p.requires_grad}
    return {"loss": distributed.mean(terms["loss"].detach()), **grads}


@pytest.mark.parametrize("objective", [*sorted(tiny.OBJECTIVES), "moco+queue"])
def test_ranks_equal_one_rank_from_shards_to_gradients(objective, tmp_path):
    """2 and 3 ranks see different samples, some only optical, some only radar ones."""
    path = tiny.shards(tmp_path / "shards")
    assert_rank_law(gradients, str(path), objective, str(tmp_path))


@pytest.mark.parametrize("objective", [*sorted(tiny.OBJECTIVES), "moco+queue"])
def test_every_trainable_parameter_receives_a_gradient(objective, tmp_path):
    grads = gradients(str(tiny.shards(tmp_path / "shards")), objective, str(tmp_path))
    assert all(g is not None for g in grads.values())
