"""BTFM v1.0 and TESSERA v1.1 (Feng et al. 2025, arXiv 2506.20380): released encoders of pixel time series.

What these weights need and nothing else does lives here: raw days, dates repeated instead of masked, the v1.1 GRU that
resets its state before the matrix product, radar in twice its decibels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.state import State, build_loaded, read_weights
from dinov2.models.timeseries import Branch, Pooling, SeriesEncoder
from dinov2.models.zoo.release import encoder_state

OPTICAL = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")  # the order of the weights
INPUTS = {"s2": ["sentinel2_l2a", *OPTICAL], "s1": ["sentinel1_rtc", "VV", "VH"]}
WRAPPERS = ("model_state", "model_state_dict")
# Radar was stored as (20 log10(power) + 50) * 200, twice the decibels: dB = stored / 400 - 25
DOUBLED_SCALE, DOUBLED_OFFSET = 1 / 400, -25.0
DN = 1e-4  # reflectance per stored number
Rows = Sequence[Sequence[float]]  # means, standard deviations
Table = dict[str, dict[str, tuple[float, float]]]


def normalisation(optical: Rows, ascending: Rows, descending: Rows) -> Table:
    """(mean, std) per sensor and band in reflectance and dB, from the published pairs of rows in stored numbers."""
    table: Table = {"sentinel2_l2a": {b: (m * DN, s * DN) for b, m, s in zip(OPTICAL, *optical, strict=True)}}
    radar: dict[str, tuple[float, float]] = {}
    for orbit, rows in {"": ascending, "_ascending": ascending, "_descending": descending}.items():
        for band, mean, std in zip(("VV", "VH"), *rows, strict=True):
            radar[band + orbit] = (mean * DOUBLED_SCALE + DOUBLED_OFFSET, std * DOUBLED_SCALE)
    return table | {"sentinel1_rtc": radar}


class ResetFirstGRU(nn.Module):
    """The v1.1 context: h' = (1 - z) h + z tanh(W_ih x + W_hh (r h) + b_h), normalised. ``[B, T, W] -> [B, T, W]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        names = ("W_ir", "W_iz", "W_ih", "W_hr", "W_hz", "W_hh")
        self.gru_cell = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})
        for gate in "rzh":
            self.gru_cell.register_parameter(f"b_{gate}", nn.Parameter(torch.zeros(width)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        cell: Any = self.gru_cell
        inputs = [cell[f"W_i{gate}"](x) + getattr(cell, f"b_{gate}") for gate in "rzh"]  # 3 x [B, T, W]
        h, states = x.new_zeros(x.shape[0], x.shape[2]), []
        for r, z, candidate in zip(*(i.unbind(1) for i in inputs), strict=True):
            r, z = torch.sigmoid(r + cell["W_hr"](h)), torch.sigmoid(z + cell["W_hz"](h))
            h = (1 - z) * h + z * torch.tanh(candidate + cell["W_hh"](r * h))
            states.append(h)
        return torch.stack(states, 1)


def build_v1(**sizes: Any) -> SeriesEncoder:
    """BTFM v1.0: 40 dates of each sensor."""
    options: dict[str, Any] = {"embed_dim": 128, "depth": 8, "num_heads": 8, "hidden": 4096, "bins": (40,)}
    return SeriesEncoder(**{"inputs": INPUTS, "days": "raw", "padding": "repeat", **options, **sizes})


def build_v1_1(radar: Mapping[str, int] | None = None, **sizes: Any) -> SeriesEncoder:
    """TESSERA v1.1; published maps keep the first 128 of its 192 dimensions. ``radar``: other sizes of that branch."""
    sizes = {
        "embed_dim": 192,
        "width": 768,
        "depth": 4,
        "num_heads": 4,
        "hidden": 2048,
        "bins": range(8, 257, 8),
        **sizes,
    }
    options: dict[str, Any] = {"inputs": INPUTS, "days": "raw", "padding": "repeat", **sizes}
    encoder, width, dim = SeriesEncoder(**options), options["width"], options["embed_dim"]
    if radar:
        encoder.s1_backbone = Branch(2, **{"width": width, "pooling": "gru", "days": "raw", **radar})
    for branch in (encoder.s2_backbone, encoder.s1_backbone):
        branch.attn_pool = Pooling(width, ResetFirstGRU(width), nn.LayerNorm(width))
    reducer = nn.Linear(2 * width, 4 * width), nn.LayerNorm(4 * width), nn.ReLU(), nn.Identity()  # a dropout once
    encoder.dim_reducer = nn.Sequential(*reducer, nn.Linear(4 * width, dim))
    return encoder


@dataclass(frozen=True)
class SeriesRelease:
    """A released encoder of pixel series: how to build it, what else its file holds, and the numbers it was fed.

    ``catalogue``: part of the address of the only one whose series the numbers are of; empty where any will do.
    """

    build: Callable[..., SeriesEncoder]
    unused: tuple[str, ...]
    normalisation: Table
    catalogue: str = ""


V1_OPTICAL = (
    (1711.0938, 1308.8511, 1546.4543, 3010.1293, 3106.5083, 2068.3044, 2685.0845, 2931.5889, 2514.6928, 1899.4922),
    (1926.1026, 1862.9751, 1803.1792, 1741.7837, 1677.4543, 1888.7862, 1736.3090, 1715.8104, 1514.5199, 1398.4779),
)
V1_RADAR = ((5484.0407, 3003.7812), (1871.2334, 1726.0670))
MPC_OPTICAL = (
    (2683.4553, 2223.3630, 2432.0950, 3633.1970, 3602.1755, 3006.4324, 3400.2710, 3515.6392, 2456.9163, 1983.8783),
    (2739.5217, 2846.2993, 2690.8250, 2290.0439, 2088.8970, 2673.1106, 2381.4521, 2229.5225, 1601.0942, 1495.3545),
)
MPC_ASCENDING = ((5588.33, 3025.63), (1713.46, 1693.05))
MPC_DESCENDING = ((5552.97, 2955.05), (1685.59, 1677.64))
HEADS = ("projector.*", "segmented_matryoshka_projector.*")
RELEASES = {
    "btfm_v1": SeriesRelease(build_v1, HEADS, normalisation(V1_OPTICAL, V1_RADAR, V1_RADAR)),
    # numbers of the weights for series from the Planetary Computer; those for AWS are another pair of rows
    "tessera_v1_1_mpc": SeriesRelease(
        build_v1_1, HEADS, normalisation(MPC_OPTICAL, MPC_ASCENDING, MPC_DESCENDING), "planetarycomputer.microsoft.com"
    ),
}


def load_series(name: str, weights: str | Path | State, **sizes: Any) -> SeriesEncoder:
    """The released encoder ``name`` in evaluation mode, from its file or a state dict.

    An unknown name, and keys that are missing, unknown or of another shape, raise ValueError naming them.
    """
    if name not in RELEASES:
        raise ValueError(f"unknown released series encoder {name!r}; known: {', '.join(RELEASES)}")
    release, source = RELEASES[name], "a state dict" if isinstance(weights, Mapping) else str(weights)
    content: Any = weights if isinstance(weights, Mapping) else read_weights(weights)
    content = next((content[w] for w in WRAPPERS if w in content), content)
    state = encoder_state(content, prefixes=("_orig_mod.",), unused=release.unused)
    encoder = build_loaded(partial(release.build, **sizes), state, f"{name} from {source}")
    assert isinstance(encoder, SeriesEncoder)
    return encoder
