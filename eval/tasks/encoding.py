"""What a decoder learns from: the feature maps of images or of the windows that cover them, and their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dinov2.data.batch import View
from dinov2.models.dense import resize
from eval.features import folded
from eval.networks import Model
from eval.tiling import corners, crop, stitch


@dataclass(frozen=True)
class Encoded:
    """B images of one size.

    ``features`` per level ``[B, n, D, h, w]`` of n windows, of series ``[B, n, T, D, h, w]``; ``size`` (H, W) of the
    images; ``window`` the windows' side, None where an image is not divided (n = 1), ``stride`` the pixels between them
    (None: the fewest windows); ``shape`` of a target: (H', W'), or () where it is one per image. ``target``
    ``[B, *shape]`` or ``[B, K]``; ``days`` and ``padding`` ``[B, T]``.
    """

    features: list[Tensor]
    size: tuple[int, int]
    shape: tuple[int, ...]
    window: int | None = None
    stride: int | None = None
    target: Tensor | None = None
    days: Tensor | None = None
    padding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features[0])

    @property
    def nbytes(self) -> int:
        """Of the features."""
        return sum(f.nbytes for f in self.features)

    @property
    def extras(self) -> dict[str, Tensor]:
        """What goes with the features, image by image."""
        every = {"target": self.target, "days": self.days, "padding": self.padding}
        return {name: x for name, x in every.items() if x is not None}

    def row(self, i: int) -> Encoded:
        """One image, B = 1."""
        one = slice(i, i + 1)
        extras: dict[str, Any] = {name: x[one] for name, x in self.extras.items()}
        return replace(self, features=[f[one] for f in self.features], **extras)

    @classmethod
    def join(cls, parts: list[Encoded]) -> Encoded:
        """Images of one size together; ValueError where they differ."""
        sizes = sorted({p.size for p in parts})
        if len(sizes) > 1:
            words = " and ".join(f"{h} x {w}" for h, w in sizes[:2])
            raise ValueError(
                f"images of {words} pixels cannot be one batch: set task.crop=random, task.crop_size or dataset.size"
            )
        features = [torch.cat(level) for level in zip(*(p.features for p in parts), strict=True)]
        extras: dict[str, Any] = {name: torch.cat([p.extras[name] for p in parts]) for name in parts[0].extras}
        return replace(parts[0], features=features, **extras)

    def predict(self, head: Callable[..., Tensor]) -> Tensor:
        """Logits ``[B, K, *shape]`` of ``head(features, size, days, padding)``: of windows their mean."""
        b, n = self.features[0].shape[:2]
        days, padding = (None if x is None else x.repeat_interleave(n, 0) for x in (self.days, self.padding))
        side = (self.window, self.window) if self.window and self.shape else self.shape
        device = self.features[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = head([f.flatten(0, 1) for f in self.features], side, days, padding)  # [B * n, K, ...]
        logits = logits.float().unflatten(0, (b, n))
        if not self.window:
            return logits[:, 0]
        if not self.shape:
            return logits.mean(1)
        return resize(torch.stack([merged(x, self.size, self.window, self.stride) for x in logits]), self.shape)


def merged(tiles: Tensor, size: tuple[int, int], window: int, stride: int | None) -> Tensor:
    """``[n, K, window, window] -> [K, *size]``: the mean where windows overlap."""
    return torch.cat(list(stitch(zip(corners(*size, window, stride), tiles, strict=True), *size, window)), 1)


def look(model: Model, view: View) -> list[Tensor]:
    """Feature maps ``[B, D, h, w]`` of images, ``[B, T, D, h, w]`` of series ``[B, T, C, H, W]``.

    A model that takes several dates gets them together, any other one after the other.
    """
    if view["imgs"].ndim == 4:
        return model.maps(view)
    b, t = view["imgs"].shape[:2]
    if 1 < t <= model.frames:
        together = {**{name: x[:, 0] for name, x in view.items()}, "imgs": view["imgs"].transpose(1, 2)}
        return [m.transpose(1, 2) for m in model.maps(together)]
    return [m.unflatten(0, (b, t)) for m in model.maps(folded(view))]


def encode(
    model: Model,
    view: View,
    shape: tuple[int, ...],
    window: int | None = None,
    stride: int | None = None,
    **extras: Tensor,
) -> Encoded:
    """A view as its decoder sees it; with ``window`` its images are covered by windows, see :class:`Encoded`."""
    imgs = view["imgs"]
    size = (imgs.shape[-2], imgs.shape[-1])
    places = corners(*size, window, stride) if window else [(0, 0)]
    tiles = torch.stack([crop(imgs, at, window) for at in places], 1) if window else imgs[:, None]  # [B, n, ...]
    flat = {name: x.repeat_interleave(len(places), 0) for name, x in view.items() if name != "imgs"}
    with torch.autocast(imgs.device.type, torch.bfloat16, enabled=imgs.is_cuda):
        maps = look(model, {**flat, "imgs": tiles.flatten(0, 1)})
    features = [m.unflatten(0, (len(imgs), -1)) for m in maps]
    return Encoded(features, size, shape, window, stride, **{name: x.to(imgs.device) for name, x in extras.items()})


@dataclass
class Store:
    """Encodings of whole splits by frozen encoders, in memory as long as they fit into ``limit`` bytes."""

    limit: int = 0
    held: dict[tuple[str, ...], list[Encoded]] = field(default_factory=dict)

    def get(self, key: tuple[str, ...], images: int, make: Callable[[], Iterator[Encoded]]) -> Iterable[Encoded]:
        """What ``make()`` yields of so many images: a list if it is held from now on, else an iterator.

        ``key`` is the model, the data, and last the split and the window. Only the latest model's encodings are kept:
        cells come sorted by it.
        """
        if key not in self.held:
            self.held = {k: v for k, v in self.held.items() if k[0] == key[0]}
            stream = make()
            first = next(stream)
            needed = first.nbytes / len(first) * images
            if self.used + needed > self.limit:  # room is made by other datasets only: splits of one take turns
                self.held = {k: v for k, v in self.held.items() if k[:-2] == key[:-2]}
            if self.used + needed > self.limit:
                return chain([first], stream)
            self.held[key] = [first, *stream]
        return self.held[key]

    def drop(self, prefix: tuple[str, ...]) -> None:
        """Forget what lies under keys that begin like this."""
        self.held = {k: v for k, v in self.held.items() if k[: len(prefix)] != prefix}

    @property
    def used(self) -> float:
        """Bytes."""
        return sum(e.nbytes for held in self.held.values() for e in held)
