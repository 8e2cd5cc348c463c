"""Reading a golden fixture and comparing what an adapter produced with what was recorded.

A fixture is ``<name>.json`` + ``<name>.safetensors`` (layout: README.md beside them). An adapter is a function of one
fixture that returns the tensors it produced under their recorded names, ``out/...`` and ``grad/...``; the harness
wants every recorded one that ``do_not_match`` does not exclude. ``out/right/<x>`` is the value that ``out/<x>`` should
have had, so it is compared with the produced ``out/<x>``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Fixture:
    """One recorded call (or several) of a reference implementation."""

    name: str
    group: str
    kind: str
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]  # keys without "state/"
    inputs: Mapping[str, Tensor]  # keys without "in/"
    recorded: Mapping[str, Tensor]  # keys with "out/" or "grad/"
    tolerance: Mapping[str, Any] = field(default_factory=dict)
    do_not_match: tuple[str, ...] = ()

    @property
    def cases(self) -> list[str]:
        """Prefixes of the calls in this fixture; ``[""]`` where the tensors lie directly under in/ and out/."""
        return [f"{case}/" for case in self.config.get("cases", [])] or [""]

    def tolerances(self, name: str) -> tuple[float, float]:
        """(rtol, atol) of one recorded tensor; the last override that fits wins."""
        chosen = dict(self.tolerance)
        for pattern, values in self.tolerance.get("overrides", {}).items():
            if fnmatchcase(name, pattern):
                chosen.update(values)
        return chosen["rtol"], chosen["atol"]


Adapter = Callable[[Fixture], Mapping[str, Tensor]]


def load_fixture(path: Path) -> Fixture:
    """Read ``<name>.json`` and the tensors beside it; manifests of ``layouts`` become meta tensors under ``state``."""
    raw = json.loads(path.read_text())
    if raw["group"] == "layouts":
        state = {k: torch.empty(s, dtype=getattr(torch, d), device="meta") for k, (d, s) in raw["keys"].items()}
        return Fixture(raw["layout"], "layouts", raw["kind"], {"layout": raw["layout"]}, state, {}, {})
    tensors = load_file(path.with_name(raw["file"]))
    for name in raw["bool_tensors"]:
        tensors[name] = tensors[name].bool()
    part = {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("state/", "in/")}
    recorded = {k: v for k, v in tensors.items() if k.startswith(("out/", "grad/"))}
    return Fixture(
        raw["fixture"],
        raw["group"],
        raw["kind"],
        raw["config"],
        part["state/"],
        part["in/"],
        recorded,
        raw["tolerance"],
        tuple(raw["do_not_match"]),
    )


def compare(fixture: Fixture, produced: Mapping[str, Tensor]) -> None:
    """Raise AssertionError naming every recorded tensor that was not produced or differs."""
    complaints = []
    for name, expected in fixture.recorded.items():
        if any(fnmatchcase(name, pattern) for pattern in fixture.do_not_match):
            continue
        source = name.replace("/right/", "/", 1)
        if source not in produced:
            complaints.append(f"{name}: not produced")
            continue
        got = produced[source].detach().to(expected.dtype)
        if got.shape != expected.shape:
            complaints.append(f"{name}: shape {tuple(got.shape)}, recorded {tuple(expected.shape)}")
            continue
        if "/right/" in name and expected.is_floating_point():
            got = got.where(~expected.isnan(), expected)  # NaN: undefined, nothing to compare
        rtol, atol = fixture.tolerances(name) if expected.is_floating_point() else (0.0, 0.0)
        if not torch.allclose(got, expected, rtol, atol, equal_nan=True):
            difference = (got.double() - expected.double()).abs().max().item()
            complaints.append(f"{name}: differs by up to {difference:.3g} (rtol {rtol}, atol {atol})")
    assert not complaints, f"{fixture.group}/{fixture.name}:\n" + "\n".join(complaints)


def gradients(loss: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``{"grad/<name>": d loss / d tensor}``; a tensor that the loss does not reach is an error."""
    grads = torch.autograd.grad(loss, list(tensors.values()))
    return {f"grad/{name}": g for name, g in zip(tensors, grads, strict=True)}
