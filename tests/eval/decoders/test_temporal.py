import pytest
import torch

from eval.decoders import build_decoder, build_neck
from eval.decoders.temporal import LTAE, StackNeck, date_encoding

DAYS = torch.tensor([[3, 40, 200, 355], [10, 20, 30, 40]])


@pytest.fixture
def model() -> LTAE:
    torch.manual_seed(0)
    model = LTAE(8, heads=2, mlp=(12, 6)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 4, 8, 3, 5, generator=torch.Generator().manual_seed(1))


def test_padding_changes_nothing(model, x):
    junk = torch.full_like(x[:, :2], torch.nan)
    padded = torch.cat([x, junk], 1)
    padding = torch.tensor([[False] * 4 + [True] * 2] * 2)
    days = torch.cat([DAYS, torch.zeros(2, 2, dtype=torch.long)], 1)
    torch.testing.assert_close(model(padded, days, padding), model(x, DAYS), rtol=1e-4, atol=1e-5)


def test_order_of_dates_does_not_matter_but_the_dates_do(model, x):
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[:, order], DAYS[:, order]), model(x, DAYS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x[:, order]), model(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x, DAYS[:, order]), model(x, DAYS), atol=1e-2)


def test_positions_are_independent(model, x):
    y = model(x, DAYS)
    x[0, :, :, 1, 2] = torch.randn(4, 8)
    changed = (model(x, DAYS) - y).abs().sum(1) > 1e-5
    assert changed.nonzero().tolist() == [[0, 1, 2]]


def test_a_pixel_without_any_date_is_finite(model, x):
    assert model(x, DAYS, torch.ones(2, 4, dtype=torch.bool)).isfinite().all()


def test_attention_weights_sum_to_one_and_padded_ones_are_zero(model):
    padding = torch.tensor([[False, True, False], [False, False, False]])
    weights = model.attention(torch.randn(2, 3, 12), padding)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 2))
    assert (weights[0, :, 1] == 0).all() and (weights[1] > 0).all()


def test_date_encoding_by_hand():
    code = date_encoding(torch.tensor([[0, 90]]), dim=8, heads=2, period=100.0)
    expected = torch.tensor([90.0, 90.0, 9.0, 9.0])
    expected = torch.stack([expected[0].sin(), expected[1].cos(), expected[2].sin(), expected[3].cos()])
    torch.testing.assert_close(code[0, 0], torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(code[0, 1], expected.repeat(2))


def test_widths_must_fit_the_heads():
    with pytest.raises(ValueError, match="must be multiples of 16, the heads"):
        LTAE(24)


def test_levels_of_different_width_leave_with_one():
    neck = build_neck("ltae", [4, 8], heads=2)
    maps = neck([torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 8, 2, 2)])
    assert neck.out_channels == [8, 8] and [m.shape[1:] for m in maps] == [(8, 5, 5), (8, 2, 2)]


def test_linear_neck_is_a_weighted_sum_without_padded_dates():
    neck = build_neck("linear", [2], frames=3)
    neck.over_time.weight.data = torch.tensor([[1.0, 10.0, 100.0]])
    neck.over_time.bias.data = torch.tensor([0.5])
    x = torch.arange(1.0, 4).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4)
    padding = torch.tensor([[False, False, True]])
    assert neck([x])[0].shape == (1, 2, 4, 4)
    assert neck([x])[0].unique().tolist() == [321.5]
    assert neck([x], padding=padding)[0].unique().tolist() == [21.5]


@pytest.mark.parametrize("name", ["linear", "fcn"])
def test_neck_and_decoder_learn_which_date_matters(name):
    # the class is written in one of four dates only, and only its day says in which
    torch.manual_seed(0)
    n, dim = 64, 16
    target = torch.randint(2, (n, 2, 2))
    x, days = torch.randn(n, 4, dim, 2, 2), torch.stack([torch.randperm(4) * 90 for _ in range(n)])
    signal = (days == 180).nonzero()
    x[signal[:, 0], signal[:, 1], 0] += 6 * (target.float() - 0.5)
    neck = build_neck("ltae", [dim], heads=4, dropout=0.0)
    options = {"channels": 8, "convs": 1} if name == "fcn" else {}
    decoder = build_decoder(name, neck.out_channels, 2, **options)
    optimiser = torch.optim.Adam([*neck.parameters(), *decoder.parameters()], 1e-2)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(decoder(neck([x], days), (2, 2)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    neck.eval(), decoder.eval()
    assert (decoder(neck([x], days), (2, 2)).argmax(1) == target).double().mean() > 0.9


def test_stacked_dates_lie_side_by_side_within_a_feature():
    x = torch.arange(2 * 3 * 4 * 2 * 2).float().view(2, 3, 4, 2, 2)  # [B, T, D, h, w]
    neck = StackNeck([4], frames=3)
    (y,) = neck([x], padding=torch.tensor([[False, False, False], [False, False, True]]))
    assert neck.out_channels == [12] and y.shape == (2, 12, 2, 2)
    for t in range(3):
        for d in range(4):
            assert torch.equal(y[0, 3 * d + t], x[0, t, d])
    assert (y[1, 2::3] == 0).all() and torch.equal(y[1, 0::3], x[1, 0])
