"""What the device does with a batch: stored numbers -> model unit -> jitter -> standardised -> resized views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.data.augment import speckle_db
from dinov2.data.batch import Batch, View
from dinov2.data.collate import Group, RawBatch, RawCrop, RawSample, RawView, ViewBatch
from dinov2.data.resize import resize
from dinov2.data.sample import SAR_FLOOR


def standardise(stored: Tensor, inside: Tensor, params: Tensor, noise: Tensor, power: bool, looks: float) -> Tensor:
    """Stored planes ``[N, H, W]`` to float32, standardised; 0, the band's mean, at nodata and outside of ``inside``.

    ``params`` and ``noise`` as in :class:`dinov2.data.collate.Piece`; ``inside`` bool ``[N or 1, H, W]``.
    """
    scale, offset, nodata, mean, std, gain, contrast, shift = params[:, :, None, None].unbind(1)  # [N, 1, 1] each
    x = stored.float()
    valid = inside & (x != nodata) & ~x.isnan()
    x = x * scale + offset
    if power:
        x = 10 * x.clamp(min=SAR_FLOOR).log10()
    if looks:
        x = x + speckle_db(noise, x.shape[1], x.shape[2], looks)
    average = x.where(valid, 0).sum((1, 2), keepdim=True) / valid.sum((1, 2), keepdim=True).clamp(min=1)
    # (gain * (average + contrast * (x - average)) + shift - mean) / std, with one pass over the pixels per operation
    slope = gain * contrast / std
    return (x * slope + (gain * (1 - contrast) * average + shift - mean) / std).where(valid, 0)


@torch.no_grad()
def render(raw: RawBatch | Batch, device: torch.device | str) -> Batch:
    """Compute the views of a batch on ``device`` (outside autocast: pixels are float32); pixel series are ready."""
    if isinstance(raw, Batch):
        return raw.to(device)
    assert not torch.is_autocast_enabled(torch.device(device).type)
    pixels = raw.buffer.to(device, non_blocking=True)
    return Batch(
        {name: _render_view(view, pixels) for name, view in raw.views.items()},
        raw.positions.to(device),
        raw.keys,
        {name: label.to(device) for name, label in raw.labels.items()},
        targets={name: target.to(device) for name, target in raw.targets.items()},
    )


def _render_view(view: ViewBatch, pixels: Tensor) -> View:
    """One view: every group of planes at once, scattered to its rows and channels; padding channels stay zero."""
    imgs = torch.zeros(view.chn_ids.numel(), *view.size, device=pixels.device)  # [R * C, S, S]
    planes, params, pieces = (x.to(pixels.device, non_blocking=True) for x in (view.planes, view.params, view.pieces))
    n = k = 0
    for group in view.groups:
        stop_n, stop_k = n + group.shape[0], k + group.pieces
        target, piece, noise = planes[n:stop_n].unbind(1)
        window, flips = pieces[k:stop_k].split(2, dim=1)
        x = standardise(
            _unpack(group, pixels), _inside(window, piece, group), params[n:stop_n], noise, group.power, group.looks
        )
        imgs[target] = resize(x, piece, window, flips.bool(), view.size)
        n, k = stop_n, stop_k
    out = {"imgs": imgs.view(*view.chn_ids.shape, *view.size), "chn_ids": view.chn_ids, "spec_masks": view.spec_masks}
    if view.masks is not None:
        out["masks"] = view.masks
    return {name: x.to(pixels.device, non_blocking=True) for name, x in out.items()}


def _unpack(group: Group, pixels: Tensor) -> Tensor:
    """The group's stored planes ``[N, H, W]``, without a copy."""
    n, h, w = group.shape
    return pixels[group.start : group.start + n * h * w * group.dtype.itemsize].view(group.dtype).view(n, h, w)


def _inside(window: Tensor, piece: Tensor, group: Group) -> Tensor:
    """Bool ``[N, H, W]``: which pixels of the padded planes belong to their window."""
    _, h, w = group.shape
    rows, columns = (torch.arange(side, device=window.device) for side in (h, w))
    inside = (rows[:, None] < window[:, 0, None, None]) & (columns < window[:, 1, None, None])  # [K, H, W]
    return inside[piece]


@torch.no_grad()
def render_sample(raw: RawSample) -> dict[str, View]:
    """The views of one sample on the CPU by slicing and ``F.interpolate``: what :func:`render` must equal."""
    return {name: _reference_view(view) for name, view in raw.views.items()}


def _reference_view(view: RawView) -> View:
    crops = [_reference_crop(crop, view) for crop in view.crops]
    return {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}


def _reference_crop(crop: RawCrop, view: RawView) -> View:
    count = len(crop.chn_ids)
    imgs = torch.zeros(view.width, *view.size)
    for piece in crop.pieces:
        params, noise = torch.from_numpy(piece.params), torch.from_numpy(piece.noise)
        inside = torch.ones(1, *piece.planes.shape[1:], dtype=torch.bool)
        x = standardise(torch.from_numpy(piece.planes), inside, params, noise, piece.power, piece.looks)
        x = F.interpolate(x[None], view.size, mode="bilinear", antialias=True, align_corners=False)[0]
        imgs[torch.from_numpy(piece.slots)] = x.flip(
            [axis for axis, flipped in zip((1, 2), crop.flips, strict=True) if flipped]
        )
    ids = torch.from_numpy(crop.chn_ids.astype("int64"))
    out = {
        "imgs": imgs,
        "chn_ids": torch.cat([ids, ids[-1:].expand(view.width - count)]),
        "spec_masks": torch.arange(view.width) >= count,
    }
    return out if crop.mask is None else {**out, "masks": torch.from_numpy(crop.mask)}
