"""Features of a frozen model on a dataset: computed once, one pass for all poolings, shared by every probe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from dinov2 import distributed
from dinov2.data.batch import Batch
from dinov2.data.views import collate, full_view, render
from eval.datasets import EvalDataset, Split
from eval.joining import Join, join
from eval.networks import Model

VIEW = "image"  # the name of a full view in a batch


@dataclass(frozen=True)
class Features:
    """``pooled[split][pooling]`` is ``[N, D]``.

    How pixels were normalised, the side of the input in pixels, and what the model received band by band
    (:meth:`eval.joining.Join.received`, of the first training batch).
    """

    pooled: dict[str, dict[str, Tensor]]
    normalisation: str
    size: int
    received: list[dict[str, Any]]


class _Views(torch.utils.data.Dataset):
    """A split's samples as full views; runs in loader processes."""

    def __init__(self, split: Split, joined: Join) -> None:
        self.split, self.joined = split, joined

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int):
        j = self.joined
        return full_view(self.split[i], images=j.images, bands=j.bands, size=j.size, norm=j.norm)


def batches(split: Split, joined: Join, device: torch.device, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """The split in its own order, each sample once, as ``joined`` says."""
    views = _Views(split, joined)
    seen = 0
    quiet = distributed.world() > 1 or not sys.stdout.isatty()
    loader = DataLoader(views, batch_size, num_workers=workers, collate_fn=collate)
    for raw in track(loader, f"reading {len(split)} samples", disable=quiet, transient=True):
        batch = render(raw, device)
        assert tuple(batch.keys) == split.keys[seen : seen + batch.size], "samples arrived out of order"
        seen += batch.size
        yield replace(batch, views={VIEW: joined.view(batch.views[VIEW])})
    assert seen == len(split), f"{seen} of {len(split)} samples arrived"


@torch.inference_mode()
def extract(
    model: Model,
    dataset: EvalDataset,
    device: torch.device,
    *,
    missing: str = "error",
    batch_size: int = 64,
    workers: int = 0,
) -> Features:
    """Features of every split; impossible input is an error that names its band, non-finite features the sample."""
    joined = join(model, dataset, missing)
    received: list[dict[str, Any]] = []
    pooled: dict[str, dict[str, Tensor]] = {}
    for name, split in dataset.splits.items():
        parts: dict[str, list[Tensor]] = {}
        for batch in batches(split, joined, device, batch_size=batch_size, workers=workers):
            received = received or joined.received(batch.views[VIEW]["imgs"])
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                found = model.features(batch.views[VIEW])
            for pooling, x in found.items():
                bad = ~torch.isfinite(x).all(1)
                if bad.any():
                    key = batch.keys[int(bad.nonzero()[0])]
                    raise ValueError(f"model {model.name}: the {pooling} features of sample {key!r} are not finite")
                parts.setdefault(pooling, []).append(x.float())
        pooled[name] = {p: torch.cat(xs) for p, xs in parts.items()}
    return Features(pooled, joined.words, batch.views[VIEW]["imgs"].shape[-1], received)


@dataclass
class FeatureCache:
    """Features by (model, dataset, treatment of missing bands) for the length of one call."""

    held: dict[tuple[str, str, str], Features] = field(default_factory=dict)

    def get(
        self, model: Model, dataset: EvalDataset, device: torch.device, missing: str = "error", **options: int
    ) -> Features:
        """Computed on first use; only the latest model is kept, since cells come sorted by model."""
        key = (model.digest, dataset.view_hash, missing)
        if key not in self.held:
            self.held = {k: v for k, v in self.held.items() if k[0] == model.digest}
            self.held[key] = extract(model, dataset, device, missing=missing, **options)
        return self.held[key]
