"""Run a function on several gloo ranks, and hold its result against the same function on one rank."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# A server that has imported torch, and nothing else, forks the ranks: importing it in each takes seconds.
mp.get_context("forkserver").set_forkserver_preload(["torch", "torch.distributed"])


def _rank(
    rank: int, world: int, folder: str, timeout: float, environment: dict[str, str], fn: Callable[..., Any], args: Any
) -> None:
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")  # the server's is that of its start
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=timeout)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=patience)
    dist.barrier()  # gloo fails in a rank that still connects when a quick one has already gone
    torch.save(fn(*args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run_ranks(fn: Callable[..., Any], world: int, *args: Any, timeout: float = 100.0) -> list[Any]:
    """``fn(*args)`` on every one of ``world`` ranks; the results in rank order.

    ``fn`` is a module-level function that asks ``dinov2.distributed`` for its rank; its result holds tensors, numbers,
    strings, lists and dicts only. World 1 runs in this process. A rank that fails raises here with its traceback; ranks
    that hang are killed after ``timeout`` seconds.
    """
    if world == 1:
        return [fn(*args)]
    with tempfile.TemporaryDirectory() as folder:
        settings = (world, folder, timeout, dict(os.environ), fn, args)
        context = mp.start_processes(_rank, settings, nprocs=world, join=False, start_method="forkserver")
        deadline = time.monotonic() + timeout
        try:
            while not context.join(timeout=1.0):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{fn.__qualname__} on {world} ranks did not end within {timeout} s")
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world)]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], where: str = "") -> None:
    """The same loss and gradients but for rounding.

    Relative to the largest entry of each tensor 1e-4. Gradients that are zero but for rounding (of a bias before a
    normalisation) may differ by 1e-6 of the largest entry of all gradients, that is of all tensors but scalars.
    """
    assert found.keys() == expected.keys()
    floor = 1e-6 * max((float(t.abs().max()) for t in expected.values() if t.ndim), default=0.0)
    for name, value in expected.items():
        error = float((found[name] - value).abs().max())
        bound = 1e-4 * float(value.abs().max()) + floor
        assert error <= bound, f"{name}{where}: off by {error:.3g}, allowed {bound:.3g}"


def assert_rank_law(fn: Callable[..., dict[str, torch.Tensor]], *args: Any, worlds: tuple[int, ...] = (2, 3)) -> None:
    """W ranks equal one rank in every tensor that ``fn(*args)`` returns (a loss, gradients after averaging)."""
    (expected,) = run_ranks(fn, 1, *args)
    for world in worlds:
        for rank, found in enumerate(run_ranks(fn, world, *args)):
            assert_equal(found, expected, f" on rank {rank} of {world}")
