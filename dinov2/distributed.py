"""Ranks. Everything else in the project is written as if there were one process.

The only collectives a loss may use are :func:`gather`, :func:`mean` and :func:`sum_`: each is differentiable, and the
identity on one process. Their gradients follow one law: *the mean over ranks of the gradients that each rank computes
equals the gradient of the loss computed on one rank with the whole batch*.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=10)
BROKEN = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|timed? ?out", re.IGNORECASE)  # of a collective
ROLL_CALL = 3.0  # seconds in which ranks that still live answer after a collective has failed


def device() -> torch.device:
    """This rank's device."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def device_named(text: str) -> torch.device:
    """The device called ``cpu``, ``cuda`` or ``cuda:1``; ValueError for one that is not here."""
    kind, _, number = text.partition(":")
    count = torch.cuda.device_count()
    if text != "cpu" and not (kind == "cuda" and (number or "0").isdecimal() and int(number or 0) < count):
        raise ValueError(f"device {text}: here are {', '.join(['cpu', *(f'cuda:{i}' for i in range(count))])}")
    return torch.device(text)


def init(timeout: datetime.timedelta = TIMEOUT) -> None:
    """Join the process group that torchrun (or a launcher that sets the same variables) describes.

    ``timeout`` is how long a rank waits for the others in a collective. A port in use and ranks without a GPU of their
    own raise ValueError.
    """
    if dist.is_initialized() or "RANK" not in os.environ:
        return
    cuda = device().type == "cuda"
    if cuda and (device().index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"rank {os.environ['RANK']} has no GPU: this node has {torch.cuda.device_count()}; "
            "start at most as many processes on a node"
        )
    if cuda:
        torch.cuda.set_device(device())
    try:  # gloo beside nccl: numbers that only the CPU needs do not wait for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ValueError(
            f"port {os.environ['MASTER_PORT']} is in use on {os.environ['MASTER_ADDR']}: "
            "set MASTER_PORT (torchrun: --master-port) to another"
        ) from error


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


def local_world() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def in_group() -> bool:
    """Whether a launcher has made this process a rank, be it the only one."""
    return dist.is_initialized()


def cpu_group() -> dist.ProcessGroup | None:
    """A group of all ranks for collectives of another thread; every rank must ask at the same point."""
    return dist.new_group(backend="gloo") if world() > 1 else None


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        dist.barrier()


_waited = 0.0  # seconds


def waited() -> float:
    """Seconds this rank has spent in collectives, that is mostly waiting for others: the slowest rank has the least.

    Of collectives on a GPU only their start counts; :func:`largest`, once per step, is on the CPU and waits.
    """
    return _waited


@contextmanager
def _waiting() -> Iterator[None]:
    """Its body counts in :func:`waited`."""
    global _waited
    begin = time.perf_counter()
    yield
    _waited += time.perf_counter() - begin


def _all_reduce(x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """All-reduce in place."""
    with _waiting():
        dist.all_reduce(x, op)
    return x


def largest(number: int) -> int:
    """The largest of all ranks' numbers, by way of the CPU."""
    return number if world() == 1 else int(_all_reduce(torch.tensor(number), dist.ReduceOp.MAX))


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """Collectives inside belong to ``step``: where one fails, ConnectionError names rank, step and silent ranks."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not BROKEN.search(str(error)):
            raise
        raise ConnectionError(
            f"rank {rank()}, step {step}: {_silent_ranks(step)} did not answer ({str(error).splitlines()[0]}); "
            "the last checkpoint is good, the same command continues"
        ) from error


def _silent_ranks(step: int) -> str:
    """Who does not answer a roll call over the store that the ranks met at."""
    store = dist.distributed_c10d._get_default_store()  # it has no public name after init_process_group
    answers = [f"alive/{step}/{r}" for r in range(world())]
    try:
        store.set(answers[rank()], "1")
        time.sleep(ROLL_CALL)
        silent = [str(r) for r, answer in enumerate(answers) if not store.check([answer])]
    except RuntimeError:  # rank 0 keeps the store
        silent = ["0"]
    return "a rank" if not silent else f"rank {', '.join(silent)}"


class _Gather(torch.autograd.Function):
    """All-gather along dim 0; backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        out = [torch.empty_like(x) for _ in range(world())]
        with _waiting():
            dist.all_gather(out, x.contiguous())
        return torch.cat(out)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = _all_reduce(grad.contiguous())
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Sum(torch.autograd.Function):
    """Sum over ranks; backward sums the gradients as well (every rank's loss depends on every rank's input)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _all_reduce(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _all_reduce(grad.clone())


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
    flat = _all_reduce(torch.cat([p.grad.reshape(-1) for p in parameters]))  # type: ignore[union-attr]
    flat /= world()
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(g.view_as(p))  # type: ignore[union-attr]


def everywhere(value: T) -> list[T]:
    """Every rank's ``value`` (anything that can be pickled), in rank order."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


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
