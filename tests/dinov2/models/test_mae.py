import pytest
import torch

from dinov2.models.layers import sincos_positions
from dinov2.models.mae import NEIGHBOURS, MAEDecoder


@pytest.mark.parametrize(("dim", "heads"), [(64, 8), (64, 4), (40, 4), (24, 2)])
def test_every_head_starts_at_a_neighbour_of_its_own(dim: int, heads: int) -> None:
    """Of all places of a grid, a position finds the next patch in the head's direction most alike, and no other."""
    attention = MAEDecoder(24, dim, 1, heads).decoder_blocks[0].attn
    places = sincos_positions(dim, 5, 5).float()
    query, key = (places @ attention.qkv.weight.T).view(25, 3, heads, -1).permute(1, 2, 0, 3)[:2]  # [H, 25, d]
    logits = query @ key.mT  # [H, from, to]
    wanted = [(2 + row) * 5 + 2 + column for column, row in NEIGHBOURS[:heads]]
    assert logits[:, 12].argmax(1).tolist() == wanted  # from the middle
    first, second = logits[:, 12].topk(2).values.unbind(1)
    assert (first > second).all()


def test_a_model_on_the_meta_device_has_the_same_parameters() -> None:
    real = MAEDecoder(24, 32, 2, 4)
    with torch.device("meta"):
        planned = MAEDecoder(24, 32, 2, 4)
    assert all(p.is_meta for p in planned.parameters())
    assert {k: v.shape for k, v in planned.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
