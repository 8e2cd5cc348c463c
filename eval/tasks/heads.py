"""Heads on feature maps: a neck over dates where there are several, a decoder, and how one learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from eval.decoders import PYRAMIDAL, build_decoder, build_neck
from eval.tasks.crops import labelled
from eval.tasks.encoding import Encoded

if TYPE_CHECKING:
    from eval.tasks.decoder import Options

MILESTONES, DECAY = (0.6, 0.9), 0.1  # of all steps; the learning rate's factor there (Pangaea's protocol)
WARM_FROM = 1e-6  # the factor that a warm-up starts from

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,  # its weight decay is a part of the gradient
}
SCHEDULES: Mapping[str, Callable[[int, int], float]] = {  # the factor of a learning rate at a step of so many
    "steps": lambda step, steps: DECAY ** sum(step >= math.ceil(steps * m) for m in MILESTONES),
    "linear": lambda step, steps: max(1 - step / steps, 0.0),  # to 0: polynomial decay of power 1
}


def factor(step: int, *, schedule: str, steps: int, warmup: int) -> float:
    """Of the learning rate at a step: that of the ``schedule``, over ``warmup`` steps risen linearly."""
    risen = min(step / warmup, 1.0) if warmup else 1.0
    return SCHEDULES[schedule](step, steps) * (WARM_FROM + (1 - WARM_FROM) * risen)


class Head(nn.Module):
    """Feature maps to logits, or to values in the target's unit: ``scale * decoder(neck(features)) + shift``."""

    def __init__(self, neck: nn.Module | None, decoder: nn.Module, *, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.neck, self.decoder = neck, decoder
        self.recipe: dict[str, Any] = {}  # the arguments of build_head
        self.moments: Tensor
        self.register_buffer("moments", torch.tensor([shift, scale]))

    def forward(
        self, features: Sequence[Tensor], size: Sequence[int], days: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        """``[B, D_i, h, w]`` per level, with a neck ``[B, T, D_i, h, w]`` -> ``[B, K, *size]``."""
        if self.neck is not None:
            features = self.neck(features, days, padding)
        shift, scale = self.moments
        return self.decoder(features, size) * scale + shift


def build_head(
    widths: Sequence[int],
    outputs: int,
    *,
    decoder: str,
    decoder_options: dict[str, Any],
    neck: str,
    neck_options: dict[str, Any],
    pyramid: bool = False,
    moments: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Head:
    """A new head for maps of these ``widths``; the same ``seed``, the same weights.

    ``pyramid``: the maps are one already; ``moments``: mean and deviation of the values to be predicted.
    """
    recipe = dict(locals())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        over_dates = build_neck(neck, widths, **neck_options) if neck != "none" else None
        given = {"pyramid": True} if pyramid and decoder in PYRAMIDAL else {}
        joined: Any = over_dates.out_channels if over_dates else widths
        body = build_decoder(decoder, joined, outputs, **given, **decoder_options)
    head = Head(over_dates, body, shift=moments[0], scale=moments[1])
    head.recipe = recipe
    return head


class Learner:
    """A head that learns at one learning rate, with the encoder's ``parameters`` where these are trained too.

    Optimiser and schedule over ``steps`` steps are those of the ``options``. The best by validation is kept.
    """

    def __init__(
        self,
        head: Head,
        rate: float,
        parameters: Sequence[nn.Parameter],
        options: Options,
        steps: int,
        note: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        o, groups = options, [{"params": list(head.parameters()), "lr": rate}]
        if parameters:
            groups.append({"params": list(parameters), "lr": o.encoder_lr * rate})
        self.head, self.rate, self.finite = head, rate, True
        self.optimizer: Any = OPTIMIZERS[o.optimizer](groups, weight_decay=o.weight_decay)  # type: ignore[call-arg]
        self.note = note
        self.schedule = LambdaLR(self.optimizer, partial(factor, schedule=o.schedule, steps=steps, warmup=o.warmup))
        self.best: tuple[float, int] = (-math.inf, 0)  # merit, and minus the epoch: of equal ones the first
        self.kept: list[dict[str, Tensor]] = []
        self.curve: list[tuple[int, float]] = []  # epoch, merit
        self.losses: list[Tensor] = []  # since the last validation

    def step(self, encoded: Encoded, criterion: Callable[[Tensor, Tensor], Tensor], key: int) -> None:
        """Learn from a batch. Dropout depends on ``key`` alone, not on how many heads learn beside this one."""
        if not self.finite:
            return
        assert encoded.target is not None
        torch.manual_seed(key)
        loss = criterion(encoded.predict(self.head), encoded.target)
        self.finite = bool(loss.isfinite())  # a rate that is too high leaves the race
        if self.finite:
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.losses.append(loss.detach())

    def judge(self, merit: float, epoch: int, *modules: nn.Module) -> None:
        """Keep the modules' weights if ``merit`` is the best so far."""
        self.curve.append((epoch, merit))
        mean = torch.stack(self.losses).mean().item() if self.losses else math.nan
        self.note(epoch, {f"validation/rate {self.rate:g}": abs(merit), f"loss/rate {self.rate:g}": mean})
        self.losses = []
        if self.finite and merit > self.best[0]:
            self.best = merit, -epoch
            self.kept = [{k: x.detach().clone() for k, x in m.state_dict().items()} for m in modules]

    def restore(self, *modules: nn.Module) -> None:
        """Give the modules the best weights back."""
        for module, state in zip(modules, self.kept, strict=True):
            module.load_state_dict(state)


class Wanted(NamedTuple):
    """A head to be trained: the seed of its weights, of the order of its images and of its dropout, and the images.

    ``note(epoch, values)`` is told the course of its learning.
    """

    seed: int
    rows: Sequence[int]
    note: Callable[[int, Mapping[str, float]], None] = lambda epoch, values: None


class Group:
    """The heads of one seed and one choice of images at several learning rates: they see the same batches.

    ``orders`` are the batches of epoch after epoch, each a new permutation; what does not fill a batch has its turn in
    another epoch.
    """

    def __init__(
        self,
        one: Wanted,
        heads: Sequence[Head],
        rates: Sequence[float],
        criterion: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        options: Options,
    ) -> None:
        self.seed, self.rows, self.criterion = one.seed, one.rows, criterion
        self.batch_size = min(options.batch_size, len(one.rows))
        self.per_epoch = len(one.rows) // self.batch_size
        self.learners = [
            Learner(head, rate, parameters, options, options.epochs * self.per_epoch, one.note)
            for head, rate in zip(heads, rates, strict=True)
        ]
        self.orders = self.permutations()
        self.stream: Iterator[Encoded] | None = None  # of epochs that are read on the way
        self.count = self.labels = 0  # steps taken, labelled entries seen

    def permutations(self) -> Iterator[list[list[int]]]:
        """See ``orders``."""
        draw = torch.Generator().manual_seed(self.seed)
        while True:
            order = [self.rows[i] for i in torch.randperm(len(self.rows), generator=draw).tolist()]
            yield [order[i * self.batch_size :][: self.batch_size] for i in range(self.per_epoch)]

    def learn(self, encoded: Encoded) -> None:
        """A step of every head."""
        assert encoded.target is not None
        self.count += 1
        self.labels += int(labelled(encoded.target).sum())
        for learner in self.learners:
            learner.step(encoded, self.criterion, key=self.seed * 1_000_003 + self.count)

    def best(self) -> Learner:
        """By validation; of equal ones the first."""
        return max(self.learners, key=lambda learner: learner.best)
