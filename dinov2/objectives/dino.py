"""DINO(v2): a student predicts an EMA teacher's prototype assignments, of whole images and of hidden patches."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dinov2.data.batch import Batch, MaskSpec, View, ViewSpec
from dinov2.env import expand
from dinov2.models.heads import DINOHead
from dinov2.models.vit import VisionTransformer
from dinov2.models.weights import load_weights
from dinov2.objectives.base import Now, Objective, ema_update
from dinov2.objectives.losses import (
    centering_bias,
    koleo,
    masked_weights,
    moved_centre,
    prototype_cross_entropy,
    sinkhorn_bias,
    target_entropy,
)

ENOUGH = 64  # samples in one loss, below which neighbours and balance of prototypes are mostly chance
LEVELS = ("cls", "patch")  # the image (DINO) and its hidden patches (iBOT)


class Targets(NamedTuple):
    """Teacher assignments, not yet multiplied out: ``softmax(features prototypes^T / temperature + bias)``."""

    features: Tensor  # [N, d]
    prototypes: Tensor  # [K, d]
    bias: Tensor  # [K]
    temperature: float

    def entropy(self) -> Tensor:
        """Their mean entropy."""
        return target_entropy(*self)


class Heads(nn.ModuleDict):
    """The head of the image, and that of its hidden patches: the same one, or one each."""

    def __init__(self, separate: bool, **options: Any) -> None:
        super().__init__({level: DINOHead(**options) for level in (LEVELS if separate else LEVELS[:1])})

    def of(self, level: str) -> DINOHead:
        """The head that serves ``level``."""
        return cast(DINOHead, self[level if level in self else "cls"])

    def prototypes(self) -> dict[str, Tensor]:
        """Level -> ``[K, d]``, made once where the head is shared."""
        made = {level: self.of(level).prototypes for level in self}
        return {level: made.get(level, made["cls"]) for level in LEVELS}


class DINO(Objective):
    """DINO on class tokens + iBOT on masked patches + KoLeo (Oquab et al. 2023, arXiv 2304.07193, sec. 4).

    Two global crops go through student (patches masked) and teacher (whole), local crops through the student only.
    ``centering``: ``centering`` (a moving centre, DINO) or ``sinkhorn`` (SwAV). ``separate_ibot_head`` gives patches a
    head of their own. ``teacher_weights`` (see ``load_weights``) makes the teacher a frozen encoder behind fresh,
    frozen heads, and exports the student: distillation.
    ``loss`` is dino_local + dino_global + ibot_weight * ibot + koleo_weight * koleo.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        global_size: int = 224,
        local_size: int = 98,
        local_crops: int = 4,
        global_scale: tuple[float, float] = (0.32, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.32),
        global_bands: tuple[int, int] = (4, 13),
        local_bands: tuple[int, int] = (1, 4),
        prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_layers: int = 3,
        separate_ibot_head: bool = False,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        centering: str = "centering",
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        teacher_weights: str | None = None,
    ) -> None:
        super().__init__()
        if centering not in ("centering", "sinkhorn"):
            raise ValueError(f"objective.centering {centering!r} is neither 'centering' nor 'sinkhorn'")
        if not (student_temp > 0 and 0 <= center_momentum <= 1):
            raise ValueError(
                f"objective.student_temp {student_temp} must be greater than 0 and objective.center_momentum "
                f"{center_momentum} a share from 0 to 1"
            )
        self.ibot_weight, self.koleo_weight, self.student_temp = ibot_weight, koleo_weight, student_temp
        self.centering, self.center_momentum, self.local_crops = centering, center_momentum, local_crops
        mask = MaskSpec("block", encoder.patch_size, probability=mask_probability, ratio_range=mask_ratio)
        crops = (
            ViewSpec("global", 2, global_size, global_scale, global_bands, mask=mask),
            ViewSpec("local", local_crops, local_size, local_scale, local_bands, distinct=False),
        )
        self.views = tuple(view for view in crops if view.count)
        self.encoder: VisionTransformer = encoder
        heads = partial(
            Heads,
            separate_ibot_head,
            prototypes=prototypes,
            layers=head_layers,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
        )
        self.heads = heads(in_dim=encoder.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, encoder.embed_dim))
        self.distils = teacher_weights is not None
        teacher = load_weights(expand(teacher_weights))[0] if teacher_weights else copy.deepcopy(encoder)
        if teacher.patch_size != encoder.patch_size:
            raise ValueError(
                f"objective.teacher_weights {teacher_weights}: its patches of {teacher.patch_size} pixels are not the "
                f"student's of {encoder.patch_size}; set model.patch_size={teacher.patch_size}"
            )
        self.teacher_encoder = teacher.requires_grad_(False)
        teacher_heads = heads(in_dim=teacher.embed_dim) if self.distils else copy.deepcopy(self.heads)
        self.teacher_heads = teacher_heads.requires_grad_(False)
        for level in LEVELS:  # centres of the teacher's bottleneck features; what this step has seen: their sum, count
            self.register_buffer(f"centre_{level}", torch.zeros(bottleneck_dim))
            self.register_buffer(f"seen_{level}", torch.zeros(bottleneck_dim + 1), persistent=False)

    def check_batch(self, batch: int, together: int) -> str | None:
        """See :class:`Objective`."""
        sinkhorn = self.centering == "sinkhorn"
        if together >= (ENOUGH if sinkhorn or self.koleo_weight else 0):
            return None
        return (
            f"dino compares {together} samples, fewer than {ENOUGH}: raise data.batch_size and data.micro_batch, or "
            f"set {'objective.centering=centering and ' if sinkhorn else ''}objective.koleo_weight=0"
        )

    def train(self, mode: bool = True) -> DINO:
        """Training mode is the student's: the teacher never drops a path."""
        super().train(mode)
        self.teacher_encoder.eval()
        self.teacher_heads.eval()
        return self

    def forward(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """See :class:`Objective`; further terms are ``dino_local``, ``dino_global``, ``ibot`` and ``koleo``.

        ``teacher_entropy`` of the image targets and ``teacher_kl``, how far the student is from them, are readings.
        """
        crops, masks = batch.views["global"], batch.views["global"]["masks"]  # masks [2B, L]
        where = masks.flatten().nonzero()[:, 0]  # [M], found once: a device has to be asked how many there are
        image, patch = self.teach(crops, where, now.teacher_temp)
        student = self.encoder.forward_features(crops, masks=masks, fill=self.mask_token[0])
        prototypes = self.heads.prototypes()

        first, second = image.features.chunk(2)  # [B, d]
        samples, pairs = len(first), 2 + max(2 * self.local_crops, 1)
        weights = first.new_full((2 * samples,), 1 / (samples * pairs))
        head = self.heads.of("cls")
        glob = head.bottleneck(student["cls"])[None]  # [1, 2B, d]
        swapped = torch.cat([second, first])[None]  # each global crop learns from the other
        dino_global = self.cross_entropy(glob, prototypes["cls"], swapped, image, weights)
        dino_local = torch.zeros_like(dino_global)
        if self.local_crops:
            local = head.bottleneck(self.encoder(batch.views["local"])).unflatten(0, (-1, samples))  # [n, B, d]
            both = torch.stack([first, second])
            dino_local = self.cross_entropy(local, prototypes["cls"], both, image, weights[:samples])
        hidden = self.heads.of("patch").bottleneck(student["patches"].flatten(0, 1)[where])[None]  # [1, M, d]
        shares = masked_weights(masks).flatten()[where]  # [M]
        ibot = self.cross_entropy(hidden, prototypes["patch"], patch.features[None], patch, shares)
        spread = torch.stack([koleo(x) for x in student["cls"].chunk(2)]).sum()  # crops of one image may lie together
        entropy = image.entropy()
        divergence = dino_global.detach() * pairs / 2 - entropy  # mean KL of the swapped global crops
        health = {"teacher_entropy": entropy, "teacher_kl": divergence}
        terms = {"dino_local": dino_local, "dino_global": dino_global, "ibot": ibot, "koleo": spread}
        return {
            "loss": dino_local + dino_global + self.ibot_weight * ibot + self.koleo_weight * spread,
            **{name: term.detach() for name, term in terms.items()},
            **health,
            "embedding": student["cls"][:samples].detach(),
        }

    def cross_entropy(self, own: Tensor, prototypes: Tensor, theirs: Tensor, by: Targets, weights: Tensor) -> Tensor:
        """Student features ``own`` ``[S, N, d]`` against teacher features ``theirs`` ``[T, N, d]``, balanced ``by``."""
        temperatures = {"temperature": self.student_temp, "teacher_temperature": by.temperature}
        return prototype_cross_entropy(own, prototypes, theirs, by.prototypes, by.bias, weights, **temperatures)

    @torch.no_grad()
    def teach(self, crops: View, where: Tensor, temperature: float) -> tuple[Targets, Targets]:
        """Targets of the class tokens (2B rows) and of the hidden patches (those at ``where`` ``[M]`` of 2B * L)."""
        features = self.teacher_encoder.forward_features(crops)
        tokens = {"cls": features["cls"], "patch": features["patches"].flatten(0, 1)[where]}
        prototypes = self.teacher_heads.prototypes()
        image, patch = (self.targets(level, tokens[level], prototypes[level], temperature) for level in LEVELS)
        return image, patch

    def targets(self, level: str, tokens: Tensor, prototypes: Tensor, temperature: float) -> Targets:
        """Balanced or centred targets of teacher tokens ``[N, D]``; the centre is the one before this batch."""
        features = self.teacher_heads.of(level).bottleneck(tokens)  # [N, d]
        if self.centering == "sinkhorn":
            bias = sinkhorn_bias(features, prototypes, temperature)
        else:
            bias = centering_bias(prototypes, self.get_buffer(f"centre_{level}"), temperature)
            count = features.new_full((1,), len(features))
            self.get_buffer(f"seen_{level}").add_(torch.cat([features.sum(0), count]))
        return Targets(features, prototypes, bias, temperature)

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """Move the EMA teacher, and the centres towards what all ranks have seen since the last step."""
        if not self.distils:
            ema_update(self.teacher_encoder, self.encoder, now.momentum)
            ema_update(self.teacher_heads, self.heads, now.momentum)
        if self.centering == "centering":
            for level in LEVELS:
                centre, seen = self.get_buffer(f"centre_{level}"), self.get_buffer(f"seen_{level}")
                centre.copy_(moved_centre(centre, seen[:-1], seen[-1], self.center_momentum))
                seen.zero_()

    def export(self) -> nn.Module:
        """The teacher's encoder; the student where the teacher is frozen."""
        return self.encoder if self.distils else self.teacher_encoder
