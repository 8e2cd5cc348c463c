"""What the trainer knows of an objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinov2.data.batch import Batch, View, ViewSpec
from dinov2.data.geo import GeoTargets


@dataclass(frozen=True)
class Now:
    """The schedules' values at one optimiser step."""

    step: int
    lr: float
    weight_decay: float
    momentum: float  # of the EMA teacher
    teacher_temp: float


class Objective(nn.Module):
    """A self-supervised objective: student encoder, heads and teacher, and the loss that joins them.

    It owns no optimiser, device, precision, parallelism, loader or logging. Every parameter that requires a gradient
    receives one on every rank in every step.
    """

    views: tuple[ViewSpec, ...]
    supervision: GeoTargets | None = None  # makes what a batch holds beside the views: its targets
    encoder: nn.Module  # the student

    def forward(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Return ``loss`` (scalar), any further scalar terms, and ``embedding`` ``[B, D]`` (detached, for health)."""
        raise NotImplementedError

    def encode(self, view: View) -> Tensor:
        """The student's class tokens ``[count * B, D]`` of a view, with gradients."""
        return self.encoder(view)

    def check_batch(self, batch: int, together: int) -> str | None:
        """What to do where ``together`` samples are few for one loss; None where they are enough.

        ``batch`` samples make an optimiser step on all ranks, ``together`` of them meet in a loss. Numbers that cannot
        be learnt from raise ValueError.
        """
        return None

    def after_step(self, now: Now) -> None:
        """Update what follows the optimiser: EMA teacher, queue, centre."""

    def export(self) -> nn.Module:
        """The encoder to keep: the EMA teacher where there is one, else the student."""
        return self.encoder


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameters by lerp, buffers copied."""
    target: list[Tensor] = [*teacher.parameters()]
    torch._foreach_lerp_(target, [p.detach() for p in student.parameters()], 1.0 - momentum)
    for t, s in zip(teacher.buffers(), student.buffers(), strict=True):
        t.copy_(s)
