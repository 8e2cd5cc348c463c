"""From observations to embeddings: pixels with equally many dates together, in batches of one fixed size.

The size is fixed because a matrix product of another size may round otherwise: a pixel's embedding depends on the pixel
alone, not on the tile, block or worker it came with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dinov2.data.series import Observed, Track, bin_of, bring, observe
from dinov2.models.timeseries import SeriesEncoder
from eval.series.models import SeriesModel

BATCH = {"cpu": 64, "cuda": 1024}  # pixels in a pass: what caches hold, what keeps a GPU busy
COMPUTE = {"float32": torch.float32, "bf16": torch.bfloat16}  # number types of matrix products


def groups(tracks: Sequence[Track], bins: Sequence[int]) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Pixel numbers and the bin of each track, for every combination of bins; unobserved pixels are in none."""
    counts = np.stack([track.valid.sum(0) for track in tracks])  # [2, P]
    size = np.stack([bin_of(count, bins) for count in counts])
    for pair in np.unique(size[:, counts.any(0)], axis=1).T:
        yield np.flatnonzero((size == pair[:, None]).all(0)), tuple(pair.tolist())


def batches(
    encoder: SeriesEncoder, tracks: Mapping[str, Track], batch: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Pixel numbers, and the encoder's dictionary of them and of repetitions that make ``batch`` pixels."""
    for members, sizes in groups(list(tracks.values()), encoder.bins):
        for start in range(0, len(members), batch):
            part = members[start : start + batch]
            filled = np.pad(part, (0, batch - len(part)), mode="edge")  # the same size always: see the module
            x: dict[str, np.ndarray] = {}
            for (name, track), size in zip(tracks.items(), sizes, strict=True):
                x |= track.pick(name, filled, *bring(track.valid[:, filled], size, encoder.padding))
                if encoder.padding == "repeat":  # all dates are observations, and attention is faster without a mask
                    del x[f"{name}_valid"]
            yield part, x


@torch.inference_mode()
def embed(
    model: SeriesModel,
    images: Sequence[Observed],
    device: torch.device,
    where: str,
    *,
    batch: int | None = None,
    compute: str = "float32",
) -> np.ndarray:
    """Embeddings float32 ``[P, D]`` of the pixels of ``images`` (``[T, P, C]`` each); NaN without any observation.

    ``model.encoder`` lies on ``device``; ``batch`` None: that of ``BATCH``; ``compute``: a key of ``COMPUTE``;
    ``where`` names the source in complaints (ValueError, see :func:`dinov2.data.series.observe`).
    """
    encoder = model.encoder
    pixels = images[0].stored.shape[1]
    tracks = {n: observe(images, w, pixels, model.normalisation, where) for n, w in encoder.inputs.items()}
    out = np.full((pixels, encoder.embed_dim), np.nan, np.float32)
    with torch.autocast(device.type, COMPUTE[compute], enabled=compute != "float32"):
        for part, x in batches(encoder, tracks, batch or BATCH[device.type]):
            out[part] = encoder(on(x, device)).float().cpu().numpy()[: len(part)]
    return out


def on(x: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The encoder's dictionary on its device."""
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in x.items()}
