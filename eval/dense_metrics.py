"""Scores of maps and of several labels per image, from one small additive state per image.

Summed over images a state gives the score; summed over resampled images its interval; and since each image lies on
exactly one rank, W ranks give the numbers of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dinov2.distributed import sum_
from eval.metrics import confusion_matrix


class Tally:
    """States ``[N, *shape]`` of all N images of a split, filled by all ranks in any order."""

    def __init__(self, images: int, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.states = torch.zeros(images, *shape, dtype=torch.float64, device=device)
        self.times = torch.zeros(images, dtype=torch.float64, device=device)

    def add(self, positions: Tensor, states: Tensor) -> None:
        """The ``states`` ``[B, *shape]`` of the images at ``positions`` ``[B]`` of the split."""
        self.states.index_add_(0, positions, states.double())
        self.times.index_add_(0, positions, torch.ones_like(positions, dtype=torch.float64))

    def gather(self) -> Tensor:
        """``[N, *shape]`` on every rank. AssertionError where an image was lost or counted twice."""
        wrong = (sum_(self.times) != 1).nonzero().flatten().tolist()
        assert not wrong, f"{len(wrong)} images were lost or counted twice, the first at position {wrong[0]}"
        return sum_(self.states)


def bootstrap(
    states: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of ``score`` over resampled images (Efron 1979).

    ``states`` ``[N, *shape]``; ``score`` maps their sums ``[R, *shape]`` to ``[R]``.
    """
    draw, n = np.random.default_rng(seed), len(states)
    flat = states.double().cpu().flatten(1)
    # one resample at a time: memory is O(N)
    times = (np.bincount(draw.integers(0, n, n), minlength=n) for _ in range(resamples))
    sums = torch.stack([torch.from_numpy(t).double() @ flat for t in times])
    scores = score(sums.view(-1, *states.shape[1:])).numpy()
    low, high = np.nanquantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---- segmentation and change


def predicted_classes(logits: Tensor) -> Tensor:
    """``[B, K, ...] -> [B, ...]`` classes; one logit is the score of class 1 against class 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def confusions(predicted: Tensor, target: Tensor, classes: int, ignore_index: int | None = None) -> Tensor:
    """The state of a segmentation: pixel counts ``[B, K, K]`` per image, row = true class, column = predicted class.

    ``predicted`` and ``target`` ``[B, ...]`` classes; pixels whose target is ``ignore_index`` do not count.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"prediction of shape {tuple(predicted.shape)} for a mask of shape {tuple(target.shape)}")
    labelled = target != ignore_index if ignore_index is not None else torch.ones_like(target, dtype=torch.bool)
    return torch.stack(
        [confusion_matrix(p[k], t[k], classes) for p, t, k in zip(predicted, target, labelled, strict=True)]
    )


def segmentation_scores(confusion: Tensor, ignore_index: int | None = None) -> dict[str, Tensor]:
    """Scores of summed confusion matrices ``[..., K, K]``, row = true class; fractions, not percent.

    Per class ``[..., K]``: iou, f1, precision (right among the predicted), recall (found among the true), support. NaN
    marks what is undefined: of a class neither predicted nor true everything, of one never predicted its precision,
    of one never true its recall; and all of class ``ignore_index``. Means ``[...]`` leave NaN out: miou, mean_f1,
    mean_accuracy (mean recall). overall_accuracy: right among all pixels.
    """
    confusion = confusion.double()
    hits, true, guessed = confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)
    per_class = {
        "iou": hits / (true + guessed - hits),
        "f1": 2 * hits / (true + guessed),
        "precision": hits / guessed,
        "recall": hits / true,
        "support": true.clone(),
    }
    if ignore_index is not None and 0 <= ignore_index < confusion.shape[-1]:
        for values in per_class.values():
            values[..., ignore_index] = torch.nan
    means = {"miou": "iou", "mean_f1": "f1", "mean_accuracy": "recall"}
    overall = {"overall_accuracy": hits.sum(-1) / true.sum(-1)}
    return {**per_class, **{name: per_class[of].nanmean(-1) for name, of in means.items()}, **overall}


# ---- regression


def residuals(predicted: Tensor, target: Tensor) -> Tensor:
    """The state of a regression ``[B, 5]``: pixels, sums of squared and absolute errors, of targets, of their squares.

    ``predicted`` and ``target`` ``[B, ...]`` in one unit; pixels whose target is NaN do not count.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"prediction of shape {tuple(predicted.shape)} for a target of shape {tuple(target.shape)}")
    known = target.isfinite()
    t = torch.where(known, target, 0.0).double()
    error = torch.where(known, predicted - target, 0.0).double()
    return torch.stack([x.flatten(1).sum(1) for x in (known.double(), error.square(), error.abs(), t, t.square())], 1)


def regression_scores(state: Tensor) -> dict[str, Tensor]:
    """``{mse, rmse, mae, r2}`` ``[...]`` of summed states ``[..., 5]``; r2 is NaN where the target never varies."""
    n, squared, absolute, total, total_squares = state.unbind(-1)
    spread = total_squares - total.square() / n
    mse = squared / n
    r2 = torch.where(spread > 1e-12 * total_squares, 1 - squared / spread, torch.nan)
    return {"mse": mse, "rmse": mse.sqrt(), "mae": absolute / n, "r2": r2}


# ---- labels of images


def top_k_accuracy(scores: Tensor, target: Tensor, k: int) -> float:
    """Share of images whose class ``target`` ``[N]`` is among the k highest ``scores`` ``[N, K]``."""
    return (scores.topk(k, 1).indices == target[:, None]).any(1).double().mean().item()


def multilabel_scores(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Several labels per image: logits ``[N, K]`` (label predicted above 0), target ``[N, K]`` of 0 and 1.

    map: mean over the labels that occur of the average precision; micro_f1 over all labels and images; macro_f1 over
    the labels that occur or are predicted; exact_match: share of images with every label right.
    """
    from sklearn.metrics import average_precision_score  # slow to import

    predicted, true = logits > 0, target.bool()
    hits, sizes = (predicted & true).sum(0).double(), (predicted.sum(0) + true.sum(0)).double()  # [K]
    occurs = true.any(0)
    return {
        "map": float(average_precision_score(true[:, occurs].cpu(), logits[:, occurs].float().cpu(), average="macro")),
        "micro_f1": (2 * hits.sum() / sizes.sum()).item(),
        "macro_f1": (2 * hits / sizes).nanmean().item(),
        "exact_match": (predicted == true).all(1).double().mean().item(),
    }
