"""What looks at a view: pixel statistics, a vision transformer, a released encoder; and what is known of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.data.batch import View
from dinov2.data.stats import Normalisation
from dinov2.models import state
from dinov2.models.patch import fixed_bands, fixed_count
from dinov2.models.timeseries import SeriesEncoder
from dinov2.models.vit import VisionTransformer
from dinov2.models.zoo.release import Bands, Expects
from dinov2.sensors import suggest

LAST_BLOCKS = 4  # the linear grid pools up to so many (DINOv2)
TRAINED = ("frozen", "finetune", "patch_embed")  # what of an encoder is trained with a decoder


class Network(nn.Module):
    """What looks at a view.

    ``native``: the side in pixels of the images it was made for, None: any. ``pyramid``: each of its maps is half as
    large as the one before; else all are of one size.
    """

    native: int | None = None
    pyramid = False

    def pooled(self, x: View) -> dict[str, Tensor]:
        """Features ``[B, D]`` by the name of their pooling; the model's own embedding comes first."""
        raise NotImplementedError

    def maps(self, x: View) -> list[Tensor]:
        """Feature maps ``[B, D, h, w]``, shallow to deep."""
        raise NotImplementedError


class PixelStats(Network):
    """Mean and standard deviation per band of the standardised image, and its pixels: what needs no network at all."""

    def pooled(self, x: View) -> dict[str, Tensor]:
        """``{"pixels": [B, 2C]}``; hidden channels stay 0."""
        std, mean = torch.std_mean(self.maps(x)[0].flatten(2), dim=2, correction=0)  # [B, C]
        return {"pixels": torch.cat([mean, std], 1)}

    def maps(self, x: View) -> list[Tensor]:
        """The pixels themselves ``[B, C, H, W]``."""
        return [fixed_bands(x, x["imgs"].shape[1])]


class Transformer(Network):
    """A vision transformer."""

    encoder: Any

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.native = getattr(encoder, "config", {}).get("img_size")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.encoder.blocks)

    def embedding(self, x: View, cls: Tensor) -> Tensor:
        """The encoder's own output ``[B, D]``, given the last block's class token."""
        return cls

    def pooled(self, x: View) -> dict[str, Tensor]:
        """Every pooling of the linear grid from one pass; ``cls`` equals the encoder's own output."""
        layers = self.encoder.get_intermediate_layers(x, n=min(LAST_BLOCKS, self.depth), return_class_token=True)
        tokens = [cls for _, cls in layers]  # n x [B, D]
        cls, cls4, mean = self.embedding(x, tokens[-1]), torch.cat(tokens, 1), layers[-1][0].mean(1)
        return {
            "cls": cls,
            "mean": mean,
            "cls+mean": torch.cat([cls, mean], 1),
            "cls4": cls4,
            "cls4+mean": torch.cat([cls4, mean], 1),
        }

    def maps(self, x: View) -> list[Tensor]:
        """Feature maps ``[B, D, h, w]`` at four depths (every third block of twelve)."""
        at = sorted({max(0, round(self.depth * i / LAST_BLOCKS) - 1) for i in range(1, LAST_BLOCKS + 1)})
        return list(self.encoder.get_intermediate_layers(x, n=at, reshape=True))


class Released(Transformer):
    """A released encoder: its published embedding, and maps of the blocks that its ``expects`` names."""

    def __init__(self, encoder: nn.Module, expects: Expects) -> None:
        super().__init__(encoder)
        self.expects = expects

    def embedding(self, x: View, cls: Tensor) -> Tensor:
        """See the base class; a second pass where the published embedding is more than the class token."""
        return cls if type(self.encoder).forward is VisionTransformer.forward else self.encoder(x)

    def maps(self, x: View) -> list[Tensor]:
        """Feature maps ``[B, D', h, w]`` after the released blocks."""
        return list(self.encoder.maps(x, self.expects.layers))


def digest(module: nn.Module) -> str:
    """Twelve hex digits that identify the weights."""
    return state.digest(module.state_dict())[:12]


class Convolutional(Network):
    """A convolutional encoder that gives a latent vector and a pyramid of maps, those numbered in ``layers``."""

    pyramid = True

    def __init__(self, encoder: Any, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers
        self.native = getattr(encoder, "img_size", None)

    def pooled(self, x: View) -> dict[str, Tensor]:
        """The encoder's own output: a single vector, so that probes need no choice of one."""
        return {"latent": self.encoder(x)}

    def maps(self, x: View) -> list[Tensor]:
        """See the base class; finest first."""
        return self.encoder.maps(x, self.layers)


def network_of(encoder: Any) -> Transformer | Convolutional:
    """What looks at a view with an encoder that was trained here; ValueError for one that looks at no images."""
    if isinstance(encoder, SeriesEncoder):
        raise ValueError("--model-obj names an encoder of pixel series, not of images: use eval/embed.py")
    return Convolutional(encoder) if getattr(encoder, "pyramid", False) else Transformer(encoder)


class ForData(Network):
    """A network yet to be made for the data at hand: ``make(view)``, a view of training images."""

    def __init__(self, make: Callable[[View], Network]) -> None:
        super().__init__()
        self.make = make


@dataclass(frozen=True)
class Model:
    """An encoder under evaluation.

    ``role`` is pretrained, floor, or baseline (trained from scratch); ``digest`` identifies the weights;
    ``normalisation`` travels with a checkpoint and is None where the dataset's own statistics apply; ``expects`` says
    what a released encoder takes. ``network`` is in evaluation mode and no parameter requires a gradient, until
    :meth:`unfreeze`.
    """

    name: str
    role: str
    digest: str
    network: Network
    normalisation: Normalisation | None = None
    expects: Expects | None = None

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    @property
    def frames(self) -> int:
        """How many dates of a series it takes at once, as images ``[B, C, T, H, W]``."""
        return self.expects.frames if self.expects else 1

    @property
    def bands(self) -> tuple[Bands, ...]:
        """The channels that it takes, sensor after sensor; empty: any."""
        if self.expects:
            return self.expects.bands
        if fixed_count(getattr(self.network, "encoder", self.network)) is None or not self.normalisation:
            return ()
        known = self.normalisation  # its bands are in the order of the weights
        return tuple(Bands(sensor, tuple(table), known.units[sensor]) for sensor, table in known.table.items())

    @property
    def native(self) -> int | None:
        """The side in pixels of the images it was made for; None: any."""
        return self.expects.size if self.expects else self.network.native

    @property
    def pyramid(self) -> bool:
        """Whether each of its maps is half as large as the one before."""
        return self.network.pyramid

    def fitted(self, x: View) -> Model:
        """This model made for the data of a view of training images, where it depends on them; else itself.

        The baselines need to know the number of bands, random features may be drawn from the images.
        """
        if not isinstance(self.network, ForData):
            return self
        return replace(self, network=self.network.make(x).to(x["imgs"].device))

    def features(self, x: View) -> dict[str, Tensor]:
        """Pooled features by name, each ``[B, D']``."""
        return self.network.pooled(x)

    def embed(self, x: View) -> Tensor:
        """The model's one embedding ``[B, D]``: the class token where it has one."""
        return next(iter(self.features(x).values()))

    def maps(self, x: View) -> list[Tensor]:
        """Feature maps, each ``[B, D, h, w]``, shallow to deep; with a graph where parameters require gradients."""
        return self.network.maps(x)

    @torch.no_grad()
    def widths(self, x: View) -> list[int]:
        """Channels of each map, found by a pass over the first image of a view."""
        assert not self.network.training, "batch statistics would change"
        return [m.shape[1] for m in self.maps({k: v[:1] for k, v in x.items()})]

    def unfreeze(self, what: str) -> list[nn.Parameter]:
        """The parameters to train with a decoder, after this the only ones that require gradients.

        ``what`` is one of ``TRAINED``: nothing, all (in training mode), or the patch embedding alone. They change in
        place: train a deep copy where the model is still needed. ValueError where there is nothing to train.
        """
        if what not in TRAINED:
            raise ValueError(f"task.train is {what!r}{suggest(what, TRAINED)} Known: {', '.join(TRAINED)}")
        every = dict(self.network.named_parameters())
        names = [n for n in every if what == "finetune" or (what == "patch_embed" and "patch_embed" in n.split("."))]
        if what != "frozen" and not names:
            raise ValueError(f"model {self.name} has nothing to train as {what!r}; set task.train=frozen")
        self.network.train(what == "finetune").requires_grad_(False)
        for name in names:
            every[name].requires_grad_(True)
        return [every[name] for name in names]
