"""The same function over many numbers, by several processes, with progress."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

S = TypeVar("S")
T = TypeVar("T")
AHEAD = 4  # jobs per process that are handed out: a list of 100,000 of them would only take memory
LINE_EVERY = 30.0  # seconds between lines where no terminal shows the bar

_SHARED: list[Any] = []  # of this worker process: handed over once, not with every number


def _adopt(shared: object) -> None:
    _SHARED.append(shared)


def _call(function: Callable[[Any, int], T], number: int) -> T:
    return function(_SHARED[0], number)


def each(function: Callable[[S, int], T], shared: S, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, T]]:
    """``(number, function(shared, number))`` as they get ready; the first exception ends all."""
    if workers <= 1:
        yield from ((number, function(shared, number)) for number in numbers)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes are the parallelism; BLAS threads would fight them
    context, waiting, jobs = multiprocessing.get_context("spawn"), iter(numbers), dict[Future[T], int]()
    with ProcessPoolExecutor(workers, context, _adopt, (shared,)) as pool:
        try:
            for number in waiting:
                jobs[pool.submit(_call, function, number)] = number
                if len(jobs) >= AHEAD * workers:
                    yield from _ready(jobs)
            while jobs:
                yield from _ready(jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ready(jobs: dict[Future[T], int]) -> Iterator[tuple[int, T]]:
    """Take the jobs that are done out of ``jobs``; waits for one."""
    for job in wait(jobs, return_when=FIRST_COMPLETED).done:
        yield jobs.pop(job), job.result()


class Meter:
    """Progress on stderr: a bar with rate and time left on a terminal, a line every half minute elsewhere."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.total, self.unit, self.units, self.done = total, unit, 0, 0
        self.start = self.last = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, transient=True, disable=not sys.stderr.isatty())
        self.what, self.task = what, self.bar.add_task(what, total=total)

    def __enter__(self) -> Meter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, units: int) -> None:
        """One more of ``total`` is done; it held so many units."""
        self.done, self.units, now = self.done + 1, self.units + units, time.monotonic()
        rate = self.units / (now - self.start)
        self.bar.update(self.task, advance=1, description=f"{self.what} ({rate:.1f} {self.unit}/s)")
        if self.bar.disable and now - self.last >= LINE_EVERY:
            left = timedelta(seconds=round((now - self.start) / self.done * (self.total - self.done)))
            print(f"{self.what} {self.done}/{self.total}, {rate:.1f} {self.unit}/s, {left} left", file=sys.stderr)
            self.last = now
