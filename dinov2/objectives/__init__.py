"""Self-supervised objectives by name: ``build_objective("simclr", encoder, temperature=0.2)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, make_dataclass
from functools import partial

from torch import nn

from dinov2.config import signature_schema
from dinov2.objectives.base import Objective
from dinov2.objectives.dino import DINO
from dinov2.objectives.geo_aware import GeoAware
from dinov2.objectives.mae import MAE
from dinov2.objectives.two_view import KNOBS, ROWS, TwoView
from dinov2.sensors import suggest

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    **{name: partial(TwoView, row=name) for name in ROWS},
    "mae": MAE,
    "dino": DINO,
    "geo_aware": GeoAware,
}


def options(name: str) -> type:
    """Dataclass of the options of objective ``name``: its constructor's keyword arguments, with their defaults."""
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}{suggest(name, list(OBJECTIVES))} Known: {', '.join(OBJECTIVES)}")
    if name not in ROWS:
        return signature_schema(name, OBJECTIVES[name].__init__)  # type: ignore[misc]
    schema = signature_schema(name, TwoView.__init__)
    own = [(f.name, f.type, f) for f in fields(schema) if f.name not in KNOBS - set(ROWS[name].knobs)]
    return make_dataclass(name, own)


def build_objective(name: str, encoder: nn.Module, **keywords: object) -> Objective:
    """The objective ``name`` around ``encoder``; see ``options(name)`` for its keywords."""
    options(name)
    return OBJECTIVES[name](encoder, **keywords)
