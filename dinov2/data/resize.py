"""Antialiased bilinear resizing of a whole batch of differently sized windows as two batched matrix products.

``out = R_h X R_w^T`` with one banded triangle-filter matrix per window side (Heckbert 1989, "Fundamentals of texture
mapping"): the same function as ``F.interpolate(mode="bilinear", antialias=True, align_corners=False)``, for which every
window would be a call of its own. A flip is the same matrix with its rows reversed and costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resize_matrix(length: Tensor, flip: Tensor, rows: int, columns: int) -> Tensor:
    """Matrices ``[K, rows, columns]`` that resample the first ``length[k]`` of ``columns`` pixels to ``rows`` pixels.

    ``length`` int ``[K]`` (1..columns), ``flip`` bool ``[K]``. Rows sum to one; columns beyond ``length`` are zero.
    """
    length = length.float()[:, None, None]  # [K, 1, 1]
    scale = length / rows  # input pixels per output pixel
    out = torch.arange(rows, device=length.device)
    out = torch.where(flip[:, None], rows - 1 - out, out)[:, :, None]  # [K, rows, 1]
    pixel = torch.arange(columns, device=length.device)
    distance = (pixel + 0.5 - (out + 0.5) * scale).abs()  # [K, rows, columns], in input pixels
    weight = (1 - distance / scale.clamp(min=1)).clamp(min=0) * (pixel < length)  # wider only when shrinking
    return weight / weight.sum(-1, keepdim=True)


def resize(planes: Tensor, piece: Tensor, window: Tensor, flips: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize and flip: ``planes [N, H, W] -> [N, *size]``.

    Plane ``n`` belongs to window ``piece[n]``, whose ``window[k] = (h, w)`` pixels lie in its upper left corner;
    ``flips[k] = (upside down, left-right)``. What lies outside the window must be finite and is ignored.
    """
    _, height, width = planes.shape
    vertical = resize_matrix(window[:, 0], flips[:, 0], size[0], height)  # [K, S_h, H]
    horizontal = resize_matrix(window[:, 1], flips[:, 1], size[1], width)  # [K, S_w, W]
    return vertical[piece] @ planes @ horizontal[piece].mT
