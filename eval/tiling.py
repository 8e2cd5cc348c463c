"""Tiles: windows that cover an image of any size, and one seamless result out of what a function makes of them.

The pieces work window by window, so the same code serves a batch in memory and a raster that is read and written in
strips: ``stitch(zip(windows, outputs), ...)`` holds one row of tiles at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product

import torch
from torch import Tensor

Corner = tuple[int, int]  # row and column of a window's first pixel


def starts(size: int, tile: int, stride: int | None = None) -> list[int]:
    """First pixels of the fewest tiles that cover ``size`` pixels at most ``stride`` apart (default: ``tile``).

    They are spread evenly from 0 to ``size - tile``, so that none reaches beyond the image; an image smaller than the
    tile has one, at 0.
    """
    stride = tile if stride is None else stride
    if not 0 < stride <= tile:
        raise ValueError(f"stride {stride} must lie between 1 and the tile's size, {tile}, or pixels are left out")
    room = size - tile
    if room <= 0:
        return [0]
    steps = -(-room // stride)
    return [round(i * room / steps) for i in range(steps + 1)]


def corners(height: int, width: int, tile: int, stride: int | None = None) -> list[Corner]:
    """The windows of an image, row by row; see :func:`starts`."""
    return list(product(starts(height, tile, stride), starts(width, tile, stride)))


def crop(image: Tensor, corner: Corner, tile: int) -> Tensor:
    """``[..., H, W] -> [..., tile, tile]``; beyond the lower and right border the last pixels are repeated."""
    y, x = (
        (torch.arange(tile, device=image.device) + start).clamp_max(size - 1)
        for start, size in zip(corner, image.shape[-2:], strict=True)
    )
    return image[..., y[:, None], x]


def taper(tile: int, margin: int) -> Tensor:
    """Weights ``[tile, tile]`` that rise over ``margin`` pixels from the border: no seam where tiles overlap."""
    i = torch.arange(tile)
    side = torch.minimum(i, i.flip(0)).add(1).clamp_max(margin + 1) / (margin + 1)
    return side[:, None] * side


def stitch(
    tiles: Iterable[tuple[Corner, Tensor]], height: int, width: int, tile: int, weight: Tensor | None = None
) -> Iterator[Tensor]:
    """Finished strips ``[K, rows, W]``, from the top to the bottom, of the weighted mean of tiles ``[K, tile, tile]``.

    ``tiles`` come row by row as :func:`corners` gives them and cover the image; ``weight`` ``[tile, tile]`` is positive
    (default: 1). A strip leaves as soon as no tile can reach it.
    """
    top = 0
    total = norm = share = torch.empty(0)
    for (y, x), values in tiles:
        if not norm.numel():
            total = values.new_zeros(len(values), tile, width, dtype=torch.promote_types(values.dtype, torch.float32))
            norm = total.new_zeros(tile, width)
            share = norm.new_ones(tile, tile) if weight is None else weight.to(norm)
        assert values.shape[1:] == (tile, tile), f"outputs of {tuple(values.shape[1:])} for tiles of {tile} pixels"
        done = y - top
        if done:
            yield total[:, :done] / norm[:done]
            total, norm = (torch.cat([m[..., done:, :], torch.zeros_like(m[..., :done, :])], -2) for m in (total, norm))
            top = y
        cols = min(tile, width - x)
        total[:, :, x : x + cols] += (values * share)[..., :cols]
        norm[:, x : x + cols] += share[:, :cols]
    yield total[:, : height - top] / norm[: height - top]


def slide(
    fn: Callable[[Tensor, Tensor], Tensor],
    image: Tensor,
    tile: int,
    stride: int | None = None,
    batch: int = 8,
    weight: Tensor | None = None,
) -> Tensor:
    """``fn`` over images ``[B, ..., H, W]`` of any size, in batches of tiles across windows and images.

    ``fn(tiles [b, ..., tile, tile], which [b]) -> [b, K, tile, tile]``; ``which`` says to which of the B images a tile
    belongs, for what goes with an image (channel ids, dates). Returns ``[B, K, H, W]``, the mean where tiles overlap,
    weighted by ``weight`` ``[tile, tile]`` if given (:func:`taper`).
    """
    height, width = image.shape[-2:]
    windows = corners(height, width, tile, stride)
    jobs = list(product(range(len(image)), windows))

    def outputs() -> Iterator[Tensor]:
        for start in range(0, len(jobs), batch):
            which, places = zip(*jobs[start : start + batch], strict=True)
            tiles = torch.stack([crop(image[i], corner, tile) for i, corner in zip(which, places, strict=True)])
            yield from fn(tiles, torch.tensor(which, device=image.device))

    made = outputs()
    whole = []
    for _ in image:
        mine = zip(windows, islice(made, len(windows)), strict=True)
        whole.append(torch.cat(list(stitch(mine, height, width, tile, weight)), 1))  # [K, H, W]
    return torch.stack(whole)
