import importlib.util

import pytest
import torch

from dinov2.models.layers import (
    Attention,
    Block,
    LayerScale,
    SwiGLU,
    attention_kernel,
    interpolate_positions,
    sdpa,
    sincos_positions,
    xformers_attention,
)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = Attention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = attention.qkv(x).view(2, 5, 3, 3, 4).unbind(2)
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 2).softmax(-1)  # sqrt(d) = 2
    expected = attention.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), expected)


def test_xformers_kernel_is_the_same_function() -> None:
    pytest.importorskip("xformers", reason="the optional extra xformers is not installed")
    if not torch.cuda.is_available():
        pytest.skip("xformers' kernel needs a GPU")
    q, k, v = torch.randn(3, 2, 4, 17, 32, device="cuda", dtype=torch.float16)
    torch.testing.assert_close(xformers_attention(q, k, v), sdpa(q, k, v), rtol=1e-2, atol=2e-3)


def test_kernel_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention_kernel("sdpa") is sdpa
    monkeypatch.setenv("EOSSL_ATTENTION", "fast")
    with pytest.raises(ValueError, match="'fast' is not one of sdpa, xformers"):
        attention_kernel.__wrapped__()


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_missing_extra_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="xformers is not installed: pip install"):
        attention_kernel("xformers")


def test_swiglu_hidden_size_is_two_thirds_rounded_up_to_eight() -> None:
    assert SwiGLU(32, 128).w3.weight.shape == (32, 88)


def test_layer_scale_only_where_asked_for() -> None:
    assert not any("gamma" in k for k in Block(8, 2).state_dict())
    block = Block(8, 2, layer_scale=0.25)
    assert isinstance(block.ls1, LayerScale) and torch.equal(block.ls2.gamma, torch.full((8,), 0.25))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="embed_dim 10 must be a multiple of num_heads 4"):
        Block(10, 4)


def test_unknown_feed_forward_is_refused() -> None:
    with pytest.raises(ValueError, match="'swishy' is not one of mlp, swiglu"):
        Block(8, 2, ffn="swishy")


# ---- stochastic depth


def test_dropped_samples_pass_unchanged_and_kept_ones_are_scaled() -> None:
    block = Block(8, 2, drop_path=0.5).train()
    x = torch.randn(6, 3, 8)
    out = block.add_branch(x, lambda t: torch.ones_like(t)) - x
    assert sorted(out[:, 0, 0].round(decimals=4).tolist()) == [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]


def test_expectation_is_the_branch() -> None:
    block = Block(8, 2, drop_path=0.3).train()
    x = torch.zeros(10, 1, 8)
    total = sum(block.add_branch(x, lambda t: torch.ones_like(t)) for _ in range(400)) / 400
    torch.testing.assert_close(total.mean(), torch.tensor(1.0))
    assert (total - 1).abs().max() < 0.2


def test_drop_path_follows_the_random_state_and_rests_in_evaluation() -> None:
    block, x = Block(8, 2, drop_path=0.5), torch.randn(6, 3, 8)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(block(x))
    assert torch.equal(*runs) and not torch.equal(runs[0], block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_one_sample_is_never_dropped() -> None:
    block, x = Block(8, 2, drop_path=0.9).train(), torch.randn(1, 3, 8)
    torch.testing.assert_close(block(x), block.eval()(x))


# ---- positions


def test_sincos_by_hand() -> None:
    """dim 4 has one frequency, 1: [sin column, cos column, sin row, cos row]."""
    positions = sincos_positions(4, 2, 3).view(2, 3, 4)
    one, two = torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    torch.testing.assert_close(positions[1, 2], torch.stack([two.sin(), two.cos(), one.sin(), one.cos()]))
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(6, 2, 2)


@pytest.mark.parametrize("offset, antialias", [(0.1, False), (0.0, True), (0.0, False)])
@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (16, 16), (1, 2), (37, 5)])
def test_interpolation_keeps_constants_and_gives_any_grid(
    grid: tuple[int, int], offset: float, antialias: bool
) -> None:
    out = interpolate_positions(torch.full((1, 16, 3), 2.5), grid, offset=offset, antialias=antialias)
    torch.testing.assert_close(out, torch.full((1, grid[0] * grid[1], 3), 2.5))


def test_interpolation_of_the_native_grid_is_the_table() -> None:
    table = torch.randn(1, 16, 3)
    assert interpolate_positions(table, (4, 4), offset=0.1) is table


def test_interpolation_is_row_major() -> None:
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)
    out = interpolate_positions(rows, (8, 4)).view(8, 4)
    assert torch.equal(out[:, 0], out[:, 3]) and (out[1:, 0] > out[:-1, 0]).all()
