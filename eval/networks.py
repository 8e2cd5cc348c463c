"""What looks at a view: pixel statistics, a frozen vision transformer, a released encoder; and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.data.batch import View
from dinov2.data.stats import Normalisation
from dinov2.models.vit import VisionTransformer
from dinov2.models.zoo.release import Expects

LAST_BLOCKS = 4  # the linear grid pools up to so many (DINOv2)


class PixelStats(nn.Module):
    """Mean and standard deviation per band of the standardised image: what needs no network at all."""

    def pooled(self, x: View) -> dict[str, Tensor]:
        """``{"pixels": [B, 2C]}``; hidden channels stay 0."""
        shown = ~x["spec_masks"] if "spec_masks" in x else torch.ones_like(x["chn_ids"], dtype=torch.bool)
        std, mean = torch.std_mean(x["imgs"].flatten(2), dim=2, correction=0)  # [B, C]
        return {"pixels": torch.cat([mean * shown, std * shown], 1)}

    def maps(self, x: View) -> list[Tensor]:
        """Pixel statistics have no feature map."""
        raise ValueError("pixelstats has no feature maps; evaluate it with knn or linear")


class Frozen(nn.Module):
    """A vision transformer that is only looked at."""

    encoder: Any

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

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


class Released(Frozen):
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


@dataclass(frozen=True)
class Model:
    """An encoder under evaluation.

    ``role`` is pretrained or floor; ``digest`` identifies the weights; ``normalisation`` travels with a checkpoint and
    is None where the dataset's own statistics apply; ``expects`` says what a released encoder takes.
    """

    name: str
    role: str
    digest: str
    network: Frozen | PixelStats
    normalisation: Normalisation | None = None
    expects: Expects | None = None

    def features(self, x: View) -> dict[str, Tensor]:
        """Pooled features by name, each ``[B, D']``."""
        return self.network.pooled(x)

    def embed(self, x: View) -> Tensor:
        """The model's one embedding ``[B, D]``: the class token where it has one."""
        return next(iter(self.features(x).values()))

    def maps(self, x: View) -> list[Tensor]:
        """Feature maps, each ``[B, D, h, w]``, shallow to deep."""
        return self.network.maps(x)
