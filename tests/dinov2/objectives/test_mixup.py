from pathlib import Path

import pytest
import torch

from dinov2 import distributed
from dinov2.data.render import render
from dinov2.objectives.mixup import mixed, mixed_correlation, partners
from dinov2.train import schema
from dinov2.train.build import build
from tests import tiny, tiny_series
from tests.ranks import assert_rank_law


def test_partners_are_a_permutation_that_the_positions_alone_decide():
    positions = torch.tensor([40, 42, 44, 41, 43, 45])
    partner, share = partners(positions)
    assert sorted(partner.tolist()) == list(range(6)) and 0 < share < 1
    again, same = partners(positions.flip(0))
    assert same == share and torch.equal(positions.flip(0)[again].flip(0), positions[partner])
    assert partners(positions + 6)[1] != share


def test_numbers_are_mixed_date_by_date_and_padding_gives_way():
    valid = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
    days = torch.tensor([[1, 2], [3, 0], [4, 0], [5, 6]])
    crops = {"s2": torch.arange(8.0).view(4, 2, 1), "s2_days": days, "s2_valid": valid}
    out = mixed(crops, torch.tensor([1, 0]), 0.25)
    assert out["s2"][0, 0, 0] == 0.25 * 0 + 0.75 * 6 and out["s2"][1, 0, 0] == 0.25 * 2 + 0.75 * 4
    assert out["s2_valid"].tolist() == [[True, True], [True, False]]
    assert out["s2_days"].tolist() == [[1, 2], [3, 0]]


def test_a_blend_of_projections_has_no_loss_and_another_has():
    torch.manual_seed(0)
    z0, z1 = torch.randn(2, 64, 5).double()
    z1 = z0  # blends of standardised views are then standardised up to a factor per dimension
    partner = torch.arange(64)
    assert mixed_correlation(z0, z1, z0, partner, 0.3) < 1e-20
    assert mixed_correlation(z0, z1, torch.randn(64, 5).double(), partner, 0.3) > 1


def test_the_loss_by_hand():
    torch.manual_seed(0)
    z0, z1, blend = torch.randn(3, 8, 4).double()
    partner, a = torch.randperm(8), 0.6
    n = [(z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z0, z1, blend)]
    want = 0
    for z in n[:2]:
        c = [x.T @ z / 8 for x in (n[2], n[0], n[1][partner])]
        want += ((c[0] - a * c[1] - (1 - a) * c[2]) ** 2).sum()
    torch.testing.assert_close(mixed_correlation(z0, z1, blend, partner, a), want)


def gradients(path: str, folder: str) -> dict[str, torch.Tensor]:
    own = Path(folder) / str(distributed.rank())
    own.mkdir(exist_ok=True)
    raw = tiny_series.raw_config("barlow", Path(path))
    raw["objective"]["mixup"] = 1.0
    parts = build(schema.load(tiny.write_config(own / "c.yaml", raw)))
    batch = render(next(parts.stream.batches(1)), parts.device)
    view = {k: v.double() if v.is_floating_point() else v for k, v in batch.views["crop"].items()}
    batch.views["crop"].update(view)
    terms = parts.objective.double()(batch, parts.schedules.now(1))
    assert terms["mixup"] > 0 and "projected" not in terms
    terms["loss"].backward()
    distributed.average_gradients(parts.objective.parameters())
    grads = {name: p.grad for name, p in parts.objective.named_parameters() if p.requires_grad}
    return {"loss": distributed.mean(terms["loss"].detach()), **grads}


@pytest.mark.distributed
def test_ranks_equal_one_rank(tmp_path):
    assert_rank_law(gradients, str(tiny_series.shards(tmp_path / "shards")), str(tmp_path), worlds=(2,))


def test_images_and_exact_accumulation_are_refused(tmp_path):
    raw = tiny.raw_config("barlow", tiny.shards(tmp_path / "shards"))
    raw["objective"]["mixup"] = 1.0
    parts = build(schema.load(tiny.write_config(tmp_path / "c.yaml", raw)))
    with pytest.raises(ValueError, match="mixes pixel series"):
        parts.objective(render(next(parts.stream.batches(0)), parts.device), parts.schedules.now(0))
    raw["train"]["exact_accumulation"] = True
    with pytest.raises(ValueError, match="no exact form of objective.mixup"):
        build(schema.load(tiny.write_config(tmp_path / "c.yaml", raw)))
