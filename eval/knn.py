"""Weighted k-nearest-neighbour classification on frozen features (Wu et al. 2018, section 3.4; DINO's protocol)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.probe import Outcome, ProbeData

CHUNK = 256  # queries compared with the bank at a time


def votes(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Class scores ``[M, K]`` of ``queries [M, D]``: the softmax-weighted votes of their k nearest in ``bank [N, D]``.

    ``labels``: ``[N]`` classes, or ``[N, K]`` of 0 and 1 where an image has several. Similarity is the cosine; a
    neighbour's weight is the softmax of similarity / temperature over the k neighbours.
    """
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
    """k-NN on the pooling that is best by validation accuracy (one by default); the bank is the training split."""
    best = -1.0
    for pooling in data.poolings(poolings):
        bank = data.train[pooling], data.train_labels
        predicted = votes(*bank, data.val[pooling], data.classes, k, temperature).argmax(1)
        accuracy = (predicted == data.val_labels).double().mean().item()
        if accuracy > best:
            best, chosen = accuracy, pooling
    predicted = votes(data.train[chosen], data.train_labels, data.test[chosen], data.classes, k, temperature).argmax(1)
    return Outcome(predicted, {"pooling": chosen, "val_accuracy": best})
