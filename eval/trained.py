"""A model with a trained head: kept beside the row of its cell, loaded to be tested again or to predict maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinov2.data.batch import View
from dinov2.data.sample import ImageSpec
from dinov2.data.stats import Normalisation
from dinov2.files import atomic
from eval.datasets import Split
from eval.encoders import load_model
from eval.features import Trial
from eval.joining import Channel, Join
from eval.networks import Model
from eval.reading import TARGET, VIEW, batches
from eval.tasks.encoding import encode
from eval.tasks.heads import Head, build_head

FORMAT = "eossl-trained/2"


@dataclass(frozen=True)
class Trained:
    """What predicts.

    ``joined`` says which bands it takes, in which order and size, and how they are normalised; ``kind``, ``classes``
    and ``unit`` what it predicts; ``frames`` of how many dates, ``dense`` whether per pixel. ``source`` is the
    ``--model-obj`` entry and the seed that the encoder was made from, ``whole`` says that it has learnt too, or
    was made for images like the one whose shape and channel ids are the ``example``. ``side`` is that of the training
    images in pixels, before they were resized or cut.
    """

    model: Model
    head: Head
    joined: Join
    kind: str
    classes: tuple[str, ...]
    unit: str
    frames: int
    dense: bool
    source: tuple[str, int]
    whole: bool
    example: tuple[list[int], list[int]]
    side: int

    @classmethod
    def of(cls, trial: Trial, model: Model, head: Head, whole: bool, source: tuple[str, int]) -> Trained:
        """After training on a trial."""
        d, view = trial.dataset, trial.example
        example = list(view["imgs"].shape[1:]), view["chn_ids"][0].tolist()
        train = d.splits["train"]
        side = max(image.shape[-1] for image in train[0].images.values())
        facts = (d.kind, d.classes, d.unit, d.frames, train.dense, source, whole, example, side)
        return cls(model, head, trial.joined, *facts)

    @torch.inference_mode()
    def predict(
        self,
        view: View,
        shape: tuple[int, ...] | None = None,
        days: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, K, H, W]`` (values in ``unit``; one logit: class 1 above 0), per image ``[B, K]``.

        ``view`` as ``joined.view`` makes it, of any size the encoder takes, of series ``[B, T, C, H, W]`` with ``days``
        since 2000 and ``padding`` ``[B, T]``. ``shape`` (H, W) of the result (default: the view's).
        """
        self.model.network.eval()
        shape = (shape or tuple(view["imgs"].shape[-2:])) if self.dense else ()
        extras = {name: x for name, x in (("days", days), ("padding", padding)) if x is not None}
        encoded = encode(self.model, view, shape, self.joined.window, self.joined.stride, **extras)
        return encoded.predict(self.head.eval())

    def predictions(self, split: Split, device: torch.device, batch_size: int, workers: int = 0) -> Iterator[Tensor]:
        """Logits of a split in its order."""
        for batch in batches(split, self.joined, device, batch_size=batch_size, workers=workers, frames=self.frames):
            yield self.predict(batch.views[VIEW], tuple(batch.labels[TARGET].shape[1:]), **batch.meta)

    def save(self, path: Path, **about: Any) -> None:
        """One safetensors file, atomically: weights that have learnt, and as JSON all that makes them usable again."""
        from safetensors.torch import save

        states = {"head": self.head.state_dict()}
        if self.whole:
            states["encoder"] = self.model.network.state_dict()
        tensors = {f"{part}.{k}": x.cpu().contiguous() for part, state in states.items() for k, x in state.items()}
        names = ("kind", "classes", "unit", "frames", "dense", "source", "example", "side")
        facts: dict[str, Any] = {name: getattr(self, name) for name in names}
        facts |= {"digest": self.model.digest, "head": self.head.recipe, "whole": self.whole}
        facts |= {"joined": join_to_dict(self.joined), "about": about}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(save(tensors, {"format": FORMAT, "trained": json.dumps(facts)}))


def load_trained(run: str | Path, device: torch.device | str = "cpu") -> Trained:
    """The trained model of a finished cell: a file ``seed-N.safetensors``, or its folder where there is only one.

    ValueError where there is none or several, where the file is another thing, or where the encoder that it was
    trained on is no longer what it was.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = only_file(Path(run))
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no trained model: format {header.get('format')!r}, expected {FORMAT!r}")
    facts, tensors = json.loads(header["trained"]), load_file(path)
    source, (shape, ids) = tuple(facts["source"]), facts["example"]
    model = load_model(source[0], device, source[1])
    if model.digest != facts["digest"]:
        raise ValueError(f"{path} was trained on other weights than those of {source[0]} now")
    model = model.fitted({"imgs": torch.randn(1, *shape, device=device), "chn_ids": torch.tensor([ids], device=device)})
    head = build_head(**facts["head"]).to(device)
    for name, module in {"head": head, **({"encoder": model.network} if facts["whole"] else {})}.items():
        mine = {k.removeprefix(f"{name}."): x for k, x in tensors.items() if k.startswith(f"{name}.")}
        module.load_state_dict(mine)
    kept = {k: facts[k] for k in ("kind", "unit", "frames", "dense", "whole", "side")}
    joined = join_from_dict(facts["joined"])
    return Trained(model, head, joined, **kept, classes=tuple(facts["classes"]), source=source, example=(shape, ids))


def only_file(run: Path) -> Path:
    """The one trained file that is meant."""
    found = sorted(run.glob("seed-*.safetensors")) if run.is_dir() else [run] if run.is_file() else []
    if len(found) != 1:
        names = f"several: name one of {', '.join(p.name for p in found)}" if found else "no seed-N.safetensors"
        raise ValueError(f"{run} holds {names}; decoder evaluations leave one for every seed")
    return found[0]


def join_to_dict(joined: Join) -> dict[str, Any]:
    """A join in plain values."""
    names = ("images", "bands", "size", "words", "expected", "scaling", "window", "stride", "sizing")
    plain = {name: getattr(joined, name) for name in names}
    channels = [c and {"spec": c.spec.to_dict(), "name": c.name} for c in joined.channels]
    return plain | {"norm": joined.norm.to_dict(), "channels": channels}


def join_from_dict(raw: dict[str, Any]) -> Join:
    """The inverse of :func:`join_to_dict`."""
    channels = tuple(c and Channel(ImageSpec.from_dict(c["spec"]), c["name"]) for c in raw["channels"])
    tuples = {k: raw[k] and tuple(raw[k]) for k in ("bands", "expected")}
    return Join(**{**raw, **tuples, "norm": Normalisation.from_dict(raw["norm"]), "channels": channels})
