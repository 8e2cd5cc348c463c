"""From observations to embeddings: pixels with equally many dates together, in batches of one fixed size.

The size is fixed because a matrix product of another size may round otherwise: a pixel's embedding depends on the pixel
alone, not on the tile, block or worker it came with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dinov2.data.series import Observed, Track, bin_of, bring, observe
from eval.series.models import SeriesModel


def groups(tracks: Sequence[Track], bins: Sequence[int]) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Pixel numbers and the bin of each track, for every combination of bins; unobserved pixels are in none."""
    counts = np.stack([track.valid.sum(0) for track in tracks])  # [2, P]
    size = np.stack([bin_of(count, bins) for count in counts])
    for pair in np.unique(size[:, counts.any(0)], axis=1).T:
        yield np.flatnonzero((size == pair[:, None]).all(0) & counts.any(0)), tuple(pair.tolist())


@torch.inference_mode()
def embed(
    model: SeriesModel, images: Sequence[Observed], batch: int, device: torch.device | str, where: str
) -> np.ndarray:
    """Embeddings float32 ``[P, D]`` of the pixels of ``images`` (``[T, P, C]`` each); NaN without any observation.

    ``model.encoder`` lies on ``device``; ``where`` names the source in complaints (ValueError, see
    :func:`dinov2.data.series.observe`).
    """
    encoder = model.encoder
    pixels = images[0].stored.shape[1]
    tracks = {n: observe(images, w, pixels, model.normalisation, where) for n, w in encoder.inputs.items()}
    out = np.full((pixels, encoder.embed_dim), np.nan, np.float32)
    for members, sizes in groups(list(tracks.values()), encoder.bins):
        for start in range(0, len(members), batch):
            part = members[start : start + batch]
            filled = np.pad(part, (0, batch - len(part)), mode="edge")  # the same size always: see the module
            x: dict[str, np.ndarray] = {}
            for (name, track), size in zip(tracks.items(), sizes, strict=True):
                x |= track.pick(name, filled, *bring(track.valid[:, filled], size, encoder.padding))
            out[part] = encoder(on(x, device)).float().cpu().numpy()[: len(part)]
    return out


def on(x: dict[str, np.ndarray], device: torch.device | str) -> dict[str, Tensor]:
    """The encoder's dictionary on its device."""
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in x.items()}
