"""Weighted k-nearest-neighbour prediction on frozen features (Wu et al. 2018, section 3.4; DINO's protocol)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.probe import ProbeData
from eval.scoring import HEADLINE, Outcome

CHUNK = 256  # queries compared with the bank at a time


def votes(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Class scores ``[M, K]`` of ``queries [M, D]``: the softmax-weighted votes of their k nearest in ``bank [N, D]``.

    ``labels``: ``[N]`` classes, or ``[N, K]``: 0 and 1 where an image has several, or K values. Similarity is the
    cosine; a neighbour's weight is the softmax of similarity / temperature over the k neighbours.
    """
    if k < 1:
        raise ValueError(f"task.k is {k}; it counts neighbours, give 1 or more")
    if not temperature > 0:
        raise ValueError(f"task.temperature is {temperature}; give a number above 0")
    if k > len(bank):
        raise ValueError(f"task.k is {k}, but there are only {len(bank)} training samples; lower k or add samples")
    bank = F.normalize(bank, dim=1)
    out = []
    for chunk in F.normalize(queries, dim=1).split(CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(k, dim=1)  # [m, k]
        weight = (similarity / temperature).softmax(1)
        held = F.one_hot(labels[nearest], classes) if labels.ndim == 1 else labels[nearest]  # [m, k, K]
        out.append(torch.einsum("mk,mkc->mc", weight, held.to(weight)))
    return torch.cat(out)


def knn(
    data: ProbeData, seed: int, *, k: int = 20, temperature: float = 0.07, poolings: tuple[str, ...] = ("cls",)
) -> Outcome:
    """k-NN on the pooling that is best by validation (one by default); the bank is the training split.

    Of several labels the votes for and against are compared; of values the neighbours' weighted mean is taken.
    """
    labels = data.train_labels[:, None] if data.kind == "regression" else data.train_labels

    def logits(queries: Mapping[str, Tensor], pooling: str) -> Tensor:
        found = votes(data.train[pooling], labels, queries[pooling], data.classes, k, temperature)
        return found - 0.5 if data.kind == "multilabel" else found  # a label is predicted above 0

    merits = {pooling: data.merit(logits(data.val, pooling)) for pooling in data.poolings(poolings)}
    chosen = max(merits, key=merits.__getitem__)  # of equal ones the first
    return Outcome([logits(data.test, chosen)], {"pooling": chosen, f"val_{HEADLINE[data.kind]}": abs(merits[chosen])})
