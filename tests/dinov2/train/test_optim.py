import pytest
import torch
from torch import nn

from dinov2.objectives.base import Now
from dinov2.train.optim import build_optimizer, clip_gradients, parameter_groups, set_rates

OPTIM = {
    "lr": 0.1,
    "betas": [0.9, 0.999],
    "layer_decay": 1.0,
    "patch_embed_lr": 1.0,
    "lr_multipliers": {},
    "freeze": {},
}


def named(*names, shape=(2, 2)):
    return [(name, nn.Parameter(torch.ones(shape))) for name in names]


def by_name(groups, key):
    return {name: group[key] for group in groups for name in group["names"]}


def now(step, lr=0.1, weight_decay=0.5):
    return Now(step=step, lr=lr, weight_decay=weight_decay, momentum=1.0, teacher_temp=0.07)


class Small(nn.Module):
    """An encoder and a head, of the names that groups look at."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.ModuleDict(
            {"blocks": nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), "norm": nn.LayerNorm(4)}
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.encoder["blocks"]:
            x = x + block(x)
        return self.head(self.encoder["norm"](x))


@pytest.mark.parametrize("block", ["encoder.blocks.{i}.w", "encoder.blocks.0.{i}.w"])
def test_the_rate_falls_by_layer_for_plain_and_chunked_names(block):
    blocks = [block.format(i=i) for i in range(12)]  # twelve: an index of two digits
    groups = parameter_groups(named("encoder.pos_embed", "mask_token", *blocks, "head.w"), layer_decay=0.5)
    rate = by_name(groups, "lr_multiplier")
    assert rate["encoder.pos_embed"] == rate["mask_token"] == 0.5**13
    assert [rate[b] for b in blocks] == [0.5 ** (12 - i) for i in range(12)]
    assert rate["head.w"] == 1.0


def test_blocks_outside_the_encoder_do_not_count():
    rate = by_name(
        parameter_groups(named("encoder.blocks.0.w", "decoder.blocks.7.w"), layer_decay=0.5), "lr_multiplier"
    )
    assert rate == {"encoder.blocks.0.w": 0.5, "decoder.blocks.7.w": 1.0}


def test_multipliers_multiply_and_the_last_freeze_wins():
    parameters = named("encoder.patch_embed.proj.w", "encoder.blocks.0.w", "head.w")
    groups = parameter_groups(
        parameters,
        patch_embed_lr=0.2,
        lr_multipliers={"encoder": 0.5, r"blocks\.0": 0.1},
        freeze={"encoder": 7, "blocks": 3},
    )
    assert list(by_name(groups, "lr_multiplier").values()) == pytest.approx([0.1, 0.05, 1.0])
    assert list(by_name(groups, "freeze_steps").values()) == [7, 3, 0]


def test_vectors_do_not_decay_and_frozen_parameters_are_left_out():
    still = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    groups = parameter_groups([*named("a.weight"), *named("b.bias", shape=(2,)), ("teacher.w", still)])
    assert by_name(groups, "wd_multiplier") == {"a.weight": 1.0, "b.bias": 0.0}


@pytest.mark.parametrize("option", ["lr_multipliers", "freeze"])
def test_a_regex_that_is_found_nowhere_is_an_error(option):
    with pytest.raises(ValueError, match=f"{option}.*'hed'"):
        parameter_groups(named("head.w"), **{option: {"hed": 1}})


@pytest.mark.parametrize("option", ["lr_multipliers", "freeze"])
def test_a_pattern_that_is_no_regex_is_an_error(option):
    with pytest.raises(ValueError, match=f"optim.{option}: '\\(' is no regular expression"):
        parameter_groups(named("head.w"), **{option: {"(": 1}})


def test_frozen_steps_leave_parameters_as_they_are():
    model = Small()
    optimizer = build_optimizer(model, OPTIM | {"freeze": {"head": 2}})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(3):
        set_rates(optimizer, now(step))
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert {name.split(".")[0] for name in moved} == ({"encoder"} if step < 2 else {"encoder", "head"})


def test_adamw_by_hand():
    p = nn.Parameter(torch.tensor([[2.0]]))
    model = nn.Module()
    model.register_parameter("w", p)
    optimizer = build_optimizer(model, OPTIM)
    m = v = 0.0
    expected = 2.0
    for step, grad in enumerate([0.3, -0.2, 0.5], start=1):
        set_rates(optimizer, now(step, lr=0.1 / step, weight_decay=0.2 * step))
        p.grad = torch.tensor([[grad]])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)  # Loshchilov & Hutter, algorithm 2
        expected -= (0.1 / step) * (0.2 * step * expected + update)
        assert p.item() == pytest.approx(expected, rel=1e-5)


def trained(steps, model, optimizer):
    for step in steps:
        set_rates(optimizer, now(step))
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 8).view(2, 4) * (step + 1)).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_resumed_optimiser_is_bitwise_the_uninterrupted_one():
    model = Small()
    uninterrupted = trained(range(6), model, build_optimizer(model, OPTIM))
    model = Small()
    optimizer = build_optimizer(model, OPTIM)
    trained(range(3), model, optimizer)
    saved = optimizer.state_dict()
    resumed = build_optimizer(model, OPTIM)
    resumed.load_state_dict(saved)
    assert torch.equal(trained(range(3, 6), model, resumed), uninterrupted)


def test_clipping_is_global_and_returns_the_norm_before():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([2.0, 4.0]), torch.tensor([4.0])
    named = {"encoder.blocks.0.a": a, "head.b": b}.items()
    norms = {name: norm.item() for name, norm in clip_gradients(named, 3.0).items()}
    assert norms == pytest.approx({"grad_norm": 6.0, "grad_norm/blocks": 20**0.5, "grad_norm/heads": 4.0})
    assert torch.cat([a.grad, b.grad]).tolist() == pytest.approx([1.0, 2.0, 2.0], rel=1e-5)
    assert clip_gradients(named, 30.0)["grad_norm"].item() == pytest.approx(3.0, rel=1e-5)
    assert a.grad.tolist() == pytest.approx([1.0, 2.0], rel=1e-5)
