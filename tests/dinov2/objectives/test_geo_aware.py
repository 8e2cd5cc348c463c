import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinov2.data.batch import Batch
from dinov2.data.geo import GeoTargets
from dinov2.distributed import average_gradients, mean, rank, world
from dinov2.models import build_encoder
from dinov2.objectives import build_objective
from dinov2.objectives.geo_aware import ERASED, GeoAware, erase, opposite, rectangle, similarity
from tests.ranks import assert_rank_law

CODES = (10, 20, 30)
ENCODERS = {
    "spectral": dict(name="vit_tiny", embed="spectral", attn_dim=24, attn_heads=4, embed_dim=16, depth=2, num_heads=2),
    "conv": dict(name="vit_tiny", embed="conv", in_chans=3, embed_dim=16, depth=5, num_heads=2),
    "phileo_cnn": dict(name="phileo_cnn", in_chans=3, embed_dim=12, dims=(8, 12, 16), depths=(1, 2, 1)),
    "phileo_vit": dict(name="phileo_vit", in_chans=3, embed_dim=16, depth=2, num_heads=2, latent_dim=12),
}


def build(kind: str, **options) -> GeoAware:
    torch.manual_seed(0)
    encoder = build_encoder(patch_size=4, img_size=16, **ENCODERS[kind])
    objective = build_objective(
        "geo_aware", encoder, **{"size": 16, "landcover_codes": CODES, "decoder_dim": 8, **options}
    )
    with torch.no_grad():  # codes that are not zero
        for p in objective.parameters():
            p += 0.05 * torch.randn_like(p)
    return objective


def make_batch(positions: list[int], bands: int = 3) -> Batch:
    """Two crops per sample, functions of its position; sensors differ where encoders can tell."""
    imgs, ids, targets = [], [], {}
    for p in positions:
        draw = torch.Generator().manual_seed(p)
        imgs.append(torch.randn(2, bands, 16, 16, generator=draw) + p / 6)
        ids.append(torch.tensor([490, 560, 665] if p % 2 else [-1, -2, 865])[:bands])
        fractions = torch.rand(7, generator=draw)
        sample = {"coords": torch.rand(4, generator=draw), "buildings": torch.rand(1, generator=draw)}
        sample |= {"clouds": F.normalize(fractions[:4], 1, 0), "landcover": F.normalize(fractions[4:], 1, 0)}
        for name, value in sample.items():
            targets.setdefault(name, []).append(value)
            targets.setdefault(f"{name}_weight", []).append(torch.tensor([1.0 if p % 3 else 0.25]))
    view = {"imgs": torch.stack(imgs, 1).flatten(0, 1), "chn_ids": torch.stack(ids).repeat(2, 1)}
    view["spec_masks"] = torch.zeros_like(view["chn_ids"], dtype=torch.bool)
    stacked = {name: torch.stack(values) for name, values in targets.items()}
    return Batch({"crop": view}, torch.tensor(positions), [f"s{p}" for p in positions], targets=stacked)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_term_by_hand(kind: str) -> None:
    """In float64, sample by sample, from the formulae of the publication."""
    objective, batch = build(kind).double().eval(), make_batch([4, 1, 3])
    view = batch.views["crop"]
    view["imgs"] = view["imgs"].double()
    batch = replace(batch, targets={k: v.double() for k, v in batch.targets.items()})
    view["spec_masks"][1, 2] = kind == "spectral"  # the first crop of sample 1 lacks a band
    terms = objective(batch)
    latent, image, embedding = objective.painter(
        objective.encoder, {**view, "imgs": erase(view["imgs"], batch.positions)}
    )
    assert torch.equal(terms["embedding"], embedding[:3])
    sums = dict.fromkeys(("reconstruction", "coords", "clouds", "buildings", "landcover"), 0.0)
    for row in range(6):
        wanted = {k: v[row % 3] for k, v in batch.targets.items()}
        y = {name: head(latent[row]) for name, head in objective.heads.items()}
        seen = ~view["spec_masks"][row]
        sums["reconstruction"] += (image[row, seen] - view["imgs"][row, seen]).square().mean() / 6
        squares = (y["coords"].sigmoid() - wanted["coords"]).square()
        latitude, longitude = squares[:2].mean(), squares[2:].mean()
        sums["coords"] += wanted["coords_weight"] * (latitude + longitude) / 2 / 6
        sums["buildings"] += wanted["buildings_weight"] * (y["buildings"].sigmoid() - wanted["buildings"]) ** 2 / 6
        for name in ("clouds", "landcover"):
            entropy = -(wanted[name] * y[name].log_softmax(0)).sum()
            sums[name] += wanted[f"{name}_weight"] * entropy / 6
    z0, z1 = latent.chunk(2)
    others = {0: 1, 1: 0, 2: 2}  # of positions 4, 1 and 3 the first and the last are partners, the middle its own
    cosine = F.cosine_similarity
    near = sum(1 - cosine(z0[i], z1[i], 0) for i in range(3)) / 3
    far = sum(cosine(z0[i], z1[j], 0).clamp(min=0) for i, j in others.items() if i != j) / 3
    distance = sum((z0[i] - z1[i]).norm() for i in range(3)) / 3
    sums["similarity"] = 1.5 * near + 0.5 * far + distance
    weights = {"clouds": 100, "buildings": 100}
    for name, value in sums.items():
        torch.testing.assert_close(terms[name], value.squeeze().detach(), rtol=1e-5, atol=1e-7)
    total = sum(weights.get(name, 1) * value.squeeze() for name, value in sums.items())
    torch.testing.assert_close(terms["loss"], total, rtol=1e-5, atol=1e-6)


def loss_and_gradients(kind: str) -> dict[str, torch.Tensor]:
    objective = build(kind)
    terms = objective(make_batch(torch.arange(12).tensor_split(world())[rank()].tolist()))
    terms["loss"].backward()
    average_gradients(objective.parameters())  # asserts that every trainable parameter has a gradient
    grads = {k: p.grad for k, p in objective.named_parameters() if p.requires_grad}
    return {"loss": mean(terms["loss"].detach()), **grads}


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["spectral", "phileo_cnn"])
def test_ranks_equal_one_rank(kind: str) -> None:
    assert_rank_law(loss_and_gradients, kind, worlds=(2,))


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_trainable_parameter_gets_a_gradient(kind: str) -> None:
    found = loss_and_gradients(kind)
    idle = {name for name, grad in found.items() if not grad.abs().max() > 0}
    assert all("embed_orbit" in name or "bias" in name for name in idle), idle  # of no channel here; before a norm


def test_partners_depend_on_positions_only() -> None:
    positions = torch.tensor([10, 30, 20, 40])
    assert positions[opposite(positions)].tolist() == [40, 20, 30, 10]


def test_similarity_falls_as_samples_part() -> None:
    """What the published term for different samples lacks: it pushes."""
    z = torch.tensor([[1.0, 0.0], [0.8, 0.6]], requires_grad=True)
    similarity(z, z.detach(), torch.tensor([1, 0])).backward()
    moved = F.normalize(z.detach() - 0.1 * z.grad)
    assert (moved[0] @ moved[1]) < 0.8


def test_erased_rectangles() -> None:
    imgs = torch.full((6, 2, 32, 32), 9.0)
    out = erase(imgs, torch.tensor([7, 8, 9]))
    share = (out != 9).float().mean((2, 3))
    assert ((share > ERASED[0] - 0.05) & (share < ERASED[1] + 0.05)).all() and (imgs == 9).all()
    assert torch.equal(share[:, 0], share[:, 1])  # one place in all channels
    assert torch.equal(erase(imgs[[1, 4]], torch.tensor([8])), out[[1, 4]])  # whatever else is in the batch
    assert not torch.equal(out[0] != 9, out[3] != 9)  # the crops of a sample differ
    noise = out[out != 9]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    boxes = [rectangle(20, np.random.default_rng(seed)) for seed in range(200)]
    assert all(0 <= t <= 20 - h and 0 <= left <= 20 - w for t, left, h, w in boxes)
    assert {h > w for _, _, h, w in boxes} == {True, False} and not math.isnan(sum(map(sum, boxes)))


def test_targets_that_are_left_out() -> None:
    objective = build("conv", clouds=None, landcover=None, coords=False)
    assert list(objective.heads) == ["buildings"] and objective.supervision.labels == {"buildings": "buildings"}
    assert isinstance(objective.supervision, GeoTargets)
    terms = objective(make_batch([0, 1]))
    assert terms.keys() == {"loss", "reconstruction", "buildings", "similarity", "embedding"}


@pytest.mark.parametrize("kind", ["spectral", "phileo_cnn"])
def test_it_learns(kind: str) -> None:
    """Buildings are where the first band is bright: the error falls far below that of the mean."""
    objective = build(kind, clouds=None, landcover=None, coords=False)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        batch = make_batch(list(range(8)))
        bright = torch.rand(8, generator=torch.Generator().manual_seed(step))
        batch.views["crop"]["imgs"][:, 0] = 4 * bright.repeat(2)[:, None, None] - 2
        batch.views["crop"]["chn_ids"][:] = torch.tensor([490, 560, 665])
        targets = {"buildings": bright[:, None], "buildings_weight": torch.ones(8, 1)}
        terms = objective(replace(batch, targets=targets))
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        losses.append(terms["buildings"].item())
    assert sum(losses[-5:]) / 5 < 0.04 < losses[0]  # the variance of a uniform number is 1/12
