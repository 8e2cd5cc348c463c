"""Where the time of a training step goes: process time by part of the model, forward and backward."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

REST = "losses"


class _Enter(torch.autograd.Function):
    """The identity; its backward says that the part whose output (or, for REST, input) this is begins."""

    @staticmethod
    def forward(ctx, x: Tensor, timeline: Timeline, part: str) -> Tensor:
        ctx.timeline, ctx.part = timeline, part
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.timeline.enter(ctx.part)
        return grad, None, None


class Timeline:
    """One part runs at a time; every change of part closes the account of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.part, self.since = REST, time.process_time()

    def enter(self, part: str) -> None:
        """From now on it is ``part`` that takes time."""
        now = time.process_time()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """``part`` takes what runs inside."""
        self.enter(part)
        yield
        self.enter(REST)

    def watch(self, modules: Mapping[nn.Module, str]) -> None:
        """Attribute forward and backward passes of ``modules`` to their parts."""
        for module, part in modules.items():
            module.register_forward_pre_hook(lambda _, args, part=part: self._before(args, part))
            module.register_forward_hook(lambda _, args, out, part=part: self._after(out, part))

    def _before(self, args: tuple, part: str) -> tuple:
        self.enter(part)
        return tuple(_Enter.apply(x, self, REST) if isinstance(x, Tensor) and x.requires_grad else x for x in args)

    def _after(self, out: Tensor, part: str) -> Tensor:
        out = _Enter.apply(out, self, part) if out.requires_grad else out
        self.enter(REST)
        return out
