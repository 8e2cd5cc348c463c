"""The written count of a step's operations against what torch counts while it is made."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from dinov2.data.views import render
from dinov2.train.build import build
from dinov2.train.flops import peak_flops, sample_flops
from tests import tiny

CPU_ATTENTION = {  # counted as 0 by default
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop(
        q, k, v
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop(g, q, k, v)
    ),
}


@pytest.mark.parametrize("name", sorted(tiny.OBJECTIVES))
def test_formula_counts_what_a_step_does(name, tmp_path):
    cfg = tiny.config(tmp_path, name, tiny.shards(tmp_path / "shards"))
    cfg.model.embed_dim, cfg.model.depth, cfg.model.num_heads = 96, 4, 4
    parts = build(cfg)
    batch = render(next(parts.stream.batches(0)), parts.device)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        parts.objective(batch, parts.schedules.now(0))["loss"].backward()
    counted = counter.get_total_flops() / cfg.data.batch_size
    assert sample_flops(parts.objective) == pytest.approx(counted, rel=0.01)


def test_a_device_is_measured():
    assert 1e9 < peak_flops(torch.device("cpu"), torch.float32) < 1e13
