import pytest
import torch
import torch.nn.functional as F

from dinov2.data.resize import resize, resize_matrix

SIZES = [(1, 1), (1, 7), (5, 98), (11, 14), (32, 32), (33, 98), (66, 64), (150, 224), (264, 224), (264, 98), (97, 13)]


def interpolate(x, size):
    return F.interpolate(x[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


@pytest.mark.parametrize("pixels,size", SIZES)
@pytest.mark.parametrize("other", [3, 70])
def test_equals_interpolate_antialias(pixels, size, other):
    x = torch.randn(2, pixels, other, generator=torch.Generator().manual_seed(pixels))
    window, flips = torch.tensor([[pixels, other]]), torch.zeros(1, 2, dtype=torch.bool)
    out = resize(x, torch.tensor([0, 0]), window, flips, (size, 31))
    assert torch.allclose(out, interpolate(x, (size, 31)), atol=1e-5)


def test_windows_of_different_size_in_one_call_and_garbage_outside_of_them():
    windows = [(9, 40), (37, 12), (40, 40), (1, 2)]
    x = torch.randn(len(windows), 40, 40, generator=torch.Generator().manual_seed(0)) * 1000
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    out = resize(x, torch.arange(len(windows)), torch.tensor(windows), flips, (28, 28))
    for k, (h, w) in enumerate(windows):
        expected = interpolate(x[k : k + 1, :h, :w], (28, 28)).flip([a for a in (1, 2) if flips[k, a - 1]])
        assert torch.allclose(out[k], expected[0], atol=1e-3)  # values are of the order of 1000


def test_same_size_is_the_identity_and_flips_reverse():
    x = torch.arange(12.0).view(1, 3, 4)
    window, one = torch.tensor([[3, 4]]), torch.tensor([0])
    assert torch.equal(resize(x, one, window, torch.tensor([[False, False]]), (3, 4)), x)
    assert torch.equal(resize(x, one, window, torch.tensor([[True, False]]), (3, 4)), x.flip(1))
    assert torch.equal(resize(x, one, window, torch.tensor([[False, True]]), (3, 4)), x.flip(2))


@pytest.mark.parametrize("length,rows", [(1, 5), (7, 3), (20, 20), (13, 64)])
def test_matrix_rows_sum_to_one_and_stay_inside_the_window(length, rows):
    matrix = resize_matrix(torch.tensor([length]), torch.tensor([False]), rows, 24)[0]
    assert torch.allclose(matrix.sum(1), torch.ones(rows))
    assert (matrix >= 0).all() and (matrix[:, length:] == 0).all()
