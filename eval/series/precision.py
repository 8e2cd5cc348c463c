"""How embeddings are stored: float32, rounded to bfloat16, or 8-bit codes with a scale per pixel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from eval.geotiff import FLOATS, Storage

CODES = 127  # of either sign


STORAGE: Mapping[str, Storage] = {
    "float32": FLOATS,
    "bf16": FLOATS,  # rasters have no such type: 16 zero bits of each number compress away
    "int8": Storage("int8", -128, 2),
}


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[..., D]`` -> int8 codes ``[..., D]`` and scales float32 ``[...]``: x is about code * scale.

    The scale is the largest magnitude / 127, a pixel's own; NaN becomes -128 with a scale of NaN.
    """
    scale = np.abs(x).max(-1) / np.float32(CODES)  # [...]
    empty = np.isnan(scale)
    codes = np.rint(x / np.where(scale > 0, scale, 1)[..., None])
    codes = np.where(empty[..., None], STORAGE["int8"].nodata, np.clip(codes, -CODES, CODES))
    return codes.astype(np.int8), scale.astype(np.float32)


def dequantise(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The inverse of :func:`quantise`, but for rounding."""
    return codes.astype(np.float32) * scale[..., None]


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """Nearest bfloat16 numbers, as float32."""
    return torch.from_numpy(x).bfloat16().float().numpy()


def to_store(x: np.ndarray, precision: str) -> dict[str, np.ndarray]:
    """The arrays to keep: ``values`` and, for codes, ``scales``."""
    if precision == "int8":
        return dict(zip(("values", "scales"), quantise(x), strict=True))
    return {"values": round_to_bf16(x) if precision == "bf16" else x}


def reconstruction(x: np.ndarray, precision: str) -> dict[str, float]:
    """Sums over pixels, to be added up: of squared errors, of squares, of cosines, and the number of pixels."""
    kept = to_store(x, precision)
    again = dequantise(kept["values"], kept["scales"]) if "scales" in kept else kept["values"]
    seen = ~np.isnan(x[..., 0])
    a, b = x[seen].astype(np.float64), again[seen].astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.where(norms > 0, norms, 1)
    return {"error": float(((a - b) ** 2).sum()), "power": float((a**2).sum()), "cosine": float(cosine.sum()),
            "pixels": float(seen.sum())}  # fmt: skip
