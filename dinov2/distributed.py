"""Ranks. Everything else in the project is written as if there were one process.

The only collectives a loss may use are :func:`gather`, :func:`mean` and :func:`sum_`: each is differentiable, and the
identity on one process. Their gradients follow one law: *the mean over ranks of the gradients that each rank computes
equals the gradient of the loss computed on one rank with the whole batch*.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=10)


def device() -> torch.device:
    """This rank's device."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def init(timeout: datetime.timedelta = TIMEOUT) -> None:
    """Join the process group that torchrun (or a launcher that sets the same variables) describes.

    ``timeout`` is how long a rank waits for the others in a collective.
    """
    if dist.is_initialized() or "RANK" not in os.environ:
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    dist.init_process_group("nccl" if device().type == "cuda" else "gloo", timeout=timeout)


def teardown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process' rank, 0 on one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    """All-gather along dim 0; backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        out = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(out, x.contiguous())
        return torch.cat(out)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Sum(torch.autograd.Function):
    """Sum over ranks; backward sums the gradients as well (every rank's loss depends on every rank's input)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def gather(x: Tensor) -> Tensor:
    """``[B, ...] -> [W*B, ...]`` in rank order, differentiable. B must be equal on all ranks."""
    return x if world() == 1 else _Gather.apply(x)


def sum_(x: Tensor) -> Tensor:
    """Sum over ranks, differentiable."""
    return x if world() == 1 else _Sum.apply(x)


def mean(x: Tensor) -> Tensor:
    """Mean over ranks, differentiable."""
    return x if world() == 1 else sum_(x) / world()


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks: one flat all-reduce in the order of ``parameters``.

    The order never changes, so a resumed run equals an uninterrupted one bit for bit on any number of ranks
    (docs/decisions/0002); DistributedDataParallel's buckets are rebuilt after the first step and break that.
    """
    parameters = [p for p in parameters if p.requires_grad]
    missing = [i for i, p in enumerate(parameters) if p.grad is None]
    assert not missing, f"{len(missing)} trainable parameters received no gradient (first: number {missing[0]})"
    if world() == 1:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
    dist.all_reduce(flat)
    flat /= world()
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(g.view_as(p))  # type: ignore[union-attr]


def from_first(value: T) -> T:
    """Rank 0's ``value`` (anything that can be pickled) on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def say(text: str) -> None:
    """One line on the standard output, from rank 0."""
    if rank() == 0:
        print(text, flush=True)


def differing_ranks(text: str) -> list[int]:
    """The ranks whose ``text`` is not that of rank 0 (configs and package versions are compared at start)."""
    if world() == 1:
        return []
    texts: list[str] = [""] * world()
    dist.all_gather_object(texts, text)
    return [r for r, other in enumerate(texts) if other != texts[0]]
