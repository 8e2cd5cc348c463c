"""Signals that ask a run to stop: every rank finishes the same step, saves, and ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from dinov2 import distributed

# SIGTERM: scancel, scontrol requeue, preemption, torchrun. SIGUSR1, SIGUSR2: a scheduler's warning before the limit.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(Exception):
    """A signal ended the run after ``step`` steps, all of which are saved; the same command continues it."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: saved after step {step}; the same command continues")
        self.step, self.signal = step, signal.Signals(number)


class Interrupts:
    """Within ``with`` the process notes :data:`SIGNALS` instead of dying of them (main thread only)."""

    def __enter__(self) -> Interrupts:
        self.noted = 0
        self._before: dict[signal.Signals, Any] = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = number

    def agreed(self) -> int:
        """The signal that any rank has noted, 0 for none: the same on all ranks, whenever it reached each of them."""
        return distributed.largest(self.noted)
