"""Batches of a split as a model takes them, with their targets: what loader processes read and the device renders."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from dinov2 import distributed
from dinov2.data.batch import Batch
from dinov2.data.sample import Sample
from dinov2.data.views import RawBatch, RawSample, collate, dates, full_view, render
from eval.datasets import Split
from eval.joining import Join

VIEW = "image"  # the name of a full view in a batch
TARGET = "target"  # ... and of what is to be predicted among its labels
T = TypeVar("T")
EPOCH = datetime.date(2000, 1, 1)  # days of a series count from here


class Item(NamedTuple):
    """A sample as it leaves a loader process."""

    raw: RawSample
    target: Tensor  # [H, W] | [K] | []
    days: Tensor  # [T]
    padding: Tensor  # [T]


@dataclass(frozen=True)
class Items(torch.utils.data.Dataset):
    """A split's samples as full views with their targets; runs in loader processes."""

    split: Split
    joined: Join
    frames: int

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Item:
        sample, j = self.split[i], self.joined
        target = map_of(self.split, sample, i) if self.split.labels is None else self.split.labels[i]
        size = j.size or ((target.shape[0], target.shape[1]) if self.split.dense else None)  # a map's pixels
        raw = full_view(sample, images=j.images, bands=j.bands, size=size, norm=j.norm, position=i, frames=self.frames)
        count = dates(sample, j.images)
        days = torch.tensor([*days_of(sample, j.images), *[0.0] * self.frames][: self.frames])
        return Item(raw, target, days, torch.arange(self.frames) >= count)


def targets(split: Split, rows: Sequence[int]) -> Iterator[Tensor]:
    """The targets of these images, read without their pixels."""
    for i in rows:
        yield torch.from_numpy(split.target(i)) if split.labels is None else split.labels[i]


def map_of(split: Split, sample: Sample, i: int) -> Tensor:
    """The target ``[H, W]`` of sample ``i``, on the sample's finest grid; any other size raises ValueError."""
    target = split.target(i)
    finest = max((image.shape[-2:] for image in sample.images.values()), key=lambda shape: shape[0])
    if target.shape != finest:
        h, w = finest
        raise ValueError(
            f"sample {sample.key!r}: the image has {h} x {w} pixels, its map {'x'.join(map(str, target.shape))}"
        )
    return torch.from_numpy(np.array(target))


def days_of(sample: Sample, images: Sequence[str]) -> list[float]:
    """The dates of a series in days, NaN where the sample does not say them."""
    times = next((sample.times[name] for name in images if sample.times.get(name)), None)
    if times is None:
        return [math.nan] * dates(sample, images)
    return [float((datetime.date.fromisoformat(t[:10]) - EPOCH).days) for t in times]


def collate_items(items: Sequence[Item]) -> list[tuple[RawBatch, Tensor, Tensor, Tensor]]:
    """Neighbours of one size together."""
    out = []
    for _, group in groupby(items, key=lambda item: (item.raw.views[VIEW].size, item.target.shape)):
        raw, *others = zip(*group, strict=True)
        target, days, padding = (torch.stack(x) for x in others)
        out.append((collate(raw), target, days, padding))
    return out


def steps(
    split: Split,
    joined: Join,
    device: torch.device,
    rows: Iterable[list[int]],
    *,
    workers: int = 0,
    frames: int = 1,
) -> Iterator[list[Batch]]:
    """The samples of each entry of ``rows``, one Batch for neighbours of one size.

    Its view is ``imgs`` ``[B, C, H, W]``, with ``frames`` > 1 ``[B, T, C, H, W]``, as ``joined`` says;
    ``labels["target"]`` is what to predict, ``meta`` holds the ``days`` and the ``padding`` of series (``[B, T]``,
    True = no date), all three on the CPU.
    """
    loader = DataLoader(
        Items(split, joined, frames),
        batch_sampler=rows,
        num_workers=workers,
        collate_fn=collate_items,  # type: ignore[arg-type]
    )
    for groups in loader:
        yield [as_batch(*group, joined=joined, device=device, frames=frames) for group in groups]


def as_batch(
    raw: RawBatch, target: Tensor, days: Tensor, padding: Tensor, *, joined: Join, device: torch.device, frames: int
) -> Batch:
    """See :func:`steps`."""
    batch = render(raw, device)
    view = joined.view(batch.views[VIEW])
    if frames > 1:  # from crop-major
        view = {name: x.unflatten(0, (frames, batch.size)).transpose(0, 1) for name, x in view.items()}
    meta = {"days": days, "padding": padding} if frames > 1 else {}
    return replace(batch, views={VIEW: view}, labels={TARGET: target}, meta=meta)


def progress(items: Iterable[T], words: str, total: int) -> Iterable[T]:
    """``items`` with a bar and the time left on a terminal, where one process works."""
    quiet = distributed.world() > 1 or not sys.stdout.isatty()
    return track(items, words, total=total, disable=quiet, transient=True)


def batches(
    split: Split, joined: Join, device: torch.device, *, batch_size: int, workers: int, frames: int = 1
) -> Iterator[Batch]:
    """The split in its own order, each sample once; see :func:`steps`."""
    rows = [list(range(len(split)))[i : i + batch_size] for i in range(0, len(split), batch_size)]
    seen = 0
    for groups in steps(split, joined, device, rows, workers=workers, frames=frames):
        for batch in groups:
            assert tuple(batch.keys) == split.keys[seen : seen + batch.size], "samples arrived out of order"
            seen += batch.size
            yield batch
    assert seen == len(split), f"{seen} of {len(split)} samples arrived"
