"""A model on a dataset, and the pooled features of a frozen one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinov2.data.batch import Batch, View
from eval.datasets import EvalDataset
from eval.joining import Join, join
from eval.networks import Model
from eval.reading import VIEW, batches, progress, steps
from eval.tiling import crop


@dataclass(frozen=True)
class Trial:
    """One model on one dataset: what reaches the model and how.

    ``received`` tells it band by band (:meth:`eval.joining.Join.received`), ``example`` is a view of one image that the
    model takes; ``batch_size`` images are encoded at once. ``key`` tells trials of one call apart, the model first.
    """

    model: Model
    dataset: EvalDataset
    joined: Join
    device: torch.device
    received: list[dict[str, Any]]
    example: View
    key: tuple[str, ...]
    batch_size: int = 64
    workers: int = 0

    @classmethod
    def of(
        cls,
        model: Model,
        dataset: EvalDataset,
        device: torch.device,
        *,
        missing: str = "error",
        sizing: str | None = None,
        window: int | None = None,
        stride: int | None = None,
        normalisation: str = "model",
        batch_size: int = 64,
        workers: int = 0,
        key: tuple[str, ...] = (),
    ) -> Trial:
        """Join both, and look at the first training images; impossible input is an error that names its band.

        ``missing``, ``sizing``, ``window``, ``stride`` and ``normalisation`` as in :func:`eval.joining.join`.
        """
        joined = join(model, dataset, missing, sizing, window, stride, normalisation)
        rows = [list(range(min(batch_size, len(dataset.splits["train"]))))]
        first = next(steps(dataset.splits["train"], joined, device, rows, frames=dataset.frames))[0].views[VIEW]
        flat = first if dataset.frames == 1 else folded(first)
        received = joined.received(flat["imgs"])
        shown = {**flat, "imgs": crop(flat["imgs"], (0, 0), joined.window)} if joined.window else flat
        key = key or (model.digest, dataset.view_hash, missing, str(sizing), str(window), str(stride), normalisation)
        example = {name: x[:1] for name, x in shown.items()}
        return cls(model.fitted(shown), dataset, joined, device, received, example, key, batch_size, workers)

    def batches(self, split: str) -> Iterator[Batch]:
        """The split in its own order; see :func:`steps`."""
        return batches(
            self.dataset.splits[split],
            self.joined,
            self.device,
            batch_size=self.batch_size,
            workers=self.workers,
            frames=self.dataset.frames,
        )


def folded(view: View) -> View:
    """The dates of ``[B, T, ...]`` as images of their own, ``[B * T, ...]``."""
    return {name: x.flatten(0, 1) for name, x in view.items()}


@torch.inference_mode()
def extract(trial: Trial) -> dict[str, dict[str, Tensor]]:
    """Pooled features ``[split][pooling]`` ``[N, D]``; non-finite ones are an error that names the sample.

    Of a series the mean over its dates; of a pair both, one after the other.
    """
    if trial.joined.window:
        raise ValueError("model.size=tile is for decoders on maps; knn and linear take whole images")
    pooled: dict[str, dict[str, Tensor]] = {}
    for name in trial.dataset.splits:
        parts: dict[str, list[Tensor]] = {}
        images = len(trial.dataset.splits[name])
        for batch in progress(trial.batches(name), f"encoding {images} images", -(-images // trial.batch_size)):
            view = batch.views[VIEW]
            series = trial.dataset.frames > 1
            with torch.autocast(trial.device.type, torch.bfloat16, enabled=trial.device.type == "cuda"):
                found = trial.model.features(folded(view) if series else view)
            for pooling, x in found.items():
                if series:
                    x = over_dates(x.unflatten(0, (batch.size, -1)), batch.meta["padding"], trial.dataset.pair)
                bad = ~torch.isfinite(x).all(1)
                if bad.any():
                    key = batch.keys[int(bad.nonzero()[0])]
                    raise ValueError(
                        f"model {trial.model.name}: the {pooling} features of sample {key!r} are not finite"
                    )
                parts.setdefault(pooling, []).append(x.float())
        pooled[name] = {p: torch.cat(xs) for p, xs in parts.items()}
    return pooled


def over_dates(x: Tensor, padding: Tensor, pair: bool) -> Tensor:
    """``[B, T, D] -> [B, D]``, the mean over dates that are there; of a pair ``[B, 2 D]``."""
    there = ~padding[:, :, None].to(x.device)
    return x.flatten(1) if pair else (x * there).sum(1) / there.sum(1)
