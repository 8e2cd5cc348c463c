"""The task that trains a decoder on an encoder's feature maps: segmentation, change, regression, labels of images.

What is predicted is the dataset's kind. With a frozen encoder the heads of all learning rates learn from one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dinov2.data.batch import Batch
from eval.features import Trial
from eval.losses import OF_KIND, build_loss
from eval.reading import TARGET, VIEW, progress, steps
from eval.scoring import HEADLINE, Outcome, merit, state
from eval.tasks.crops import training_crops
from eval.tasks.encoding import Encoded, Store, encode
from eval.tasks.heads import Head, Learner, build_head
from eval.tasks.targets import check, check_batch, class_shares, moments


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a decoder is trained. The defaults are Pangaea's protocol (arXiv 2412.04204) but for its crops."""

    decoder: str = "upernet"  # one of eval.decoders.DECODERS; labels of whole images need linear_classifier
    decoder_options: dict[str, Any] | None = None  # its own arguments, as channels: 256
    neck: str = "none"  # of series and pairs: none | linear | ltae | difference | concat
    neck_options: dict[str, Any] | None = None  # its own arguments
    train: str = "frozen"  # of the encoder: frozen | finetune | patch_embed | scratch (from random weights)
    loss: str | None = None  # one of eval.losses.LOSSES (None: the first that fits the kind of the dataset)
    crop: str = "none"  # what a training image shows: none (all of it) | random | focus | importance
    crop_size: int | None = None  # side of such a window in pixels (None: the encoder's)
    epochs: int = 80
    batch_size: int = 8
    learning_rates: tuple[float, ...] = (1e-4,)  # the best by validation is tested
    encoder_lr: float = 1.0  # factor of the encoder's learning rate where it is trained
    weight_decay: float = 0.05
    evaluate_every: int = 5  # epochs between validations; the best of them is tested


def decoder(trial: Trial, store: Store, rows: Sequence[int], seed: int, options: Options) -> Outcome:
    """Train on the training images ``rows``, choose learning rate and epoch by validation, predict the test images."""
    check(trial, options)
    untrained = options.train == "scratch" or trial.model.role == "baseline"  # nothing of it was ever trained
    what = "finetune" if untrained else options.train
    rates = [[rate] for rate in options.learning_rates] if what != "frozen" else [list(options.learning_rates)]
    best = None
    for some in rates:
        course = Course(trial, store, rows, seed, options, what)
        learner = course.run(some)
        if best is None or learner.best > best[1].best:
            best = course, learner
    assert best is not None
    course, learner = best
    learner.restore(*course.modules(learner))
    metric = HEADLINE[trial.dataset.kind]
    chosen = {"learning_rate": learner.rate, "epoch": -learner.best[1], f"val_{metric}": abs(learner.best[0])}
    curve = {"epoch": [e for e, _ in learner.curve], f"val_{metric}": [abs(m) for _, m in learner.curve]}
    return Outcome(course.predictions(learner.head, "test"), chosen, curve, (course.trial.model, learner.head))


class Course:
    """How the heads of some learning rates learn on one trial, beside an encoder that is frozen or learns too."""

    def __init__(self, trial: Trial, store: Store, rows: Sequence[int], seed: int, options: Options, what: str) -> None:
        if what != "frozen":  # others go on with the encoder as it was
            trial = replace(trial, model=copy.deepcopy(trial.model))
        self.trial, self.store, self.rows, self.seed, self.options, self.what = trial, store, rows, seed, options, what
        self.parameters = trial.model.unfreeze(what)
        self.kind, self.classes = trial.dataset.kind, len(trial.dataset.classes)
        self.batch_size = min(options.batch_size, len(rows))
        self.per_epoch = len(rows) // self.batch_size  # what is left over has its turn in another epoch
        self.loss = options.loss or OF_KIND[self.kind][0]

    # ---- learning

    def run(self, rates: Sequence[float]) -> Learner:
        """The best of the heads of these learning rates, which see the same batches."""
        steps = self.options.epochs * self.per_epoch
        learners = [self.learner(rate, steps) for rate in rates]
        criterion = build_loss(self.loss, distribution=self.shares.tolist() if "weighted" in self.loss else None)
        with torch.random.fork_rng():
            for step, encoded in enumerate(progress(self.training(), "training", steps), 1):
                for learner in learners:
                    learner.step(encoded, criterion, key=self.seed * 1_000_003 + step)
                epoch, inside = divmod(step, self.per_epoch)
                if not inside and (epoch % self.options.evaluate_every == 0 or step == steps):
                    self.validate(learners, epoch)
        best = max(learners, key=lambda learner: learner.best)
        if not best.kept:
            raise FloatingPointError(f"task.learning_rates {list(rates)}: the loss was not finite at any of them")
        return best

    def learner(self, rate: float, steps: int) -> Learner:
        """A new head: all learning rates start from the same numbers."""
        o, dataset = self.options, self.trial.dataset
        binary = self.kind == "segmentation" and self.loss == "bce"
        neck_options = {"frames": dataset.frames} if o.neck == "linear" else {}
        head = build_head(
            self.widths,
            1 if self.kind == "regression" or binary else self.classes,
            decoder=o.decoder,
            decoder_options=o.decoder_options or {},
            neck=o.neck,
            neck_options=neck_options | (o.neck_options or {}),
            pyramid=self.trial.model.pyramid,
            moments=self.moments,
            seed=self.seed,
        ).to(self.trial.device)
        return Learner(head, rate, self.parameters, factor=o.encoder_lr, decay=o.weight_decay, steps=steps)

    @torch.inference_mode()
    def validate(self, learners: Sequence[Learner], epoch: int) -> None:
        """Judge every head on the validation images, which are encoded once for all of them."""
        states: list[list[Tensor]] = [[] for _ in learners]
        self.trial.model.network.eval()
        for encoded in self.encodings("val"):
            assert encoded.target is not None
            for learner, found in zip(learners, states, strict=True):
                logits = encoded.predict(learner.head.eval())
                found.append(state(self.kind, logits, encoded.target, self.classes))
        for learner, found in zip(learners, states, strict=True):
            learner.judge(merit(self.kind, torch.cat(found), self.classes), epoch, *self.modules(learner))
            learner.head.train()
        self.trial.model.unfreeze(self.what)  # back to training where it is trained

    def modules(self, learner: Learner) -> list[torch.nn.Module]:
        """What has weights to keep: the head, and the encoder where it is trained."""
        return [learner.head, self.trial.model.network][: 1 + bool(self.parameters)]

    # ---- data

    def training(self) -> Iterator[Encoded]:
        """A batch for every step; order and crops depend on the seed alone."""
        split = self.trial.dataset.splits["train"]
        if not self.parameters and self.options.crop == "none":
            kept = self.encodings("train")
            if isinstance(kept, list):
                images = [encoded.row(i) for encoded in kept for i in range(len(encoded))]
                yield from (Encoded.join([images[i] for i in rows]) for rows in self.order())
                return
        made = steps(
            split, self.trial.joined, self.trial.device, self.order(), workers=self.trial.workers,
            frames=self.trial.dataset.frames,
        )  # fmt: skip
        for step, batches in enumerate(made):
            parts = [self.cropped(batch, step // self.per_epoch) for batch in batches]
            with torch.set_grad_enabled(bool(self.parameters)):
                encoded = Encoded.join([self.encode(batch) for batch in parts])
            yield encoded

    def order(self) -> Iterator[list[int]]:
        """The training images of every step: a new permutation in each epoch."""
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(self.options.epochs):
            order = [self.rows[i] for i in torch.randperm(len(self.rows), generator=draw)]
            for step in range(self.per_epoch):
                yield order[step * self.batch_size :][: self.batch_size]

    def cropped(self, batch: Batch, epoch: int) -> Batch:
        """A window of every image, where the options say so."""
        o = self.options
        if o.crop == "none":
            return batch
        view, size = batch.views[VIEW], o.crop_size or self.trial.joined.window
        assert size
        worth = 1 / self.shares.clamp_min(1e-6) if o.crop == "importance" else torch.empty(0)
        imgs, target = training_crops(
            view["imgs"], batch.labels[TARGET], batch.positions, kind=o.crop, size=size, worth=worth,
            key=(self.seed, epoch),
        )  # fmt: skip
        return replace(batch, views={VIEW: {**view, "imgs": imgs}}, labels={TARGET: target})

    def encode(self, batch: Batch, window: int | None = None) -> Encoded:
        """Maps and target of a batch."""
        check_batch(batch, self.trial.dataset, self.options.neck)
        target = batch.labels[TARGET]
        shape = tuple(target.shape[1:]) if self.trial.dataset.splits["train"].dense else ()
        return encode(self.trial.model, batch.views[VIEW], shape, window, target=target, **batch.meta)

    def encodings(self, split: str) -> Iterable[Encoded]:
        """A split in its order, in windows where the encoder takes no other size; a list if it is kept in memory."""
        if self.parameters:
            return self.encoded(split)
        key = (*self.trial.key, split, str(self.trial.joined.window))
        return self.store.get(key, len(self.trial.dataset.splits[split]), lambda: self.encoded(split))

    def encoded(self, split: str) -> Iterator[Encoded]:
        """See :meth:`encodings`."""
        for batch in self.trial.batches(split):
            with torch.no_grad():
                encoded = self.encode(batch, self.trial.joined.window)
            yield encoded  # outside: what is done with it may need gradients

    def predictions(self, head: Head, split: str) -> Iterator[Tensor]:
        """Logits of a split in its order."""
        self.trial.model.network.eval()
        for encoded in self.encodings(split):
            with torch.inference_mode():
                logits = encoded.predict(head.eval())
            yield logits

    # ---- what only some need

    @cached_property
    def widths(self) -> list[int]:
        """Channels of the maps."""
        self.trial.model.network.eval()
        widths = self.trial.model.widths(self.trial.example)
        self.trial.model.unfreeze(self.what)
        return widths

    @cached_property
    def shares(self) -> Tensor:
        """Of the classes among the training pixels."""
        return class_shares(self.trial.dataset, self.rows)

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Of the values to be predicted; (0, 1) of all else."""
        return moments(self.trial.dataset, self.rows) if self.kind == "regression" else (0.0, 1.0)
