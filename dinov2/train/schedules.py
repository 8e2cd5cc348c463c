"""Schedules: pure functions of the optimiser step, built from fvcore's composite schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
)

from dinov2.objectives.base import Now

Schedule = Callable[[int], float]
SCALING = {"none": lambda batch: 1.0, "sqrt_1024": lambda batch: (batch / 1024) ** 0.5, "linear_256": lambda b: b / 256}


def scaled_lr(base_lr: float, batch: int, rule: str) -> float:
    """The peak learning rate for a global ``batch``: DINOv2's square root of batch/1024, or linear in batch/256."""
    if rule not in SCALING:
        raise ValueError(f"optim.scaling {rule!r} is not one of {', '.join(SCALING)}")
    return base_lr * SCALING[rule](batch)


def cosine(
    base: float, final: float, total: int, *, freeze: int = 0, warmup: int = 0, hold: int = 0, start: float = 0.0
) -> Schedule:
    """0 for ``freeze`` steps, linear from ``start`` for ``warmup``, ``base`` for ``hold``, cosine towards ``final``.

    As in DINOv2 and Panopticon: the last warm-up step has the full value, and ``final`` is reached at step ``total``
    (where a run of ``total`` steps has just ended) and kept from there on.
    """
    decay = total - freeze - warmup - hold
    if decay < 0:
        raise ValueError(
            f"freeze ({freeze}), warm-up ({warmup}) and hold ({hold}) steps exceed the {total} steps of the schedule; "
            "shorten them or raise train.steps"
        )
    overshoot = start + (base - start) * warmup / max(warmup - 1, 1)  # one step past base: step warmup - 1 is base
    phases = [
        (freeze, ConstantParamScheduler(0.0)),
        (warmup, LinearParamScheduler(start, overshoot)),
        (hold, ConstantParamScheduler(base)),
        (decay, CosineParamScheduler(base, final)),
    ]
    phases = [(steps, phase) for steps, phase in phases if steps]
    if not phases:
        return lambda step: final
    composite = CompositeParamScheduler(
        [phase for _, phase in phases], [steps / total for steps, _ in phases], ["rescaled"] * len(phases)
    )
    return lambda step: composite(step / total) if step < total else final


class Schedules:
    """Every scheduled number of a run of ``steps`` optimiser steps; ``optim`` holds the options of that section.

    ``optim["lr"]`` is the peak rate after scaling; the others are named as in the configuration.
    """

    def __init__(self, optim: Mapping[str, Any], steps: int) -> None:
        for name in ("momentum", "momentum_end"):
            if not 0 <= optim[name] <= 1:
                raise ValueError(f"optim.{name} {optim[name]} is no share of the old teacher: choose one from 0 to 1")
        peak, ramp = optim["teacher_temp"], optim["teacher_temp_warmup_steps"]
        self.lr = cosine(optim["lr"], optim["min_lr"], steps, warmup=optim["warmup_steps"], hold=optim["hold_steps"])
        self.weight_decay = cosine(optim["weight_decay"], optim["weight_decay_end"], steps)
        self.momentum = cosine(optim["momentum"], optim["momentum_end"], steps)
        self.teacher_temp = cosine(peak, peak, ramp, warmup=ramp, start=optim["teacher_temp_start"])

    def now(self, step: int) -> Now:
        """The values at ``step`` (0 is the first)."""
        return Now(step, self.lr(step), self.weight_decay(step), self.momentum(step), self.teacher_temp(step))
