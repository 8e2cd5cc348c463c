"""A linear classifier that learns beside the objective: how much of a label is linearly there, without another pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinov2 import distributed
from dinov2.data.shards import ShardSet
from dinov2.sensors import suggest

RATE = 3e-3  # of Adam, for standardised features that move while it learns


class OnlineProbe:
    """Standardised embeddings -> classes of the label ``label``, with an optimiser of its own.

    Nothing flows back into the objective, and no random number is drawn: a run with a probe has the same weights as one
    without. All ranks learn from all ranks' samples, so their probes stay equal.
    """

    def __init__(self, label: str, classes: int, width: int, device: torch.device) -> None:
        linear = nn.Linear(width, classes, device="meta").to_empty(device=device)  # no initial random numbers
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.label = label
        self.network = nn.Sequential(nn.BatchNorm1d(width, affine=False, device=device), linear)
        self.optimizer = torch.optim.Adam(linear.parameters(), lr=RATE)
        self.hits, self.seen = torch.zeros((), device=device), torch.zeros((), device=device)

    @classmethod
    def of(cls, label: str, shards: ShardSet, width: int, device: torch.device) -> OnlineProbe:
        """The probe of a label that the shards describe with its classes; any other raises ValueError."""
        known = {name: about["classes"] for name, about in shards.labels.items() if about.get("classes")}
        if label not in known:
            raise ValueError(
                f"train.probe: the shards describe no classes of a label {label!r}{suggest(label, list(known))} "
                f"Known: {', '.join(known) or 'none'}"
            )
        return cls(label, len(known[label]), width, device)

    def learn(self, embedding: Tensor, labels: Sequence[Mapping[str, Tensor]], samples: int) -> None:
        """Classify, then learn from, this rank's ``embedding`` ``[crops * B, D]``, crop-major.

        ``labels`` of each micro-batch of ``samples`` samples; -1, and a label that a micro-batch lacks, are left out.
        """
        absent = torch.full((samples,), -1)
        own = torch.cat([given.get(self.label, absent) for given in labels]).to(embedding.device)  # [B]
        target = distributed.gather(own.repeat(len(embedding) // len(own)))
        logits = self.network(distributed.gather(embedding.float()))  # [W * crops * B, classes]
        self.hits += (logits.argmax(1) == target).sum()
        self.seen += (target >= 0).sum()
        loss = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / (target >= 0).sum().clamp_min(1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def accuracy(self) -> float:
        """Accuracy on the samples since the last call, each classified before it was learnt from; NaN without any."""
        value = (self.hits / self.seen).item()
        self.hits.zero_()
        self.seen.zero_()
        return value

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "label": self.label,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`; the probe of another label begins anew."""
        if state["label"] == self.label:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
