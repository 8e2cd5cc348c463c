import pytest
import torch

from dinov2.data.batch import Batch
from dinov2.distributed import average_gradients, mean, rank, world
from dinov2.models import build_encoder
from dinov2.models.patch import patchify
from dinov2.objectives.mae import MAE, draw_scores, split_patches
from tests.ranks import assert_rank_law

SENSORS = ([490, 560, 665, 842], [443, 705, 2190, 0], [-1, -2, -5, -13])  # id 0: padding


def build(**options) -> MAE:
    torch.manual_seed(0)
    sizes = dict(embed_dim=16, depth=2, num_heads=2, attn_dim=24, attn_heads=4, terrain=True)
    encoder = build_encoder("vit_tiny", patch_size=4, img_size=16, **sizes)
    objective = MAE(encoder, size=16, decoder_dim=16, decoder_heads=2, **options)
    with torch.no_grad():  # codes that are not zero
        for p in objective.parameters():
            p += 0.05 * torch.randn_like(p)
    return objective


def make_batch(positions: list[int]) -> Batch:
    """Samples as functions of their position: sensor, padding, mask and mean, so that ranks differ."""
    views = {"imgs": [], "chn_ids": [], "spec_masks": [], "masks": []}
    for p in positions:
        generator = torch.Generator().manual_seed(p)
        views["imgs"].append(torch.randn(4, 16, 16, generator=generator) + p / 6)
        views["chn_ids"].append(torch.tensor(SENSORS[p // 4]))
        views["spec_masks"].append(views["chn_ids"][-1] == 0)
        hidden = torch.randperm(16, generator=generator)[:12]
        views["masks"].append(torch.zeros(16, dtype=torch.bool).index_fill(0, hidden, True))
    view = {k: torch.stack(v) for k, v in views.items()}
    return Batch({"image": view}, torch.tensor(positions), [f"s{p}" for p in positions])


def loss_and_gradients(options: dict) -> dict[str, torch.Tensor]:
    objective = build(**options)
    terms = objective(make_batch(torch.arange(12).tensor_split(world())[rank()].tolist()))
    terms["loss"].backward()
    average_gradients(objective.parameters())
    return {"loss": mean(terms["loss"].detach()), **{k: p.grad for k, p in objective.named_parameters()}}


@pytest.mark.distributed
def test_ranks_equal_one_rank() -> None:
    """Three ranks: optical only, optical with padding, SAR and terrain only; no parameter is without a gradient."""
    assert_rank_law(loss_and_gradients, {"target_bands": 3})


def test_loss_by_hand() -> None:
    """Mean over samples and chosen visible bands of the squared error of hidden, normalised patches."""
    objective, batch = build(target_bands=2).double(), make_batch([0, 5, 9])
    view = batch.views["image"]
    view["imgs"] = view["imgs"].double()
    scores = draw_scores(batch.positions, 4)
    losses = []
    for b in range(3):
        ids, mask = view["chn_ids"][b], view["masks"][b]
        keep = (~mask).nonzero()[:, 0][None]
        one = {k: v[b : b + 1] for k, v in view.items()}
        features = objective.encoder.forward_features(one, keep=keep)
        tokens = objective.decoder(features["cls"], features["patches"], keep, (4, 4))[:, mask]
        order = [int(c) for c in scores[b].argsort(descending=True) if ids[c] != 0][:2]
        for c in order:
            patches = patchify(one["imgs"], 4)[0, mask, c]  # [M, P2]
            target = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 1e-6).sqrt()
            prediction = objective.head(tokens, ids[None, c : c + 1])[0, 0]
            losses.append((prediction - target).square().mean())
    torch.testing.assert_close(objective(batch)["loss"], torch.stack(losses).mean())


def test_padding_changes_nothing() -> None:
    objective, batch = build(target_bands=2), make_batch([0, 5, 9])
    view = batch.views["image"]
    wide = {
        "imgs": torch.cat([view["imgs"], torch.full_like(view["imgs"], 99.0)], 1),
        "chn_ids": torch.cat([view["chn_ids"], torch.zeros_like(view["chn_ids"])], 1),
        "spec_masks": torch.cat([view["spec_masks"], torch.ones_like(view["spec_masks"])], 1),
        "masks": view["masks"],
    }
    padded = Batch({"image": wide}, batch.positions, batch.keys)
    torch.testing.assert_close(objective(padded)["loss"], objective(batch)["loss"])


def test_fewer_bands_than_targets() -> None:
    """A sample with one band is judged by this band; without spec_masks all bands count."""
    objective, batch = build(target_bands=4), make_batch([0])
    view = batch.views["image"]
    alone = {**view, "imgs": view["imgs"][:, :1], "chn_ids": view["chn_ids"][:, :1]}
    del alone["spec_masks"]
    hidden = {**view, "spec_masks": torch.tensor([[False, True, True, True]])}
    losses = [objective(Batch({"image": v}, batch.positions, batch.keys))["loss"] for v in (alone, hidden)]
    torch.testing.assert_close(*losses)


def test_hidden_pixels_do_not_reach_the_encoder() -> None:
    objective, batch = build(), make_batch([0, 1])
    expected = objective(batch)["embedding"]
    view = batch.views["image"]
    hidden = view["masks"].view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    view["imgs"] = view["imgs"].masked_fill(hidden, 1e6)
    torch.testing.assert_close(objective(batch)["embedding"], expected)


def test_draws_depend_on_the_position_only_and_reach_every_band() -> None:
    scores = draw_scores(torch.arange(3000), 10)
    torch.testing.assert_close(draw_scores(torch.tensor([2999, 5]), 10), scores[[2999, 5]])
    assert torch.equal(draw_scores(torch.tensor([5]), 13)[:, :10], scores[5:6])  # wider padding, same draw
    counts = scores.argmax(1).bincount(minlength=10)
    assert counts.min() > 240 and counts.max() < 360  # 300 expected, standard deviation 16
    assert len(scores.flatten().unique()) > 29_000  # neighbours do not share numbers


def test_masks_with_another_number_of_hidden_patches_are_our_mistake() -> None:
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[:, :11] = True
    with pytest.raises(AssertionError, match="wrong mask count"):
        split_patches(masks, 0.75)


@pytest.mark.parametrize("embed", ["spectral", "conv"])
def test_it_learns(embed: str) -> None:
    """Ramps that the bands share for the most part: the hidden patches become better than their mean (error 1)."""
    torch.manual_seed(0)
    bands = dict(in_chans=4) if embed == "conv" else dict(attn_dim=96, attn_heads=4)
    encoder = build_encoder("vit_tiny", 4, 16, embed=embed, embed_dim=32, depth=2, num_heads=4, **bands)
    objective = MAE(encoder, size=16, decoder_dim=32)
    assert objective.views[0].mask.kind == "random" and objective.views[0].bands == (4, 4 if embed == "conv" else 13)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    ramp = torch.linspace(-1, 1, 16)
    losses = []
    for step in range(80):
        slope = torch.randn(16, 1, 2, 1, 1) + 0.3 * torch.randn(16, 4, 2, 1, 1)
        imgs = slope[:, :, 0] * ramp[:, None] + slope[:, :, 1] * ramp
        masks = torch.rand(16, 16).argsort(1) < 12
        view = {"imgs": imgs, "chn_ids": torch.tensor([SENSORS[0]] * 16), "masks": masks}
        loss = objective(Batch({"image": view}, torch.arange(16) + 16 * step, [""] * 16))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and sum(losses[-10:]) / 10 < 0.7


def test_it_finds_out_where_patches_lie() -> None:
    """Smooth noise, each patch standardised: only its neighbours tell anything of a patch (else the error is 15/16)."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny", 4, 24, embed_dim=32, depth=1, num_heads=4, attn_dim=32, attn_heads=2)
    objective = MAE(encoder, size=24, mask_ratio=0.5, decoder_dim=32, decoder_depth=1)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        imgs = torch.nn.functional.interpolate(torch.randn(16, 1, 5, 5), (24, 24), mode="bicubic")
        masks = torch.rand(16, 36).argsort(1) < 18
        view = {"imgs": imgs, "chn_ids": torch.full((16, 1), 490), "masks": masks}
        loss = objective(Batch({"image": view}, torch.arange(16) + 16 * step, [""] * 16))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and sum(losses[-10:]) / 10 < 0.8


@pytest.mark.parametrize("ratio", [0.99, 0.01])
def test_some_patches_are_hidden_and_some_seen(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} hides .* of 16 patches"):
        build(mask_ratio=ratio)
