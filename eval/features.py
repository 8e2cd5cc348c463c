"""Features of a frozen model on a dataset: computed once, one pass for all poolings, shared by every probe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from dinov2 import distributed
from dinov2.data.batch import Batch
from dinov2.data.stats import Normalisation
from dinov2.data.views import collate, full_view, render
from eval.datasets import EvalDataset, Split
from eval.encoders import Model

VIEW = "image"  # the name of a full view in a batch


@dataclass(frozen=True)
class Features:
    """``pooled[split][pooling]`` is ``[N, D]``; how pixels were standardised, and the side of the input in pixels."""

    pooled: dict[str, dict[str, Tensor]]
    normalisation: str
    size: int


def joined_normalisation(model: Model, dataset: EvalDataset) -> tuple[Normalisation, str]:
    """The checkpoint's statistics, and the dataset's for sensors that the checkpoint has never seen; and in words."""
    sensors = sorted({spec.sensor for spec in dataset.specs})
    known = model.normalisation.table if model.normalisation else {}
    unseen = [s for s in sensors if s not in known]
    if model.normalisation and not unseen:
        return model.normalisation, "checkpoint"
    own = dataset.normalisation()
    if model.normalisation is None:
        return own, "dataset"
    word = "dataset" if len(unseen) == len(sensors) else f"checkpoint; dataset for {', '.join(unseen)}"
    return model.normalisation.updated(own), word


class _Views(torch.utils.data.Dataset):
    """A split's samples as full views; runs in loader processes."""

    def __init__(self, split: Split, dataset: EvalDataset, norm: Normalisation) -> None:
        self.split, self.dataset, self.norm = split, dataset, norm

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int):
        d = self.dataset
        return full_view(self.split[i], images=d.images, bands=d.bands, size=d.size, norm=self.norm)


def batches(
    split: Split, dataset: EvalDataset, norm: Normalisation, device: torch.device, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """The split in its own order, each sample once."""
    views = _Views(split, dataset, norm)
    seen = 0
    quiet = distributed.world() > 1 or not sys.stdout.isatty()
    loader = DataLoader(views, batch_size, num_workers=workers, collate_fn=collate)
    for raw in track(loader, f"reading {len(split)} samples of {dataset.name}", disable=quiet, transient=True):
        batch = render(raw, device)
        assert tuple(batch.keys) == split.keys[seen : seen + batch.size], "samples arrived out of order"
        seen += batch.size
        yield batch
    assert seen == len(split), f"{seen} of {len(split)} samples arrived"


@torch.inference_mode()
def extract(
    model: Model, dataset: EvalDataset, device: torch.device, *, batch_size: int = 64, workers: int = 0
) -> Features:
    """Features of every split; a non-finite feature is an error that names its sample."""
    norm, word = joined_normalisation(model, dataset)
    pooled: dict[str, dict[str, Tensor]] = {}
    for name, split in dataset.splits.items():
        parts: dict[str, list[Tensor]] = {}
        for batch in batches(split, dataset, norm, device, batch_size=batch_size, workers=workers):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                found = model.features(batch.views[VIEW])
            for pooling, x in found.items():
                bad = ~torch.isfinite(x).all(1)
                if bad.any():
                    key = batch.keys[int(bad.nonzero()[0])]
                    raise ValueError(f"model {model.name}: the {pooling} features of sample {key!r} are not finite")
                parts.setdefault(pooling, []).append(x.float())
        pooled[name] = {p: torch.cat(xs) for p, xs in parts.items()}
    return Features(pooled, word, batch.views[VIEW]["imgs"].shape[-1])


@dataclass
class FeatureCache:
    """Features by (model, dataset) for the length of one call."""

    held: dict[tuple[str, str], Features] = field(default_factory=dict)

    def get(self, model: Model, dataset: EvalDataset, device: torch.device, **options: int) -> Features:
        """Computed on first use; only the latest model is kept, since cells come sorted by model."""
        key = (model.digest, dataset.view_hash)
        if key not in self.held:
            self.held = {k: v for k, v in self.held.items() if k[0] == model.digest}
            self.held[key] = extract(model, dataset, device, **options)
        return self.held[key]
