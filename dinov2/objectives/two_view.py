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
from torch.nn import functional as F

from dinov2.data.batch import Batch, View, ViewSpec
from dinov2.distributed import gather
from dinov2.models.heads import mlp_head
from dinov2.models.vit import VisionTransformer
from dinov2.objectives import losses
from dinov2.objectives.base import Now, Objective, ema_update
from dinov2.objectives.mixup import mixed, mixed_correlation, partners


@dataclass(frozen=True)
class Row:
    """``asymmetric``: predictor and EMA teacher; ``loss(a, b, **knobs)`` of two ``[B, P]`` projections."""

    asymmetric: bool
    loss: Callable[..., Tensor]
    knobs: tuple[str, ...] = ()
    enough: int = 0  # samples in the global batch, below which the published results fall off
    remedy: str = ""


LARGER = "raise data.batch_size; data.micro_batch with train.exact_accumulation bounds its memory"
ROWS = {
    # Chen et al. 2020, eq. 1
    "simclr": Row(False, losses.nt_xent, ("temperature",), 256, LARGER),
    # Chen, Xie, He 2021 (v3), eq. 1; He et al. 2020 with a queue
    "moco": Row(
        True, losses.info_nce, ("temperature", "queue"), 256, f"set objective.queue to 4096 or more, or {LARGER}"
    ),
    # Grill et al. 2020, eq. 2 up to the constant and factor 2
    "byol": Row(True, losses.negative_cosine, (), 128, LARGER),
    # Zbontar et al. 2021, eq. 1
    "barlow": Row(False, losses.cross_correlation, ("off_diagonal", "mixup"), 128, LARGER),
}
KNOBS = {knob for row in ROWS.values() for knob in row.knobs}


class TwoView(Objective):
    """Two crops per sample (from two sensors where it has them), one loss between their projections.

    ``queue`` > 0 is MoCo's first form (arXiv 1911.05722): negatives are that many earlier keys instead of those of the
    batch, and there is no predictor. Keys that enter it are the teacher's of the second crops. ``mixup`` > 0 adds
    Barlow Twins' regulariser on mixed pixel series, as many times ``off_diagonal``.
    """

    queue: Tensor | None  # [Q, P], unit rows
    pointer: Tensor  # [1], the oldest row

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
        mixup: float = 0.0,
        hidden_dim: int = 2048,
        projection_dim: int = 256,
        projector_layers: int = 3,
        queue: int = 0,
    ) -> None:
        super().__init__()
        assert not queue or "queue" in ROWS[row].knobs, f"{row} has no queue"
        if temperature <= 0:
            raise ValueError(f"objective.temperature {temperature} must be greater than 0")
        knobs = {"temperature": temperature, "off_diagonal": off_diagonal}
        self.name, self.asymmetric = row, ROWS[row].asymmetric
        self.loss = partial(ROWS[row].loss, **{k: v for k, v in knobs.items() if k in ROWS[row].knobs})
        self.mixup = mixup * off_diagonal
        self.views = (ViewSpec("crop", 2, size, scale, bands, distinct),)
        self.encoder = encoder
        self.projector = mlp_head(encoder.embed_dim, hidden_dim, projection_dim, projector_layers)
        if self.asymmetric:
            self.predictor = nn.Identity() if queue else mlp_head(projection_dim, hidden_dim, projection_dim, 2)
            self.teacher = copy.deepcopy(nn.Sequential(encoder, self.projector)).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, projection_dim), dim=1) if queue else None)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long) if queue else None)
        self.keys: list[Tensor] = []  # of the micro-batches since the last step

    def check_batch(self, batch: int, together: int) -> str | None:
        """See :class:`Objective`."""
        if together < 2:
            raise ValueError(
                f"{self.name} compares samples of a batch: data.batch_size and micro-batches must exceed 1"
            )
        if self.queue is not None and len(self.queue) < batch:
            raise ValueError(f"objective.queue {len(self.queue)} is smaller than data.batch_size {batch}; enlarge it")
        if self.queue is not None or together >= ROWS[self.name].enough:
            return None
        return f"{self.name} compares {together} samples, fewer than {ROWS[self.name].enough}: {ROWS[self.name].remedy}"

    def train(self, mode: bool = True) -> TwoView:
        """Training mode is the student's: the teacher drops no path; its projector normalises by the batch."""
        super().train(mode)
        if self.asymmetric:
            self.teacher[0].eval()
        return self

    def forward(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """One pass over both views; see :class:`Objective`."""
        crops = batch.views["crop"]
        terms = self.compare(self.embed(crops))
        if self.mixup:
            partner, share = partners(batch.positions)
            blend = self.projector(self.encoder(mixed(crops, partner, share)))  # [B, P]
            z0, z1 = terms.pop("projected").chunk(2)  # [B, P] each
            terms["mixup"] = self.mixup * mixed_correlation(z0, z1, blend, partner, share)
            terms["loss"] = terms["loss"] + terms["mixup"]
        return terms

    def embed(self, crops: View) -> dict[str, Tensor]:
        """``student`` ``[2B, D]``, and without gradient ``teacher`` ``[2B, D]`` where there is one."""
        embedded = {"student": self.encoder(crops)}
        if self.asymmetric:
            with torch.no_grad():
                embedded["teacher"] = self.teacher[0](crops)
        return embedded

    def compare(self, embedded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Heads and loss of the whole batch, crop-major as :meth:`embed` returns it."""
        z = self.projector(embedded["student"])  # [2B, P]
        if self.asymmetric:
            with torch.no_grad():
                t0, t1 = self.teacher[1](embedded["teacher"]).chunk(2)  # [B, P] each
            (p0, p1), negatives = self.predictor(z).chunk(2), {}
            if self.queue is not None:
                negatives = {"queue": self.queue}
                self.keys.append(t1)
            loss = (self.loss(p0, t1, **negatives) + self.loss(p1, t0, **negatives)) / 2
        else:
            loss = self.loss(*z.chunk(2))
        terms = {"loss": loss, "embedding": embedded["student"].detach()}
        return {**terms, "projected": z} if self.mixup else terms

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """Move the EMA teacher, and let the keys of this step into the queue."""
        if self.asymmetric:
            ema_update(self.teacher, nn.Sequential(self.encoder, self.projector), now.momentum)
        if self.queue is not None:
            own = torch.cat(self.keys)  # [B, P]
            everyone = gather(own).unflatten(0, (-1, len(own)))  # [W, B, P]
            enqueue(self.queue, self.pointer, everyone.transpose(0, 1).flatten(0, 1))  # in the stream's order
            self.keys.clear()

    def export(self) -> nn.Module:
        """The EMA teacher's encoder where there is one, else the student."""
        return self.teacher[0] if self.asymmetric else self.encoder


def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Overwrite the oldest rows of ``queue`` ``[Q, P]``, from ``pointer`` ``[1]`` on, by ``keys`` ``[N, P]``.

    Keys are normalised; those that would pass the end are left out, so that the next batch starts at row 0.
    """
    start = int(pointer)
    kept = F.normalize(keys.to(queue.dtype), dim=1)[: len(queue) - start]
    queue[start : start + len(kept)] = kept
    pointer.copy_((pointer + len(kept)) % len(queue))
