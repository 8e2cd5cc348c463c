"""The task that trains a decoder on an encoder's feature maps: segmentation, change, regression, labels of images.

What is predicted is the dataset's kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.features import Trial
from eval.scoring import Outcome
from eval.tasks.course import Course
from eval.tasks.encoding import Store
from eval.tasks.heads import Learner, Wanted
from eval.tasks.targets import check


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a decoder is trained. The defaults are Pangaea's protocol (arXiv 2412.04204) but for its crops."""

    decoder: str = "upernet"  # one of eval.decoders.DECODERS; labels of whole images need linear_classifier
    decoder_options: dict[str, Any] | None = None  # its own arguments, as channels: 256
    neck: str = "none"  # of series and pairs: none | linear | ltae | difference | concat
    neck_options: dict[str, Any] | None = None  # its own arguments
    train: str = "frozen"  # of the encoder: frozen | finetune | patch_embed | scratch (from random weights) | released
    loss: str | None = None  # one of eval.losses.LOSSES (None: the first that fits the kind of the dataset)
    class_weights: tuple[float, ...] | None = None  # of weighted_cross_entropy (None: inverse shares of the labels)
    crop: str = "none"  # what a training image shows: none (all of it) | random | focus | importance
    crop_size: int | None = None  # side of such a window in pixels (None: the encoder's)
    flip: bool = False  # every other training image, drawn anew in each epoch, is mirrored left to right
    epochs: int = 80
    batch_size: int = 8
    learning_rates: tuple[float, ...] = (1e-4,)  # the best by validation is tested
    encoder_lr: float = 1.0  # factor of the encoder's learning rate where it is trained
    optimizer: str = "adamw"  # one of eval.tasks.heads.OPTIMIZERS
    weight_decay: float = 0.05
    schedule: str = "steps"  # of the learning rate, one of eval.tasks.heads.SCHEDULES
    warmup: int = 0  # steps over which the learning rate rises from nearly 0
    evaluate_every: int = 5  # epochs between validations; the best of them is tested


def decoder(trial: Trial, store: Store, wanted: Sequence[Wanted], options: Options) -> list[Outcome]:
    """Train every wanted head, choose learning rate and epoch by validation, predict the test images.

    A frozen encoder looks once for all of them, and each learns as it would alone.
    """
    check(trial, options)
    untrained = options.train == "scratch" or trial.model.role == "baseline"  # nothing of it was ever trained
    what = "finetune" if untrained else options.train
    if what == "frozen":
        course = Course(trial, store, options, what)
        return [course.outcome(learner) for learner in course.run(wanted, options.learning_rates)]
    outcomes = []
    for one in wanted:  # an encoder that learns has one head; the best of them is kept
        best: tuple[Course, Learner] | None = None
        for rate in options.learning_rates:
            course = Course(trial, store, options, what)
            (learner,) = course.run([one], [rate])
            if best is None or learner.best > best[1].best:
                best = course, learner
        assert best is not None
        outcomes.append(best[0].outcome(best[1]))
    return outcomes
