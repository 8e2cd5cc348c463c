import pytest
import torch

from eval.decoders import build_decoder
from eval.decoders.muster import WindowCrossAttention


def by_hand(layer: WindowCrossAttention, skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Pair by pair, for maps of whole windows: the grid begins ``shift`` pixels in, windows end at the border."""
    _, h, w, dim = x.shape
    size, shift, heads = layer.window, layer.shift, layer.heads
    q = layer.query(skip).unflatten(-1, (heads, -1))
    k, v = (t.unflatten(-1, (heads, -1)) for t in layer.key_value(x).chunk(2, -1))
    places = [(i, j) for i in range(h) for j in range(w)]
    cell = {p: tuple((c - shift) // size for c in p) for p in places}
    table = layer.bias.view(2 * size - 1, 2 * size - 1, heads)
    out = torch.zeros_like(skip)
    for p in places:
        near = [o for o in places if cell[o] == cell[p]]
        scores = torch.stack(
            [
                (q[:, *p] * k[:, *o]).sum(-1) / (dim // heads) ** 0.5
                + table[p[0] - o[0] + size - 1, p[1] - o[1] + size - 1]
                for o in near
            ]
        )  # [near, B, H]
        values = torch.stack([v[:, *o] for o in near])  # [near, B, H, d]
        out[:, *p] = (scores.softmax(0)[..., None] * values).sum(0).flatten(1)
    return layer.proj(out)


@pytest.mark.parametrize("window, shift", [(4, 0), (4, 2), (3, 1)])
@torch.no_grad()
def test_attention_in_windows_pair_by_pair(window, shift):
    torch.manual_seed(0)
    layer = WindowCrossAttention(8, heads=2, window=window, shift=shift)
    torch.nn.init.normal_(layer.bias)
    skip, x = torch.randn(2, 2, 2 * window, 3 * window, 8).unbind(0)
    torch.testing.assert_close(layer(skip, x), by_hand(layer, skip, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height, width", [(1, 1), (5, 3), (4, 8), (7, 9)])
def test_attention_of_any_size(height, width):
    layer = WindowCrossAttention(8, heads=2, window=4, shift=2)
    assert layer(torch.randn(2, height, width, 8), torch.randn(2, height, width, 8)).shape == (2, height, width, 8)


def test_stochastic_depth_in_training_only():
    torch.manual_seed(0)
    model = build_decoder("muster", [16] * 4, 2, channels=8, window=3, heads=(4, 2, 2, 1), drop_path=0.5, dropout=0.0)
    block, x = model.stages[-1].blocks[-1], torch.randn(64, 3, 3, 4)
    assert block.drop_path == 0.5 and model.stages[0].blocks[0].drop_path == 0.0
    factor = block.keep(x).flatten()
    assert set(factor.tolist()) == {0.0, 2.0}
    assert block.eval().keep(x).flatten().unique().tolist() == [1.0]


@pytest.mark.parametrize("widths, pyramid", [([16, 16, 16, 32], False), ([16] * 3, False), ([16] * 4, True)])
def test_widths_that_do_not_fit_are_named(widths, pyramid):
    with pytest.raises(ValueError, match="muster needs (4 )?maps of"):
        build_decoder("muster", widths, 2, pyramid=pyramid)
