"""What an evaluation dataset is, whatever it is read from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.stats import Normalisation, image_stats, merge_stats

SPLITS = ("train", "val", "test")
STATS_SAMPLES = 2000  # statistics of a dataset come from so many training samples, evenly spaced


class Split(torch.utils.data.Dataset):
    """Samples of one split in a fixed order: ``split[i]`` is a Sample; ``labels`` int64 ``[N]``."""

    def __init__(self, keys: Sequence[str], labels: Sequence[int], read: Callable[[int], Sample]) -> None:
        assert len(keys) == len(labels)
        self.keys, self.labels, self._read = tuple(keys), torch.tensor(labels, dtype=torch.int64), read

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        sample = self._read(i)
        assert sample.key == self.keys[i], f"asked for {self.keys[i]!r}, read {sample.key!r}"
        return sample


@dataclass(frozen=True)
class EvalDataset:
    """Splits, classes, and which pixels a model is shown.

    ``images`` are the image keys stacked as channels, ``bands`` restricts them by name, ``size`` resizes to so many
    pixels (None: the finest grid). ``data_hash`` identifies the stored bytes, ``ignored`` counts unlabelled samples.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    specs: tuple[ImageSpec, ...]
    bands: tuple[str, ...] | None
    size: int | None
    data_hash: str
    ignored: int = 0

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for name, split in self.splits.items():
            if not len(split):
                raise ValueError(f"dataset {self.name}: the {name} split is empty; change dataset.val or dataset.test")
            assert len(set(split.keys)) == len(split), f"the {name} split holds a sample twice"
            for key in split.keys:
                if owner.setdefault(key, name) != name:
                    raise ValueError(f"dataset {self.name}: sample {key!r} is in both {owner[key]} and {name}")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"dataset {self.name}: {name} labels run from {low} to {high}, but there are {len(self.classes)} "
                    "classes; correct dataset.classes or dataset.ignore"
                )

    @property
    def images(self) -> list[str]:
        """Image keys shown to the model."""
        return [spec.key for spec in self.specs]

    @property
    def band_names(self) -> list[str]:
        """``sensor/band`` of every channel that a model receives, in that order."""
        every = [(s.sensor, b) for s in self.specs for b in s.bands]
        order = every if self.bands is None else [(s, b) for wanted in self.bands for s, b in every if b == wanted]
        return [f"{sensor}/{band}" for sensor, band in order]

    @cached_property
    def split_hash(self) -> str:
        """Twelve hex digits of which sample is in which split under which label."""
        lines = [
            f"{n}\t{k}\t{y}" for n, s in self.splits.items() for k, y in zip(s.keys, s.labels.tolist(), strict=True)
        ]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]

    @cached_property
    def view_hash(self) -> str:
        """Identifies what a model sees: data, split, images, bands and size."""
        seen = repr((self.data_hash, self.split_hash, self.images, self.bands, self.size))
        return hashlib.sha256(seen.encode()).hexdigest()[:12]

    def normalisation(self) -> Normalisation:
        """Statistics of the training split alone, read once for all models."""
        return self._normalisation

    @cached_property
    def _normalisation(self) -> Normalisation:
        split = self.splits["train"]
        rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), STATS_SAMPLES)).round().astype(int))
        samples = (split[int(i)] for i in rows)
        return Normalisation.from_stats(
            merge_stats([image_stats(s.images[key], s.specs[key]) for s in samples for key in self.images])
        )
