import copy

import pytest
import torch
from torch import nn

from dinov2.distributed import average_gradients, mean, rank, world
from dinov2.models.heads import DINOHead, GlobalBatchNorm, GlobalBatchNorm2d, mlp_head, with_global_norm
from tests.ranks import assert_rank_law


def test_global_batch_norm_is_batch_norm_on_one_rank():
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm(5), nn.BatchNorm1d(5)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = torch.randn(8, 5) * 3 + 2
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_global_batch_norm_of_maps_replaces_the_usual_one():
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()))
    ours = with_global_norm(copy.deepcopy(theirs))
    assert isinstance(ours[1][0], GlobalBatchNorm2d)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(2):
        x = torch.randn(4, 3, 6, 7) * 3 + 2
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_global_batch_norm_needs_two_rows():
    with pytest.raises(ValueError, match="at least 2 samples"):
        GlobalBatchNorm(5)(torch.zeros(1, 5))


def projected():
    torch.manual_seed(0)
    head = mlp_head(6, 8, 4, 3)
    x = torch.randn(12, 6) + torch.linspace(-2, 2, 12)[:, None]  # ranks differ in mean
    loss = (head(x.tensor_split(world())[rank()]) - 1).square().sum(1).mean()
    loss.backward()
    average_gradients(head.parameters())
    grads = {name: p.grad for name, p in head.named_parameters()}
    buffers = {name: b for name, b in head.named_buffers() if "running" in name}
    return {"loss": mean(loss.detach()), **grads, **buffers}


def test_ranks_equal_one_rank():
    assert_rank_law(projected)


def test_layers_of_a_head():
    assert isinstance(mlp_head(6, 8, 4, 1), nn.Linear)
    widths = [
        (m.in_features, m.out_features) for m in mlp_head(6, 8, 4, 3, norm=False).modules() if hasattr(m, "in_features")
    ]
    assert widths == [(6, 8), (8, 8), (8, 4)]
    assert not any(isinstance(m, GlobalBatchNorm) for m in mlp_head(6, 8, 4, 3, norm=False).modules())


def test_prototypes_have_length_g_whatever_v():
    head = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=5)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(7)
        head.last_layer.weight_g.mul_(3)
    torch.testing.assert_close(head.prototypes.norm(dim=1), torch.full((9,), 3.0))
    torch.testing.assert_close(head.bottleneck(torch.randn(4, 6)).norm(dim=1), torch.ones(4))
    assert head(torch.randn(2, 3, 6)).shape == (2, 3, 9)


def test_bottleneck_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert DINOHead(6, 9, hidden_dim=8, bottleneck_dim=5).bottleneck(torch.randn(4, 6)).dtype == torch.float32
