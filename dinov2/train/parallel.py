"""How the ranks of a run share an objective: whole on each of them, or in shards. An objective does not know which."""

from __future__ import annotations

from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinov2 import distributed
from dinov2.models.layers import Block
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.objectives.base import Objective

MODES = ("ddp", "fsdp")
ENTRANCES = ("embed", "compare", "encode")  # methods besides forward by which the loop enters an objective


def parallelise(objective: Objective, train: DictConfig, dtype: torch.dtype) -> Objective:
    """Prepare ``objective`` in place for its ranks; parameter names stay.

    ``ddp``: every rank holds everything, and gradients are averaged by one reduction after the backward pass
    (docs/decisions/0002 says why it is not torch's DistributedDataParallel). ``fsdp``: parameters, gradients and
    moments are sharded over all ranks (FSDP2, Zhao et al. 2023, arXiv 2304.11277); each block is gathered when it is
    used, everything else once per pass. Blocks are gathered in ``dtype``, the number format of their products (on a
    GPU); the rest, where products of parameters are made in full precision, in float32.
    """
    if train.parallel not in MODES:
        raise ValueError(f"train.parallel {train.parallel!r} is not one of {', '.join(MODES)}")
    blocks = [module for module in objective.modules() if isinstance(module, Block)]
    for block in blocks:
        if train.activation_checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if train.compile:
            block.compile()
    if train.parallel == "fsdp" and distributed.in_group():
        shard(objective, blocks, dtype)
    return objective


def shard(objective: Objective, blocks: list[Block], dtype: torch.dtype) -> None:
    """FSDP2 on every block, then on the objective as the root that owns all other parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if dtype == torch.float16:
        raise ValueError("train.precision float16 scales losses, which train.parallel=fsdp cannot: choose bfloat16")
    kind = distributed.device().type
    mesh = init_device_mesh(kind, (distributed.world(),))
    gathered = dtype if kind == "cuda" else torch.float32  # a CPU's layer norm takes no mixture of formats
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh)
    for module in objective.modules():
        if isinstance(module, SpectralPatchEmbed):
            module.keeps_fold = False  # a parameter that is gathered anew keeps its version, and maybe its address
    for name in ENTRANCES:
        if hasattr(objective, name):
            register_fsdp_forward_method(objective, name)


def is_sharded(parameter: Tensor) -> bool:
    """Whether this rank holds a shard of ``parameter`` only."""
    return hasattr(parameter, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` on every rank, gathered where it is sharded: all ranks must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def own(tensor: Tensor) -> Tensor:
    """This rank's shard, or all of a tensor that is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """``module.state_dict()`` with every tensor whole."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}
