"""SimCLR, MoCo v3, BYOL and Barlow Twins: one class and a four-row table.

All four embed two views of a sample and pull the two embeddings together; they differ in whether the second view is
embedded by an EMA teacher behind which the student predicts, and in the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dinov2.data.batch import Batch, View, ViewSpec
from dinov2.models.heads import mlp_head
from dinov2.models.vit import VisionTransformer
from dinov2.objectives import losses
from dinov2.objectives.base import Now, Objective, ema_update


@dataclass(frozen=True)
class Row:
    """``asymmetric``: predictor and EMA teacher; ``loss(a, b, **knobs)`` of two ``[B, P]`` projections."""

    asymmetric: bool
    loss: Callable[..., Tensor]
    knobs: tuple[str, ...] = ()


ROWS = {
    "simclr": Row(False, losses.nt_xent, ("temperature",)),  # Chen et al. 2020, eq. 1
    "moco": Row(True, losses.info_nce, ("temperature",)),  # Chen, Xie, He 2021 (v3), eq. 1
    "byol": Row(True, losses.negative_cosine),  # Grill et al. 2020, eq. 2 up to the constant 2 and the factor 2
    "barlow": Row(False, losses.cross_correlation, ("off_diagonal",)),  # Zbontar et al. 2021, eq. 1
}
KNOBS = {knob for row in ROWS.values() for knob in row.knobs}


class TwoView(Objective):
    """Two crops per sample (from two sensors where it has them), one loss between their projections."""

    def __init__(
        self,
        encoder: VisionTransformer,
        row: str,
        *,
        size: int = 224,
        scale: tuple[float, float] = (0.2, 1.0),
        bands: tuple[int, int] = (4, 13),
        distinct: bool = True,
        temperature: float = 0.2,
        off_diagonal: float = 5e-3,
        hidden_dim: int = 2048,
        projection_dim: int = 256,
        projector_layers: int = 3,
    ) -> None:
        super().__init__()
        knobs = {"temperature": temperature, "off_diagonal": off_diagonal}
        self.asymmetric = ROWS[row].asymmetric
        self.loss = partial(ROWS[row].loss, **{k: knobs[k] for k in ROWS[row].knobs})
        self.views = (ViewSpec("crop", 2, size, scale, bands, distinct),)
        self.encoder = encoder
        self.projector = mlp_head(encoder.embed_dim, hidden_dim, projection_dim, projector_layers)
        if self.asymmetric:
            self.predictor = mlp_head(projection_dim, hidden_dim, projection_dim, 2)
            self.teacher = copy.deepcopy(nn.Sequential(encoder, self.projector)).requires_grad_(False)

    def forward(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """One pass over both views; see :class:`Objective`."""
        crops = batch.views["crop"]
        h = self.encoder(crops)  # [2B, D]
        z = self.projector(h)  # [2B, P]
        if self.asymmetric:
            (p0, p1), (t0, t1) = self.predictor(z).chunk(2), self.target(crops).chunk(2)  # [B, P] each
            loss = (self.loss(p0, t1) + self.loss(p1, t0)) / 2
        else:
            loss = self.loss(*z.chunk(2))
        return {"loss": loss, "embedding": h.detach()}

    @torch.no_grad()
    def target(self, crops: View) -> Tensor:
        """The teacher's projections of both views, ``[2B, P]``."""
        return self.teacher(crops)

    def after_step(self, now: Now) -> None:
        """Move the EMA teacher."""
        if self.asymmetric:
            ema_update(self.teacher, nn.Sequential(self.encoder, self.projector), now.momentum)

    def export(self) -> nn.Module:
        """The EMA teacher's encoder where there is one, else the student."""
        return self.teacher[0] if self.asymmetric else self.encoder
