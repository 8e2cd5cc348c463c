"""What a model knows about a channel: the check of its id, and the embedding of its id."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SAR_IDS = 12  # -1..-12: {VV, VH, HH, HV} x {orbit unknown, ascending, descending}
TERRAIN_IDS = 2  # -13 elevation, -14 slope


def check_channels(chn_ids: Tensor, spec_masks: Tensor | None, channels: int, *, terrain: bool = False) -> None:
    """Raise ValueError where ids or masks (on the CPU) do not describe ``channels`` channels.

    ``chn_ids`` integer ``[B, C]``, or ``[B, C, 2]`` (centre, sigma in nm; float32 is allowed, as a sigma is no id),
    ``spec_masks`` bool ``[B, C]`` or None (True: padding, whose id may be anything known or 0).
    ``terrain``: whether -13 and -14 are known.
    """
    if chn_ids.is_floating_point() and (chn_ids.ndim == 2 or chn_ids.dtype in (torch.float16, torch.bfloat16)):
        raise ValueError(f"chn_ids are {chn_ids.dtype}; give whole nanometres as integers (floor them)")
    if chn_ids.shape[1] != channels:
        raise ValueError(f"imgs have {channels} channels but chn_ids {tuple(chn_ids.shape)} name {chn_ids.shape[1]}")
    lowest = -SAR_IDS - TERRAIN_IDS * terrain
    centres = chn_ids[..., 0] if chn_ids.ndim == 3 else chn_ids
    if spec_masks is not None and spec_masks.shape != centres.shape:
        raise ValueError(f"spec_masks {tuple(spec_masks.shape)} and chn_ids {tuple(chn_ids.shape)} differ in shape")
    padding = torch.zeros_like(centres, dtype=torch.bool) if spec_masks is None else spec_masks
    unknown = centres[(centres < lowest) | ((centres == 0) & ~padding)]
    if unknown.numel():
        raise ValueError(f"unknown channel id {int(unknown[0])}: use wavelengths in nm (>= 1) or codes {lowest}..-1")
    if spec_masks is not None and spec_masks.all(1).any():
        row = int(spec_masks.all(1).nonzero()[0])
        raise ValueError(f"spec_masks hide every channel of image {row}: leave at least one visible")


class ChannelEmbedding(nn.Module):
    """Channel id -> vector ``[dim]``: sine and cosine of the wavelength, learned tables for SAR (and terrain).

    ``coarsity``: wavelengths are floor-divided by it. ``full_spectra``: ids are (centre, sigma) pairs and optical bands
    get the integrated positional encoding of the Gaussian response. Source: Panopticon, arXiv 2503.10845, sec. 3.1.
    """

    def __init__(self, dim: int, *, coarsity: int = 1, full_spectra: bool = False, terrain: bool = False) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"the channel embedding needs an even dimension, not {dim}")
        self.dim, self.coarsity, self.full_spectra = dim, coarsity, full_spectra
        third = dim // 3
        self.embed_transmit = nn.Parameter(torch.zeros(2, third))  # V, H
        self.embed_receive = nn.Parameter(torch.zeros(2, third))
        self.embed_orbit = nn.Parameter(torch.zeros(2, dim - 2 * third))  # ascending, descending
        self.embed_terrain = nn.Parameter(torch.zeros(TERRAIN_IDS, dim)) if terrain else None

    def learned(self) -> Tensor:
        """Rows of the negative ids, ``[12 or 14, dim]``: row -(id + 1)."""
        orbit = torch.cat([self.embed_orbit.mean(0, keepdim=True), self.embed_orbit])  # unknown, ascending, descending
        rows = [
            self.embed_transmit[[0, 0, 1, 1]].repeat(3, 1),  # VV, VH, HH, HV
            self.embed_receive[[0, 1, 1, 0]].repeat(3, 1),
            orbit.repeat_interleave(4, 0),
        ]
        table = torch.cat(rows, 1)  # [12, dim]
        return table if self.embed_terrain is None else torch.cat([table, self.embed_terrain])

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``[...]`` (full spectra: pairs ``[..., 2]``) -> ``[..., dim]``; centres count in whole nm, floored."""
        table = self.learned()
        # float32 like the released model: the angles reach 2500 rad, and their rounding is part of its weights
        dtype = torch.promote_types(table.dtype, torch.float32)
        steps = torch.arange(self.dim, device=ids.device, dtype=dtype)
        centre = (ids[..., 0] if self.full_spectra else ids).to(dtype).floor()
        negative = centre < 0
        if self.full_spectra:
            angle = centre[..., None] * 10000 ** (-2 * steps / self.dim)
            spread = ids[..., 1, None].to(dtype) * 10000 ** (-2 * steps / self.dim)
            optical = torch.where(steps % 2 == 0, angle.sin(), angle.cos()) * torch.exp(-0.5 * spread**2)
        else:
            frequency = 1.0 / 10000 ** (steps[: self.dim // 2] / (self.dim / 2))
            angle = (centre // self.coarsity)[..., None] * frequency
            optical = torch.cat([angle.sin(), angle.cos()], -1)
        rows = torch.where(negative, -1 - centre, 0).long()
        # `where` keeps the tables in the graph of an all-optical batch: their gradient is zero, not absent
        return torch.where(negative[..., None], table[rows].to(dtype), optical)
