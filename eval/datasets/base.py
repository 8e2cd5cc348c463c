"""What an evaluation dataset is, whatever it is read from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.stats import Normalisation, image_stats, merge_stats

SPLITS = ("train", "val", "test")
KINDS = ("classification", "multilabel", "segmentation", "regression")
IGNORE = -1  # no label: what every reader makes of its source's ignore and nodata labels (NaN in maps of values)
T = TypeVar("T")
STATS_SAMPLES = 2000  # statistics of a dataset come from so many training samples, evenly spaced


class Split(torch.utils.data.Dataset):
    """Samples of one split in a fixed order; ``split[i]`` is a Sample.

    Its images are ``[C, H, W]``, or ``[T, C, H, W]`` where there are several dates: all image keys of a sample have the
    same T and a date of ``sample.times`` per step; a pair of images for change is T = 2, before and after.

    A target is one per image, in ``labels``: int64 ``[N]`` classes, bool ``[N, K]`` for several labels at once,
    float32 ``[N]`` values; or one per pixel (``labels`` is None), read by ``target(i)``: int64 ``[H, W]`` classes or
    float32 ``[H, W]`` values on the sample's finest grid.
    """

    def __init__(
        self,
        keys: Sequence[str],
        labels: Sequence[int] | Tensor | None,
        read: Callable[[int], Sample],
        target: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        assert (labels is None) != (target is None), "one target per image or one per pixel"
        self.keys, self._read, self._target = tuple(keys), read, target
        self.labels = labels if labels is None or isinstance(labels, Tensor) else torch.tensor(labels).long()
        assert self.labels is None or len(self.labels) == len(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        sample = self._read(i)
        assert sample.key == self.keys[i], f"asked for {self.keys[i]!r}, read {sample.key!r}"
        return sample

    @property
    def dense(self) -> bool:
        """Whether there is a target per pixel."""
        return self.labels is None

    def target(self, i: int) -> np.ndarray:
        """The map ``[H, W]`` of sample ``i``, read without the pixels of its images."""
        assert self._target is not None, "the targets of this split are its labels"
        return self._target(i)

    def part(self, rows: Sequence[int]) -> Split:
        """These rows alone."""
        labels = None if self.labels is None else self.labels[list(rows)]
        target = self._target and Renumbered(self._target, rows)
        return Split([self.keys[row] for row in rows], labels, Renumbered(self._read, rows), target)


@dataclass(frozen=True)
class Renumbered(Generic[T]):
    """``read`` with other numbers for its rows; loader processes can pickle it."""

    read: Callable[[int], T]
    rows: Sequence[int]

    def __call__(self, i: int) -> T:
        """What row ``rows[i]`` is."""
        return self.read(self.rows[i])


@dataclass(frozen=True)
class EvalDataset:
    """Splits, classes, and which pixels a model is shown.

    ``kind`` is one of ``KINDS``; ``classes`` names the classes or labels (regression: the one value, in ``unit``).
    ``images`` are the image keys stacked as channels, ``bands`` restricts them by name, ``size`` resizes to so many
    pixels (None: the finest grid). ``frames`` is the largest number of dates of a sample, ``pair`` says that two dates
    are before and after. ``data_hash`` identifies what is stored, ``ignored`` counts unlabelled samples.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    specs: tuple[ImageSpec, ...]
    bands: tuple[str, ...] | None
    size: int | None
    data_hash: str
    ignored: int = 0
    kind: str = "classification"
    unit: str = ""
    frames: int = 1
    pair: bool = False
    threshold: float | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        owner: dict[str, str] = {}
        for name, split in self.splits.items():
            if not len(split):
                raise ValueError(f"dataset {self.name}: the {name} split is empty; change dataset.val or dataset.test")
            assert len(set(split.keys)) == len(split), f"the {name} split holds a sample twice"
            for key in split.keys:
                if owner.setdefault(key, name) != name:
                    raise ValueError(f"dataset {self.name}: sample {key!r} is in both {owner[key]} and {name}")
            if split.labels is not None:
                self.check_labels(name, split.labels)

    def check_labels(self, split: str, labels: Tensor) -> None:
        """ValueError unless the labels of all images fit the kind and the classes."""
        if self.kind == "multilabel":
            assert labels.dtype == torch.bool and labels.shape[1:] == (len(self.classes),), labels.shape
        elif self.kind == "classification":
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"dataset {self.name}: {split} labels run from {low} to {high}, but there are "
                    f"{len(self.classes)} classes; correct dataset.classes or dataset.ignore"
                )
        else:
            assert self.kind == "regression" and labels.is_floating_point() and labels.isfinite().all()

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
        lines = []
        for name, split in self.splits.items():
            labels = [None] * len(split) if split.labels is None else split.labels.tolist()  # maps: see data_hash
            lines += [f"{name}\t{key}\t{label}" for key, label in zip(split.keys, labels, strict=True)]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]

    def require(self, split_hash: str | None) -> EvalDataset:
        """This dataset; ValueError unless its split is the one with this hash (None: any)."""
        if split_hash not in (None, self.split_hash):
            sizes = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
            raise ValueError(
                f"dataset {self.name}: this is not the published split (hash {self.split_hash}, not {split_hash}; "
                f"{sizes}): get the data again, or set dataset.split_hash=null for a split of your own"
            )
        return self

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


def chosen_specs(
    known: Mapping[str, ImageSpec], images: Sequence[str] | None, bands: Sequence[str] | None
) -> tuple[ImageSpec, ...]:
    """Specs of the named image keys or sensors in the order named (None: all), those with one of ``bands``."""
    chosen: dict[str, ImageSpec] = {}
    for name in images or known:
        found = {key: spec for key, spec in known.items() if name in (key, spec.sensor)}
        if not found:
            raise ValueError(f"dataset.images {name!r} is not in the set; known: {', '.join(known)}")
        chosen |= found
    have = [b for spec in chosen.values() for b in spec.bands]
    missing = [b for b in bands or () if b not in have]
    if missing:
        raise ValueError(f"dataset.bands {', '.join(missing)} not in {', '.join(chosen)}; known: {', '.join(have)}")
    return tuple(spec for spec in chosen.values() if not bands or any(b in bands for b in spec.bands))
