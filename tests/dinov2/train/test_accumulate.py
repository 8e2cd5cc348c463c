from pathlib import Path

import pytest
import torch

from dinov2 import distributed
from dinov2.data.views import render
from dinov2.objectives.two_view import ROWS
from dinov2.train.accumulate import crop_major, loss_of_all, mean_of_losses
from dinov2.train.build import build
from dinov2.train.precision import Precision
from tests import tiny
from tests.ranks import assert_equal, assert_rank_law


def parts_of(path: str, name: str, folder: str, drop_path: float = 0.0, together: int | None = None):
    """``together``: so many samples of all ranks pass at once, of 12 in a step."""
    cfg = tiny.config(Path(folder), name, Path(path))
    cfg.model.drop_path = drop_path
    if together:
        cfg.data.batch_size, cfg.data.micro_batch = 12, together // distributed.world()
    return build(cfg)


def gradients(path: str, name: str, folder: str, together: int | None = None) -> dict[str, torch.Tensor]:
    """Terms and all gradients of the first step of a run."""
    parts = parts_of(path, name, folder, together=together)
    accumulate = loss_of_all if parts.exact else mean_of_losses
    raws = (raw for raw, _ in zip(parts.stream.batches(0), range(parts.stream.accumulation), strict=False))
    terms, embedding = accumulate(parts, raws, parts.schedules.now(0), Precision.choose("float32", parts.device))
    crops = 2 if name.split("+")[0] in ROWS else 1
    assert len(embedding) == crops * parts.stream.accumulation * parts.stream.micro_batch
    distributed.average_gradients(parts.objective.parameters())
    grads = {name: p.grad for name, p in parts.objective.named_parameters() if p.requires_grad}
    return {"loss": distributed.mean(terms["loss"]), **grads}


@pytest.mark.parametrize("objective", [*ROWS, "moco+queue"])
def test_exact_accumulation_has_the_gradient_of_one_batch(objective, tmp_path):
    path = str(tiny.shards(tmp_path / "shards"))
    one, exact = (gradients(path, name, str(tmp_path)) for name in (objective, f"{objective}+exact"))
    assert_equal(exact, one)
    plain = gradients(path, f"{objective}+accumulated", str(tmp_path))
    assert not torch.allclose(plain["encoder.cls_token"], one["encoder.cls_token"], rtol=1e-2)  # why the mode exists


def test_exact_accumulation_on_ranks(tmp_path):
    assert_rank_law(gradients, str(tiny.shards(tmp_path / "shards")), "barlow+exact", str(tmp_path))


def plain_gradients(path: str, folder: str) -> dict[str, torch.Tensor]:
    """Of every objective in turn, half of the batch at a time: one start of the processes serves them all.

    In units of the objective's largest, which says what rounding is.
    """
    found = {}
    for name in sorted(tiny.OBJECTIVES):
        grads = gradients(path, name, folder, together=6)
        largest = max(v.abs().max() for k, v in grads.items() if k != "loss")
        found |= {f"{name} {k}": v if k == "loss" else v / largest for k, v in grads.items()}
    return found


def test_plain_accumulation_on_ranks(tmp_path):
    assert_rank_law(plain_gradients, str(tiny.shards(tmp_path / "shards")), str(tmp_path))


def test_both_passes_drop_the_same_paths(tmp_path):
    """The gradient is that of graphs which were kept from the first pass."""
    path = str(tiny.shards(tmp_path / "shards"))
    precision = Precision.choose("float32", torch.device("cpu"))
    parts = parts_of(path, "byol+exact", str(tmp_path), drop_path=0.5)
    raws = [raw for raw, _ in zip(parts.stream.batches(0), range(6), strict=False)]
    torch.manual_seed(3)
    loss_of_all(parts, raws, parts.schedules.now(0), precision)

    kept = parts_of(path, "byol+exact", str(tmp_path), drop_path=0.5).objective
    torch.manual_seed(3)
    embedded = [kept.embed(render(raw, "cpu").views["crop"]) for raw in raws]
    kept.compare({name: crop_major([e[name] for e in embedded], 1) for name in embedded[0]})["loss"].backward()
    ours, theirs = (
        {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
        for objective in (parts.objective, kept)
    )
    assert_equal(ours, theirs)


def test_objectives_without_an_exact_form_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"train\.exact_accumulation: mae has no exact form; only simclr, moco"):
        parts_of(str(tiny.shards(tmp_path / "shards")), "mae+exact", str(tmp_path))
