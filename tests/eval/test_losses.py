import math

import pytest
import torch
import torch.nn.functional as F

from eval.losses import LOSSES, build_loss, class_weights, dice


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> torch.Tensor:
    target = torch.randint(4, (3, 5, 6), generator=torch.Generator().manual_seed(1))
    target[0, :2], target[2] = -1, -1  # a part of one image, and the whole of another
    return target


def loss_of(name: str):
    return build_loss(name, distribution=[0.4, 0.3, 0.2, 0.1])


def test_cross_entropy_is_the_mean_over_labelled_pixels(logits, target):
    torch.testing.assert_close(
        loss_of("cross_entropy")(logits, target), F.cross_entropy(logits, target, ignore_index=-1)
    )


def test_weights_by_hand():
    logits = torch.zeros(1, 2, 2)  # two pixels, each loss is log 2 whatever its class
    logits[0, 1, 1] = math.log(3)  # but for the second: -log(1/4) if its class is 0
    weighted = build_loss("weighted_cross_entropy", distribution=[0.5, 0.25])  # weights 2 and 4
    expected = (4 * math.log(2) + 2 * math.log(4)) / 6
    assert weighted(logits, torch.tensor([[1, 0]])).item() == pytest.approx(expected)
    given = build_loss("weighted_cross_entropy", weights=[2.0, 4.0])
    assert given(logits, torch.tensor([[1, 0]])).item() == pytest.approx(expected)


def test_dice_by_hand():
    # one logit: chances 1/2 and 1/2 for a truth of 1 and 0, a third pixel ignored: 1 - 2 * 0.5 / (1 + 1)
    assert dice(torch.zeros(1, 1, 3), torch.tensor([[1, 0, -1]])).item() == pytest.approx(0.5)
    # two classes: perfect and sure
    assert dice(torch.tensor([[[20.0, -20], [-20, 20]]]), torch.tensor([[0, 1]])).item() == pytest.approx(0, abs=1e-5)
    # the mean over two images, the second all wrong
    both = torch.tensor([[[20.0, -20], [-20, 20]], [[-20.0, 20], [20, -20]]])
    assert dice(both, torch.tensor([[0, 1], [0, 1]])).item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "weighted_cross_entropy", "dice"])
def test_ignored_pixels_change_nothing(name, logits, target):
    loss = loss_of(name)
    loss(logits, target).backward()
    ignored = (target == -1)[:, None].expand_as(logits)
    assert (logits.grad[ignored] == 0).all() and (logits.grad[~ignored] != 0).any()
    moved = torch.where(ignored, torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(moved, target), loss(logits, target))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_is_zero_with_zero_gradient(name):
    logits = torch.randn(2, 1 if name in ("bce", "mse") else 4, 3, 3).requires_grad_()
    nothing = torch.full((2, 3, 3), torch.nan) if name == "mse" else torch.full((2, 3, 3), -1)
    loss = loss_of(name)(logits, nothing)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_bce_of_pixels_and_of_labels():
    bce = build_loss("bce", ignore_index=255)
    logits, target = torch.tensor([[[0.0, 2.0, 9.0]]]), torch.tensor([[1, 0, 255]])
    assert bce(logits, target).item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2)
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    torch.testing.assert_close(bce(logits[0], labels), F.binary_cross_entropy_with_logits(logits[0], labels))


def test_mse_leaves_unknown_targets_out():
    values = torch.tensor([[[1.0, 5.0, 2.0]]], requires_grad=True)
    loss = build_loss("mse")(values, torch.tensor([[0.0, torch.nan, 5.0]]))
    loss.backward()
    assert loss.item() == pytest.approx((1 + 9) / 2)
    assert values.grad.tolist() == [[[1.0, 0.0, -3.0]]]


def test_requests_that_cannot_be_met():
    with pytest.raises(ValueError, match="unknown loss 'focal'; known: cross_entropy"):
        build_loss("focal")
    with pytest.raises(ValueError, match="needs the class shares"):
        build_loss("weighted_cross_entropy")
    with pytest.raises(ValueError, match=r"no training pixel of class \[1\]"):
        class_weights([0.5, 0.0, 0.5])
