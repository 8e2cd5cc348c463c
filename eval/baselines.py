"""Models that are made for the data at hand: random convolutional features, and networks trained from scratch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.config import fingerprint
from dinov2.data.batch import View
from dinov2.models import build_encoder
from dinov2.models.patch import fixed_bands
from eval.decoders.unet import UNetEncoder
from eval.networks import ForData, Model, Network, Transformer
from eval.released import options

BIAS = -1.0  # of every random filter's response
CELL = 4  # pixels of the image per pixel of the maps of random features
WHITENING = 1e-3  # added to the patches' covariance
SOURCES = ("gaussian", "patches")
SEEN = 16  # images that patches are drawn from: as many at any batch size of at least that


class RandomFeatures(Network):
    """Random convolutional features (Rolf et al. 2021, Nature Communications 12:4392, Methods).

    Filters w give y = w * x + ``BIAS`` and the features relu(y), relu(-y), averaged over the image or cells of it.
    """

    filters: Tensor

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.register_buffer("filters", filters)  # [K/2, C, s, s]; never trained

    def responses(self, image: Tensor) -> Tensor:
        """``[1, C, H, W]`` -> ``[1, K, H - s + 1, W - s + 1]``."""
        y = F.conv2d(image, self.filters) + BIAS
        return torch.cat([y.relu(), (-y).relu()], 1)

    def images(self, x: View) -> Sequence[Tensor]:
        """One by one: the responses of a whole batch would fill the memory."""
        return fixed_bands(x, self.filters.shape[1]).split(1)

    def pooled(self, x: View) -> dict[str, Tensor]:
        """``{"rcf": [B, K]}``."""
        return {"rcf": torch.cat([self.responses(image).mean((2, 3)) for image in self.images(x)])}

    def maps(self, x: View) -> list[Tensor]:
        """Means over cells of the image ``[B, K, H / CELL, W / CELL]``, rounded up."""
        before, after = (self.filters.shape[-1] - 1) // 2, self.filters.shape[-1] // 2
        padded = (F.pad(image, (before, after, before, after), mode="replicate") for image in self.images(x))
        return [torch.cat([F.avg_pool2d(self.responses(image), CELL, ceil_mode=True) for image in padded])]


def rcf(x: View, seed: int, *, features: int = 512, size: int = 3, source: str = "gaussian") -> Network:
    """``features`` random features of ``size`` x ``size`` pixels for the bands of ``x``.

    ``source``: filters from a normal distribution, or patches of the first ``SEEN`` images of ``x``, each brought to
    mean 0 and length 1 and multiplied by the inverse covariance of all: whitened filters on whitened pixels (Coates and
    Ng 2012). Raises ValueError for what cannot be drawn.
    """
    imgs, draw = fixed_bands(x, x["imgs"].shape[1])[:SEEN].float().cpu(), torch.Generator().manual_seed(seed)
    (n, c, height, width), half = imgs.shape, features // 2
    if features < 2 or features % 2 or not 1 <= size <= min(height, width) or source not in SOURCES:
        raise ValueError(
            f"model rcf: features is an even number, size at most the image's {min(height, width)} pixels and source "
            f"one of {', '.join(SOURCES)}; given {features}, {size} and {source!r}"
        )
    if source == "gaussian":
        return RandomFeatures(torch.randn(half, c, size, size, generator=draw))
    limits = (n, height - size + 1, width - size + 1)
    places = [torch.randint(limit, (half,), generator=draw).tolist() for limit in limits]
    patches = torch.stack([imgs[i, :, y : y + size, x : x + size] for i, y, x in zip(*places, strict=True)]).flatten(1)
    patches = F.normalize(patches - patches.mean(1, keepdim=True)).double()  # [K/2, C*s*s]; nearly dependent
    covariance = patches.T @ patches / half + WHITENING * torch.eye(patches.shape[1], dtype=torch.double)
    whitened = torch.linalg.solve(covariance, patches.T).T.float()
    return RandomFeatures(whitened.reshape(half, c, size, size))


class UNetNetwork(Network):
    """The contracting half of a U-Net; with the decoder ``unet`` it is the supervised baseline."""

    pyramid = True

    def __init__(self, bands: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.bands, self.encoder = bands, UNetEncoder(bands, widths=widths)

    def pooled(self, x: View) -> dict[str, Tensor]:
        """``{"mean": [B, D]}`` of the deepest map."""
        return {"mean": self.maps(x)[-1].mean((2, 3))}

    def maps(self, x: View) -> list[Tensor]:
        """``[B, D_i, H / 2^i, W / 2^i]``."""
        return self.encoder(fixed_bands(x, self.bands))


def unet(x: View, seed: int, *, width: int = 64, depth: int = 4) -> Network:
    """A U-Net of ``depth`` contractions for the bands of ``x``, ``width`` channels at full resolution."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNetNetwork(x["imgs"].shape[1], [width * 2**i for i in range(depth)])


def vit_scratch(x: View, seed: int, *, arch: str = "vit_base", patch_size: int = 16, **sizes: Any) -> Network:
    """A plain vision transformer for the bands and the size of the images of ``x``; ``sizes`` as build_encoder's."""
    bands, side = x["imgs"].shape[1], x["imgs"].shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(build_encoder(arch, patch_size, side, embed="conv", in_chans=bands, **sizes))


BASELINES: Mapping[str, tuple[Callable[..., Network], str]] = {  # how they are made, and their role
    "rcf": (rcf, "floor"),
    "unet": (unet, "baseline"),
    "vit_scratch": (vit_scratch, "baseline"),
}


def baseline(kind: str, query: str, seed: int) -> Model:
    """``KIND?key=value``: a model whose network is made as soon as the data are known."""
    name, (make, role) = f"{kind}?{query}" if query else kind, BASELINES[kind]
    given = options(query, name)
    try:
        inspect.signature(make).bind(None, seed, **given)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    return Model(name, role, fingerprint([kind, given, seed]), ForData(partial(make, seed=seed, **given)))
