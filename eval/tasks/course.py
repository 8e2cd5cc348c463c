"""How heads learn beside an encoder: what an epoch shows, what validation says of it, what is kept in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dinov2.config import fingerprint
from dinov2.data.batch import Batch
from eval.decoders import OF_FRAMES
from eval.features import Trial
from eval.losses import OF_KIND, build_loss
from eval.reading import TARGET, VIEW, progress, steps
from eval.scoring import HEADLINE, Outcome, check_labelled, merit, state
from eval.tasks.crops import flips, training_crops
from eval.tasks.encoding import Encoded, Store, encode
from eval.tasks.heads import Group, Head, Learner, Wanted, build_head
from eval.tasks.targets import check_batch, class_shares, moments

if TYPE_CHECKING:
    from eval.tasks.decoder import Options


class Course:
    """How heads learn on one trial, beside an encoder that is frozen or learns too."""

    def __init__(self, trial: Trial, store: Store, options: Options, what: str) -> None:
        if what != "frozen":  # others go on with the encoder as it was
            trial = replace(trial, model=copy.deepcopy(trial.model))
        self.trial, self.store, self.options, self.what = trial, store, options, what
        self.kind, self.classes = trial.dataset.kind, len(trial.dataset.classes)
        self.loss = options.loss or OF_KIND[self.kind][0]
        self.side = None if options.crop == "none" else options.crop_size or trial.joined.window  # of training windows
        self.worth = torch.empty(0)  # of a pixel of each class, for crops by importance
        self.full = False  # whether memory has had no room for an epoch's images
        self.widths = trial.model.widths(trial.example)
        self.parameters = trial.model.unfreeze(what)

    # ---- learning

    def run(self, wanted: Sequence[Wanted], rates: Sequence[float]) -> list[Learner]:
        """Of every wanted head the best of these learning rates."""
        o = self.options
        groups = [self.group(one, rates) for one in wanted]
        learners = [learner for group in groups for learner in group.learners]
        rows = sorted({row for one in wanted for row in one.rows})
        if o.crop == "importance":
            self.worth = 1 / class_shares(self.trial.dataset, rows).clamp_min(1e-6)
        with torch.random.fork_rng():
            for epoch in progress(range(1, o.epochs + 1), "training", o.epochs):
                images = self.images(epoch, rows)
                for group in groups:
                    batches = self.held(group, images) if images else self.streamed(group, epoch)
                    for encoded in batches:
                        group.learn(encoded)
                if epoch % o.evaluate_every == 0 or epoch == o.epochs:
                    check_labelled(self.trial.dataset, "train", all(group.labels for group in groups))
                    self.validate(learners, epoch)
        return [group.best() for group in groups]

    def group(self, one: Wanted, rates: Sequence[float]) -> Group:
        """New heads, one for each learning rate."""
        o, dataset = self.options, self.trial.dataset
        binary = self.kind == "segmentation" and self.loss == "bce"
        heads = [
            build_head(
                self.widths,
                1 if self.kind == "regression" or binary else len(dataset.classes),
                decoder=o.decoder,
                decoder_options=o.decoder_options or {},
                neck=o.neck,
                neck_options=({"frames": dataset.frames} if o.neck in OF_FRAMES else {}) | (o.neck_options or {}),
                pyramid=self.trial.model.pyramid,
                moments=moments(dataset, one.rows) if self.kind == "regression" else (0.0, 1.0),
                seed=one.seed,
            ).to(self.trial.device)
            for _ in rates
        ]
        weighted = self.loss == "weighted_cross_entropy" and o.class_weights is None
        shares = class_shares(dataset, one.rows).tolist() if weighted else None
        criterion = build_loss(self.loss, distribution=shares, weights=o.class_weights)
        return Group(one, heads, rates, criterion, self.parameters, o)

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
        check_labelled(self.trial.dataset, "val", any(bool(s.any()) for s in states[0]))
        for learner, found in zip(learners, states, strict=True):
            learner.judge(merit(self.kind, torch.cat(found), self.classes), epoch, *self.modules(learner))
            learner.head.train()
        self.trial.model.unfreeze(self.what)  # back to training where it is trained

    def modules(self, learner: Learner) -> list[torch.nn.Module]:
        """What has weights to keep: the head, and the encoder where it is trained."""
        return [learner.head, self.trial.model.network][: 1 + bool(self.parameters)]

    def outcome(self, learner: Learner) -> Outcome:
        """The best of a head, on the test images. FloatingPointError where no learning rate has anything to show."""
        if not learner.kept:
            rates = list(self.options.learning_rates)
            raise FloatingPointError(f"task.learning_rates {rates}: the loss was not finite at any of them")
        learner.restore(*self.modules(learner))
        best, epoch = learner.best  # minus the epoch
        metric = f"val_{HEADLINE[self.kind]}"
        chosen = {"learning_rate": learner.rate, "epoch": -epoch, metric: abs(best)}
        curve = {"epoch": [e for e, _ in learner.curve], metric: [abs(m) for _, m in learner.curve]}
        return Outcome(self.predictions(learner.head, "test"), chosen, curve, (self.trial.model, learner.head))

    # ---- data

    def held(self, group: Group, images: Mapping[int, Encoded]) -> Iterator[Encoded]:
        """The batches of a group's next epoch, out of memory."""
        return (Encoded.join([images[i] for i in rows]) for rows in next(group.orders))

    def streamed(self, group: Group, epoch: int) -> Iterator[Encoded]:
        """The batches of a group's next epoch, encoded on the way; loader processes live through all epochs."""
        if group.stream is None:
            epochs = chain.from_iterable([e] * group.per_epoch for e in range(epoch, self.options.epochs + 1))
            group.stream = self.shown(chain.from_iterable(group.orders), epochs)
        return islice(group.stream, group.per_epoch)

    def images(self, epoch: int, rows: list[int]) -> dict[int, Encoded] | None:
        """What an epoch shows of these training images, None where the encoder learns or memory has no room for it."""
        if self.parameters or self.full:
            return None
        still = self.side is None and not self.options.flip  # every epoch shows the same
        self.store.drop((*self.trial.key, "crops"))
        shown = "whole" if still else f"{self.options.crop} {self.side} {self.options.flip} {epoch}"
        key = (*self.trial.key, "train" if still else "crops", fingerprint([rows, shown]))
        batches = [rows[i : i + self.trial.batch_size] for i in range(0, len(rows), self.trial.batch_size)]
        kept = self.store.get(key, len(rows), lambda: (part for part in self.shown(batches, [epoch] * len(batches))))
        self.full = not isinstance(kept, list)
        if not isinstance(kept, list):
            return None
        return dict(zip(rows, (encoded.row(i) for encoded in kept for i in range(len(encoded))), strict=True))

    def shown(self, rows: Iterable[list[int]], epochs: Iterable[int]) -> Iterator[Encoded]:
        """Batches of training images, as an epoch shows them."""
        made = steps(
            self.trial.dataset.splits["train"], self.trial.joined, self.trial.device, rows,
            workers=self.trial.workers, frames=self.trial.dataset.frames,
        )  # fmt: skip
        for batches, epoch in zip(made, epochs, strict=False):
            parts = [self.mirrored(self.cropped(batch, epoch), epoch) for batch in batches]
            window = self.trial.joined.window if self.options.crop == "none" else None  # whole images as in the test
            with torch.set_grad_enabled(bool(self.parameters)):
                encoded = Encoded.join([self.encode(batch, window) for batch in parts])
            yield encoded  # outside: what is done with it may need gradients

    def cropped(self, batch: Batch, epoch: int) -> Batch:
        """A window of every image, where the options say so; the same for all heads, another in every epoch."""
        if self.side is None:
            return batch
        view, kind, worth = batch.views[VIEW], self.options.crop, self.worth
        imgs, target = training_crops(
            view["imgs"], batch.labels[TARGET], batch.positions, kind=kind, size=self.side, worth=worth, epoch=epoch
        )
        return replace(batch, views={VIEW: {**view, "imgs": imgs}}, labels={TARGET: target})

    def mirrored(self, batch: Batch, epoch: int) -> Batch:
        """Some of the images left to right, where the options say so; the same for all heads."""
        if not self.options.flip:
            return batch
        imgs, target = flips(batch.views[VIEW]["imgs"], batch.labels[TARGET], batch.positions, epoch)
        return replace(batch, views={VIEW: {**batch.views[VIEW], "imgs": imgs}}, labels={TARGET: target})

    def encode(self, batch: Batch, window: int | None = None) -> Encoded:
        """Maps and target of a batch."""
        check_batch(batch, self.trial.dataset, self.options.neck)
        target = batch.labels[TARGET]
        shape = tuple(target.shape[1:]) if self.trial.dataset.splits["train"].dense else ()
        stride = self.trial.joined.stride
        return encode(self.trial.model, batch.views[VIEW], shape, window, stride, target=target, **batch.meta)

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
            yield encoded

    def predictions(self, head: Head, split: str) -> Iterator[Tensor]:
        """Logits of a split in its order."""
        self.trial.model.network.eval()
        for encoded in self.encodings(split):
            with torch.inference_mode():
                logits = encoded.predict(head.eval())
            yield logits
