"""Is the representation alive? Readings of an embedding, and the alarm that stops a collapsed run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def reading(embedding: Tensor) -> dict[str, float]:
    """Readings of ``embedding`` ``[N, D]``.

    ``std``: mean standard deviation over samples of the L2-normalised embedding times sqrt(D), 1 for directions spread
    over the sphere and 0 when all are equal (SimSiam, Chen & He 2021, section 4.1); ``cosine``: mean pairwise cosine;
    ``rank``: effective rank, exp of the entropy of the singular values (RankMe, Garrido et al. 2023, eq. 1).
    """
    x = embedding.float()
    n, d = x.shape
    unit = torch.nn.functional.normalize(x, dim=1)
    total = unit.sum(0)
    p = torch.linalg.svdvals(x)
    p = p / p.sum().clamp_min(1e-12) + 1e-7
    return {
        "std": (unit.std(0, unbiased=False).mean() * d**0.5).item(),
        "cosine": ((total @ total - n) / (n * (n - 1))).item() if n > 1 else 1.0,
        "rank": torch.exp(-(p * p.log()).sum()).item(),
    }


class CollapseAlarm:
    """Raises once ``std`` stayed below ``bound`` for ``patience`` readings in a row.

    Class tokens of a fresh network with a small LayerScale are all alike (std below 0.001), so readings count once one
    was above the bound, or half of the ``total`` steps are done.
    """

    def __init__(self, bound: float, patience: int, total: int) -> None:
        self.bound, self.patience, self.total = bound, patience, total
        self.low, self.alive = 0, False  # kept in checkpoints

    def check(self, step: int, health: dict[str, float]) -> None:
        """Take one reading."""
        self.alive |= health["std"] >= self.bound
        self.low = self.low + 1 if health["std"] < self.bound else 0
        if self.low >= self.patience and (self.alive or 2 * step > self.total):
            raise ValueError(
                f"the representation collapsed: embedding std {health['std']:.4f} stayed below {self.bound} for "
                f"{self.patience} readings up to step {step} (mean cosine {health['cosine']:.3f}, effective rank "
                f"{health['rank']:.1f}); lower optim.base_lr or enlarge data.batch_size"
            )

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"low": self.low, "alive": self.alive}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.low, self.alive = int(state["low"]), bool(state["alive"])


class QualityGuard:
    """Raises once the evaluation metric ``key`` fell more than ``drop`` below its value at the start."""

    def __init__(self, key: str, drop: float) -> None:
        self.key, self.drop = key, drop
        self.start: float | None = None

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Take the evaluation of a step; the first one is the start."""
        if self.key not in values:
            raise ValueError(f"train.guard: no evaluation gives {self.key!r}; there are {', '.join(values) or 'none'}")
        value = values[self.key]
        self.start = value if self.start is None else self.start
        if not value >= self.start - self.drop:  # NaN is no quality
            raise ValueError(
                f"step {step}: {self.key} fell from {self.start:.3f} to {value:.3f}, more than train.guard_drop "
                f"{self.drop:g}; lower optim.base_lr, hold the backbone longer (optim.freeze), or raise guard_drop"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"key": self.key, "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`; another metric has a start of its own."""
        if state["key"] == self.key:
            self.start = state["start"]
