"""Windows of training images: where they lie, and pixels and targets in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.data.views import generator
from eval.datasets.base import IGNORE
from eval.tiling import Corner
from eval.tiling import crop as cut

TRIALS = 10  # windows of which importance keeps one


def random(target: Tensor, size: int, rng: np.random.Generator, worth: Tensor) -> Corner:
    """Anywhere inside of the image."""
    y, x = (int(rng.integers(max(side - size, 0) + 1)) for side in target.shape)
    return y, x


def focus(target: Tensor, size: int, rng: np.random.Generator, worth: Tensor) -> Corner:
    """Around a labelled pixel, as central as the border allows; anywhere where there is none."""
    found = labelled(target).nonzero()
    if not len(found):
        return random(target, size, rng, worth)
    pixel = found[int(rng.integers(len(found)))].tolist()
    sides = zip(pixel, target.shape, strict=True)
    y, x = (min(max(p - size // 2, 0), max(side - size, 0)) for p, side in sides)
    return y, x


def importance(target: Tensor, size: int, rng: np.random.Generator, worth: Tensor) -> Corner:
    """Of ``TRIALS`` random windows the one whose pixels are worth most: rare classes weigh more."""
    value = worth[target.clamp_min(0)] * labelled(target)  # [H, W]
    corners = [random(target, size, rng, worth) for _ in range(TRIALS)]
    return max(corners, key=lambda at: float(value[at[0] : at[0] + size, at[1] : at[1] + size].sum()))


CROPS: Mapping[str, Callable[[Tensor, int, np.random.Generator, Tensor], Corner]] = {
    "random": random,
    "focus": focus,
    "importance": importance,
}


def labelled(target: Tensor) -> Tensor:
    """Bool: which entries of classes or values are labels."""
    return target.isfinite() if target.is_floating_point() else target != IGNORE


def training_crops(
    imgs: Tensor, target: Tensor, positions: Tensor, *, kind: str, size: int, worth: Tensor, epoch: int
) -> tuple[Tensor, Tensor]:
    """``imgs`` ``[B, ..., H, W]`` and ``target`` ``[B, H, W]`` in one window of ``size`` pixels each.

    The window of a sample depends on the epoch and its position alone, so that heads of all seeds can look at it.
    Images smaller than the window repeat their last pixels, without labels. ``worth`` ``[K]`` of a pixel of each class.
    A target per image stays.
    """
    pixels, targets = [], []
    for image, truth, position in zip(imgs, target, positions.tolist(), strict=True):
        place = truth if truth.ndim == 2 else torch.zeros(image.shape[-2:], dtype=torch.long)
        corner = CROPS[kind](place, size, generator((0, epoch, position), "crop", 0), worth)
        pixels.append(cut(image, corner, size))
        targets.append(window(truth, corner, size) if truth.ndim == 2 else truth)
    return torch.stack(pixels), torch.stack(targets)


def flips(imgs: Tensor, target: Tensor, positions: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """``imgs`` ``[B, ..., H, W]`` and ``target`` ``[B, H, W]`` or per image, every other one mirrored left to right.

    Which depends on the epoch and a sample's position alone.
    """
    drawn = [bool(generator((0, epoch, position), "flip", 0).integers(2)) for position in positions.tolist()]
    which = torch.tensor(drawn, device=imgs.device)
    imgs = torch.where(which.view(-1, *[1] * (imgs.ndim - 1)), imgs.flip(-1), imgs)
    if target.ndim == 3:
        target = torch.where(which.cpu()[:, None, None], target.flip(-1), target)
    return imgs, target


def window(target: Tensor, corner: Corner, size: int) -> Tensor:
    """``[H, W] -> [size, size]`` from ``corner``; unlabelled beyond the border."""
    y, x = corner
    inside = target[y : y + size, x : x + size]
    below, right = size - inside.shape[0], size - inside.shape[1]
    return F.pad(inside, (0, right, 0, below), value=float("nan") if target.is_floating_point() else IGNORE)
