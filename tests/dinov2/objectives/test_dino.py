import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dinov2.data.batch import Batch
from dinov2.distributed import average_gradients, mean, rank, world
from dinov2.models import build_encoder
from dinov2.objectives import losses
from dinov2.objectives.base import Now
from dinov2.objectives.dino import DINO
from tests.ranks import assert_rank_law

OPTICAL, SAR = [490, 560, 665, 842], [-1, -2, -5, -8]
SIZES = {"global": (2, 32), "local": (3, 16)}
NOW = Now(step=0, lr=0.0, weight_decay=0.0, momentum=0.9, teacher_temp=0.07)


def build(**options):
    torch.manual_seed(0)
    drop_path = options.pop("drop_path", 0.0)
    encoder = build_encoder(
        "vit_tiny",
        patch_size=8,
        img_size=32,
        embed_dim=16,
        depth=2,
        num_heads=2,
        drop_path=drop_path,
        attn_dim=24,
        attn_heads=4,
    )
    sizes = {"prototypes": 32, "hidden_dim": 24, "bottleneck_dim": 8, "local_crops": SIZES["local"][0]}
    objective = DINO(encoder, global_size=32, local_size=16, **{**sizes, **options})
    with torch.no_grad():  # a teacher unlike the student, heads that have opinions, a mask token that is not zero
        for name, p in objective.named_parameters():
            p += (0.5 if "heads" in name else 0.1) * torch.randn_like(p)
    return objective


def sample(position):
    """Everything of one sample as a function of its position: sensors, crops and masks. The first four hide nothing."""
    generator = torch.Generator().manual_seed(position)
    ids = torch.tensor(OPTICAL if position < 6 else SAR)
    views = {}
    for name, (count, size) in SIZES.items():
        shift = position / 6 - 1  # ranks differ in mean
        views[name] = {
            "imgs": torch.randn(count, 4, size, size, generator=generator) + shift,
            "chn_ids": ids.expand(count, 4),
            "spec_masks": torch.tensor([False, False, False, position % 3 == 0]).expand(count, 4),
        }
    hide = 0.0 if position < 4 else 0.1 * (position % 5)
    views["global"]["masks"] = torch.rand(SIZES["global"][0], 16, generator=generator) < hide
    return views


def make_batch(positions):
    """The samples at ``positions``, stacked crop-major."""
    samples = [sample(position) for position in positions]
    views = {
        name: {
            key: torch.stack([s[name][key][crop] for crop in range(count) for s in samples]) for key in samples[0][name]
        }
        for name, (count, _) in SIZES.items()
    }
    return Batch(views, torch.tensor(list(positions)), [f"s{p}" for p in positions])


def learn(objective, positions, now=NOW, rate=0.3):
    """One step of plain gradient descent; returns the loss terms."""
    objective.zero_grad()
    terms = objective(make_batch(positions), now)
    terms["loss"].backward()
    average_gradients(objective.parameters())
    with torch.no_grad():
        for p in objective.parameters():
            if p.requires_grad:
                p -= rate * p.grad
    objective.after_step(now)
    return terms


def two_steps(options):
    """Loss terms and all gradients of the second step: what the first left in teacher and centres is in them."""
    objective = build(**options)
    share = torch.arange(12).tensor_split(world())[rank()].tolist()
    learn(objective, share)
    terms = learn(objective, share)
    grads = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    centres = {name: b for name, b in objective.named_buffers() if name.startswith("centre_")}
    return {**{k: mean(v) for k, v in terms.items() if v.ndim == 0}, **grads, **centres}


def both_kinds():
    """Both centrings, shared and separate heads: one start of the processes serves them."""
    kinds = {
        "centering": {"centering": "centering"},
        "sinkhorn": {"centering": "sinkhorn", "separate_ibot_head": True},
    }
    return {f"{kind} {k}": v.detach() for kind, options in kinds.items() for k, v in two_steps(options).items()}


def test_ranks_equal_one_rank_with_other_sensors_and_hidden_patches_on_each():
    assert_rank_law(both_kinds)  # two ranks: one optical, one SAR; three: the first has no hidden patch


@pytest.mark.parametrize("options", [{}, {"separate_ibot_head": True, "centering": "sinkhorn"}])
@pytest.mark.parametrize("positions", [range(4), range(8, 12)], ids=["optical, nothing hidden", "SAR"])
def test_every_trainable_parameter_receives_a_finite_gradient(positions, options):
    objective = build(**options)
    objective(make_batch(positions), NOW)["loss"].backward()
    trainable = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, grad in trainable.items() if grad is None or not grad.isfinite().all()] == []
    assert all(p.grad is None for name, p in objective.named_parameters() if name.startswith("teacher_"))


def test_terms_add_up_and_the_embedding_is_the_students_first_crop():
    objective = build(ibot_weight=0.3, koleo_weight=0.2)
    batch = make_batch(range(3, 9))
    terms = objective(batch, NOW)
    total = terms["dino_local"] + terms["dino_global"] + 0.3 * terms["ibot"] + 0.2 * terms["koleo"]
    torch.testing.assert_close(terms["loss"].detach(), total)
    crops = batch.views["global"]
    cls = objective.encoder.forward_features(crops, masks=crops["masks"], fill=objective.mask_token[0])["cls"]
    torch.testing.assert_close(terms["embedding"], cls[:6].detach())


def test_loss_by_the_formula():
    """Everything multiplied out: teacher and student logits, all pairs, one image at a time."""
    objective, batch = build(), make_batch(range(3, 9))
    learn(objective, range(6))  # so that the centres are not 0
    crops, masks = batch.views["global"], batch.views["global"]["masks"]
    teacher = objective.teacher_encoder.forward_features(crops)
    student = objective.encoder.forward_features(crops, masks=masks, fill=objective.mask_token[0])
    head, their_head = objective.heads.of("cls"), objective.teacher_heads.of("cls")

    def targets(tokens, level):
        centre = their_head.prototypes @ objective.get_buffer(f"centre_{level}")
        return ((their_head(tokens) - centre) / NOW.teacher_temp).softmax(-1)

    def entropy(p, tokens):
        return -(p * (head(tokens) / 0.1).log_softmax(-1)).sum(-1)

    first, second = targets(teacher["cls"], "cls").chunk(2)
    own_first, own_second = student["cls"].chunk(2)
    local = objective.encoder(batch.views["local"]).chunk(3)
    pairs = 2 + 2 * 3
    dino_global = (entropy(second, own_first) + entropy(first, own_second)).mean() / pairs
    dino_local = sum((entropy(p, crop)).mean() for p in (first, second) for crop in local) / pairs
    ibot = 0.0
    for image in range(12):
        hidden = masks[image]
        if hidden.any():
            p = targets(teacher["patches"][image][hidden], "patch")
            ibot += entropy(p, student["patches"][image][hidden]).mean() / 12
    terms = objective(batch, NOW)
    p, q = torch.cat([second, first]), (head(student["cls"]) / 0.1).log_softmax(-1)
    divergence = (p * (p.log() - q)).sum(-1).mean()
    expected = {"dino_global": dino_global, "dino_local": dino_local, "ibot": ibot, "teacher_kl": divergence}
    torch.testing.assert_close({k: terms[k] for k in expected}, {k: v.detach() for k, v in expected.items()})


def test_centres_move_once_per_step_over_all_micro_batches():
    whole, parts = build(), build()
    whole(make_batch(range(12)), NOW)
    for positions in (range(5), range(5, 12)):
        parts(make_batch(positions), NOW)
    assert not whole.centre_cls.any()  # the batch that is being learnt from has no say in its own centre
    for objective in (whole, parts):
        objective.after_step(NOW)
        assert objective.centre_cls.any() and objective.centre_patch.any()
    torch.testing.assert_close(parts.centre_cls, whole.centre_cls)
    torch.testing.assert_close(parts.centre_patch, whole.centre_patch)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn"])
def test_resumed_is_bitwise_uninterrupted(centering):
    objective = build(centering=centering)
    learn(objective, range(6))
    saved = copy.deepcopy(objective.state_dict())
    expected = learn(objective, range(6, 12))["loss"]
    resumed = build(centering=centering)
    resumed.load_state_dict(saved)
    assert torch.equal(learn(resumed, range(6, 12))["loss"], expected)
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), objective.state_dict().values(), strict=True)
    )


def test_teacher_follows_without_dropping_paths_and_is_what_is_exported():
    objective = build(drop_path=0.5).train()
    assert objective.encoder.training and not any(m.training for m in objective.teacher_encoder.modules())
    crops = make_batch(range(4)).views["global"]
    with torch.no_grad():
        before = objective.export()(crops)  # caches the folded embedding
    learn(objective, range(4))
    with torch.no_grad():
        after = objective.export()(crops)
        fresh = copy.deepcopy(objective.teacher_encoder)
        fresh.patch_embed._cached = None
        torch.testing.assert_close(after, fresh(crops))
    assert (after - before).abs().max() > 1e-4
    students, at_start = dict(objective.named_parameters()), dict(build(drop_path=0.5).named_parameters())
    for name in ("encoder.cls_token", "heads.cls.last_layer.weight_v"):
        expected = 0.9 * at_start[f"teacher_{name}"] + 0.1 * students[name]
        torch.testing.assert_close(students[f"teacher_{name}"], expected)


def test_no_local_crops():
    objective = build(local_crops=0)
    assert [view.name for view in objective.views] == ["global"]
    terms = objective(make_batch(range(4, 8)), NOW)
    assert terms["dino_local"] == 0 and terms["loss"].isfinite()


def test_views_ask_for_masks_of_the_encoders_patches():
    crops, local = build(mask_probability=0.4, mask_ratio=(0.2, 0.3)).views
    assert (crops.count, crops.mask.kind, crops.mask.patch_size) == (2, "block", 8)
    assert (crops.mask.probability, crops.mask.ratio_range) == (0.4, (0.2, 0.3))
    assert (local.count, local.mask) == (3, None)


@pytest.mark.parametrize(
    "option,said",
    [
        ({"centering": "centring"}, "'centring' is neither"),
        ({"center_momentum": 1.5}, r"objective\.center_momentum 1\.5 a share"),
        ({"student_temp": 0.0}, r"objective\.student_temp 0\.0 must be greater than 0"),
        ({"local_crops": -1}, "a count >= 0.* they are -1"),
    ],
)
def test_options_that_cannot_be_are_named(option, said):
    with pytest.raises(ValueError, match=said):
        build(**option)


def test_logits_never_exist_for_all_rows(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 64)  # two rows of 32 prototypes
    small = build()(make_batch(range(8)), NOW)
    monkeypatch.undo()
    torch.testing.assert_close(build()(make_batch(range(8)), NOW), small)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn"])
def test_bfloat16_autocast_comes_close_to_float32(centering):
    grads = []
    for enabled in (False, True):
        objective = build(centering=centering)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = objective(make_batch(range(4, 12)), NOW)
        terms["loss"].backward()
        objective.after_step(NOW)
        parts = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
        assert all(g.dtype == torch.float32 for g in parts.values())
        grads.append((terms["loss"].item(), torch.cat([g.flatten() for g in parts.values()])))
    (loss, grad), (half_loss, half_grad) = grads
    assert half_loss == pytest.approx(loss, rel=0.01)
    assert torch.cosine_similarity(grad, half_grad, dim=0) > 0.99


def test_it_learns_to_tell_samples_apart():
    objective, batch = build(prototypes=64), make_batch(range(12))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(60):
        terms = objective(batch, replace(NOW, momentum=0.97, teacher_temp=0.04))
        optimizer.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 3.0)
        optimizer.step()
        objective.after_step(replace(NOW, momentum=0.97))
    uniform = 6 / 8 * math.log(64)  # what predicting nothing costs: six of the eight pairs are local
    assert terms["dino_local"] < 0.8 * uniform
    assert F.normalize(terms["embedding"], dim=1).std(0).mean() * 16**0.5 > 0.5  # 1 = spread over the sphere


def test_small_batches_name_the_remedy():
    assert "objective.koleo_weight=0" in build().check_batch(8, 8)
    assert "objective.centering=centering" in build(centering="sinkhorn").check_batch(256, 8)
    assert build(koleo_weight=0.0).check_batch(8, 8) is None and build().check_batch(64, 64) is None
