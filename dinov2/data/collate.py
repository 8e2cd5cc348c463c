"""From drawn samples to one upload: what a loader worker ships."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dinov2.sensors import MIN_ID

WAVELENGTHS = (100, 20000)  # nm; the range dinov2.sensors.Band accepts


@dataclass(frozen=True)
class Piece:
    """Bands of one image inside a crop, as stored, with what the device needs to make them a part of a view.

    ``planes`` ``[c, h, w]`` stored dtype; ``slots`` ``[c]`` their channels in the view; ``params`` float32 ``[c, 8]``:
    scale, offset, nodata (NaN: none), mean, std (model unit), gain, contrast, shift; ``noise`` ``[c]`` 32-bit keys of
    the speckle; ``power``: linear SAR power, to become dB; ``looks`` of the speckle (0: none).
    """

    planes: np.ndarray
    slots: np.ndarray
    params: np.ndarray
    noise: np.ndarray
    power: bool
    looks: float

    @property
    def group(self) -> tuple[str, int, bool, float]:
        """Pieces of one group are computed together; sides differ by a fourth at most, to bound the padding."""
        side = max(self.planes.shape[-2:])
        step = max(8, (1 << (side.bit_length() - 1)) // 4)
        return self.planes.dtype.name, -(-side // step), self.power, self.looks


@dataclass(frozen=True)
class RawCrop:
    """One crop: ``chn_ids`` int ``[C]``, ``flips`` (upside down, left-right), ``mask`` bool ``[L]`` or None."""

    pieces: tuple[Piece, ...]
    chn_ids: np.ndarray
    flips: tuple[bool, bool]
    mask: np.ndarray | None


@dataclass(frozen=True)
class RawView:
    """The crops of one view of a sample; ``size`` (height, width) in pixels, ``width`` channels after padding."""

    crops: tuple[RawCrop, ...]
    size: tuple[int, int]
    width: int


@dataclass(frozen=True)
class RawSample:
    """A sample's views before they are computed; ``position`` is the global sample position, ``targets`` float32."""

    key: str
    position: int
    views: Mapping[str, RawView]
    labels: Mapping[str, int]
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Planes of equal dtype and similar size: ``shape`` (N, H, W) of ``dtype`` from byte ``start``, K pieces."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    start: int
    pieces: int
    power: bool
    looks: float


@dataclass(frozen=True)
class ViewBatch:
    """One view of a batch, crop-major: R = count * B rows of ``width`` channels.

    ``planes`` int64 ``[N, 3]``: row * width + slot, piece, noise key; ``params`` float32 ``[N, 8]`` as in Piece;
    ``pieces`` int64 ``[K, 4]``: h, w, flips; groups follow each other in both. ``chn_ids``, ``spec_masks`` ``[R, C]``,
    ``masks`` ``[R, L]`` or None as in :class:`dinov2.data.batch.Batch`.
    """

    groups: tuple[Group, ...]
    planes: Tensor
    params: Tensor
    pieces: Tensor
    chn_ids: Tensor
    spec_masks: Tensor
    masks: Tensor | None
    size: tuple[int, int]


@dataclass(frozen=True)
class RawBatch:
    """A micro-batch as it leaves a worker: all pixels in one byte ``buffer`` (one upload), everything else small."""

    buffer: Tensor
    views: Mapping[str, ViewBatch]
    positions: Tensor
    keys: list[str]
    labels: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]

    def pin_memory(self) -> RawBatch:
        """The batch with its pixels in page-locked memory; a DataLoader with ``pin_memory=True`` calls this."""
        return replace(self, buffer=self.buffer.pin_memory())


def check_crop(key: str, view: str, crop: RawCrop, width: int) -> None:
    """Raise, naming the sample, unless ids and channels fit each other and at least one channel is there."""
    ids, where = crop.chn_ids, f"sample {key!r}, view {view!r}"
    if ids.dtype.kind != "i":
        raise ValueError(f"{where}: channel ids are {ids.dtype}; they must be integers")
    if not 0 < len(ids) <= width:
        raise ValueError(f"{where}: {len(ids)} channels; a view needs between 1 and {width}, or all would be padding")
    slots = np.sort(np.concatenate([p.slots for p in crop.pieces])) if crop.pieces else np.empty(0, int)
    if not np.array_equal(slots, np.arange(len(ids))):
        raise ValueError(f"{where}: {len(ids)} channel ids for {len(slots)} channels of pixels")
    wrong = ids[~((ids >= MIN_ID) & (ids < 0) | (ids >= WAVELENGTHS[0]) & (ids <= WAVELENGTHS[1]))]
    if wrong.size:
        raise ValueError(f"{where}: channel id {wrong[0]} is neither {MIN_ID}..-1 nor a wavelength in nm {WAVELENGTHS}")


def collate(samples: Sequence[RawSample]) -> RawBatch:
    """Join samples; every complaint names the sample."""
    assert samples
    first = samples[0]
    for s in samples:
        for name, view in s.views.items():
            for crop in view.crops:
                check_crop(s.key, name, crop, view.width)
        if [(n, v.size) for n, v in s.views.items()] != [(n, v.size) for n, v in first.views.items()]:
            raise ValueError(f"sample {s.key!r}: its views differ in name or size from those of {first.key!r}")
    pixels: list[np.ndarray] = []
    views = {name: _join([s.views[name] for s in samples], pixels) for name in first.views}
    labels = sorted({label for s in samples for label in s.labels})
    return RawBatch(
        torch.from_numpy(np.concatenate(pixels)),
        views,
        torch.tensor([s.position for s in samples]),
        [s.key for s in samples],
        {label: torch.tensor([s.labels.get(label, -1) for s in samples]) for label in labels},
        {name: torch.from_numpy(np.stack([s.targets[name] for s in samples])) for name in first.targets},
    )


def _join(samples: Sequence[RawView], pixels: list[np.ndarray]) -> ViewBatch:
    """One view of all samples; its pixels are appended to ``pixels`` as bytes."""
    width = max(view.width for view in samples)
    crops = [view.crops[i] for i in range(len(samples[0].crops)) for view in samples]  # crop-major
    members = defaultdict(list)
    for row, crop in enumerate(crops):
        for piece in crop.pieces:
            members[piece.group].append((row * width, crop.flips, piece))
    groups, planes, params, pieces = [], [], [], []
    for group in members.values():
        groups.append(_pack([piece for _, _, piece in group], pixels))
        for k, (row, flips, piece) in enumerate(group):
            planes += [(row + slot, k, noise) for slot, noise in zip(piece.slots, piece.noise, strict=True)]
            params.append(piece.params)
            pieces.append((*piece.planes.shape[1:], *flips))
    ids = np.stack([np.pad(c.chn_ids, (0, width - len(c.chn_ids)), mode="edge") for c in crops])  # pads stay valid ids
    padding = np.arange(width) >= np.array([[len(c.chn_ids)] for c in crops])
    masks = [c.mask for c in crops if c.mask is not None]
    return ViewBatch(
        tuple(groups),
        torch.tensor(np.array(planes, np.int64)),
        torch.from_numpy(np.concatenate(params)),
        torch.tensor(pieces),
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(padding),
        torch.from_numpy(np.stack(masks)) if masks else None,
        samples[0].size,
    )


def _pack(pieces: Sequence[Piece], pixels: list[np.ndarray]) -> Group:
    """Append the planes of one group, each padded with zeros to the largest, to ``pixels``."""
    height, width = (max(p.planes.shape[axis] for p in pieces) for axis in (1, 2))
    dtype = pieces[0].planes.dtype.newbyteorder("=")
    packed = np.zeros((sum(len(p.planes) for p in pieces), height, width), dtype)
    n = 0
    for p in pieces:
        packed[n : n + len(p.planes), : p.planes.shape[1], : p.planes.shape[2]] = p.planes
        n += len(p.planes)
    start = sum(chunk.size for chunk in pixels)
    pixels += [packed.ravel().view(np.uint8), np.zeros(-packed.nbytes % 8, np.uint8)]  # every group starts aligned
    return Group(packed.shape, getattr(torch, dtype.name), start, len(pieces), pieces[0].power, pieces[0].looks)
