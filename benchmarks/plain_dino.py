"""DINO beside its plain formulation, and the prototype loss beside the one that holds all logits.

Plain DINO has the published patch embedding, all logits at once, Sinkhorn on the whole matrix, an EMA and an AdamW that
loop over parameters. Run by benchmarks/step.py.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinov2.data.batch import Batch
from dinov2.data.masking import draw_mask
from dinov2.models import build_encoder
from dinov2.objectives import losses
from dinov2.objectives.base import Now
from dinov2.objectives.dino import DINO, Targets
from tests.dinov2.models.reference import PublishedPatchEmbed

B = 2
NOW = Now(step=0, lr=1e-4, weight_decay=0.04, momentum=0.994, teacher_temp=0.07)
ROWS = 600  # of the prototype loss


def peak_mib() -> float:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class PlainTargets(Targets):
    """``features`` are the probabilities themselves."""

    def entropy(self) -> Tensor:
        """Their mean entropy."""
        return -(self.features * self.features.clamp_min(1e-30).log()).sum(-1).mean()


class PlainDINO(DINO):
    """The same objective as it is usually written."""

    def targets(self, level: str, tokens: Tensor, prototypes: Tensor, temperature: float) -> Targets:
        """Sinkhorn-Knopp on the matrix of all logits."""
        q = torch.exp(self.teacher_heads.of(level)(tokens) / temperature).T  # [K, N]
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / len(q)
            q = q / q.sum(0, keepdim=True) / q.shape[1]
        return PlainTargets((q * q.shape[1]).T, prototypes, prototypes.new_zeros(len(prototypes)), temperature)

    def cross_entropy(self, own: Tensor, prototypes: Tensor, theirs: Tensor, by: Targets, weights: Tensor) -> Tensor:
        """Every pair of views by itself."""
        total = weights.new_zeros(())
        for view in own:
            logs = F.log_softmax(F.linear(view, prototypes) / self.student_temp, -1)  # [N, K]
            for probabilities in theirs:
                total = total - (weights * (probabilities * logs).sum(-1)).sum()
        return total

    def after_step(self, now: Now) -> None:
        """One parameter after the other."""
        pairs = (self.teacher_encoder, self.encoder), (self.teacher_heads, self.heads)
        with torch.no_grad():
            for teacher, student in pairs:
                for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                    t.mul_(now.momentum).add_(s, alpha=1 - now.momentum)


class Unfolded(nn.Module):
    """The published patch embedding behind our interface."""

    def __init__(self, folded: nn.Module) -> None:
        super().__init__()
        self.published = PublishedPatchEmbed(folded.proj.out_features)
        self.published.load_state_dict(folded.state_dict())

    def forward(self, x: dict[str, Tensor], keep: None = None) -> Tensor:
        """All patches."""
        return self.published(x)


def dino_batch(objective: DINO) -> Batch:
    """2 x 224 pixels of 9 bands and 4 x 98 of 3."""
    generator, views = torch.Generator().manual_seed(0), {}
    for view, channels in zip(objective.views, (9, 3), strict=True):
        rows = view.count * B
        ids = torch.linspace(443, 2200, channels).long().expand(rows, -1)
        views[view.name] = {
            "imgs": torch.randn(rows, channels, view.size, view.size, generator=generator),
            "chn_ids": ids,
        }
    spec = objective.views[0].mask
    masks = [draw_mask(spec, 224, np.random.default_rng(i)) for i in range(2 * B)]
    views["global"]["masks"] = torch.from_numpy(np.stack(masks))
    return Batch(views, torch.arange(B), [str(i) for i in range(B)])


def dino_steps(plain: bool, steps: int = 2) -> dict[str, float]:
    """Process time of the last of ``steps`` steps, and the loss of each."""
    torch.manual_seed(0)
    kind = PlainDINO if plain else DINO
    objective = kind(build_encoder("vit_small", attn_dim=2304), centering="sinkhorn")
    if plain:
        for encoder in (objective.encoder, objective.teacher_encoder):
            encoder.patch_embed = Unfolded(encoder.patch_embed)
        objective.teacher_encoder.requires_grad_(False)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    kernels = {"foreach": False} if plain else {"fused": True}
    optimizer = torch.optim.AdamW(parameters, lr=NOW.lr, weight_decay=NOW.weight_decay, **kernels)
    batch, found = dino_batch(objective), {}
    for step in range(steps):
        start = time.process_time()
        terms = objective(batch, NOW)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step(NOW)
        found |= {"seconds": time.process_time() - start, f"loss {step}": terms["loss"].item()}
    return found


def prototype_loss(plain: bool, rows: int = ROWS, prototypes: int = 65536, width: int = 256) -> dict[str, float]:
    """Growth in memory by the prototype loss of ``rows`` rows, forward and backward, in MiB."""
    generator = torch.Generator().manual_seed(0)
    own, theirs = (F.normalize(torch.randn(rows, width, generator=generator), dim=1) for _ in "st")
    student, w = own.requires_grad_(), torch.randn(prototypes, width, generator=generator).requires_grad_()
    teacher = w.detach().clone()
    weights = torch.full((rows,), 1 / rows)
    before = peak_mib()
    if plain:
        p = (theirs @ teacher.T / 0.07).softmax(-1)
        loss = -(weights * (p * F.log_softmax(student @ w.T / 0.1, -1)).sum(-1)).sum()
    else:
        loss = losses.prototype_cross_entropy(
            student[None], w, theirs[None], teacher, torch.zeros(prototypes), weights,
            temperature=0.1, teacher_temperature=0.07,
        )  # fmt: skip
    loss.backward()
    return {"MiB": peak_mib() - before, "loss": loss.item()}
