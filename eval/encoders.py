"""Everything ``--model-obj`` accepts, as one object: features of a standardised view.

runs/vit_small             a run folder (its model_final.safetensors), a folder of run folders, a glob
path/encoder.safetensors   an exported encoder
random:runs/vit_small      floor: that run's architecture and normalisation with fresh weights
random:vit_small           floor: an architecture with fresh weights; options as random:vit_small?patch_size=8
pixelstats                 floor: mean and standard deviation of every band
dofa@FILE                  a released encoder (a name of dinov2.models.zoo.ZOO) and its file, also looked for in $CDIR;
dofa@download              ... and its published file, downloaded once into $CDIR (or torch.hub's cache)
dofa@random                floor: random weights in the released layout; options as dofa@random?depth=2&img_size=64
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dinov2.config import fingerprint
from dinov2.data.batch import View
from dinov2.data.stats import Normalisation
from dinov2.env import expand
from dinov2.models import build_encoder
from dinov2.models.export import load_export, read_export_info
from dinov2.models.zoo import ZOO, load_encoder
from dinov2.models.zoo.release import Expects
from dinov2.sensors import suggest
from eval.networks import Frozen, PixelStats, Released

FINAL = "model_final.safetensors"


@dataclass(frozen=True)
class Model:
    """An encoder under evaluation.

    ``role`` is pretrained or floor; ``digest`` identifies the weights; ``normalisation`` travels with a checkpoint and
    is None where the dataset's own statistics apply; ``expects`` says what a released encoder takes.
    """

    name: str
    role: str
    digest: str
    network: Frozen | PixelStats
    normalisation: Normalisation | None = None
    expects: Expects | None = None

    def features(self, x: View) -> dict[str, Tensor]:
        """Pooled features by name, each ``[B, D']``."""
        return self.network.pooled(x)

    def embed(self, x: View) -> Tensor:
        """The model's one embedding ``[B, D]``: the class token where it has one."""
        return next(iter(self.features(x).values()))

    def maps(self, x: View) -> list[Tensor]:
        """Feature maps, each ``[B, D, h, w]``, shallow to deep."""
        return self.network.maps(x)


def load_model(obj: str, device: torch.device | str = "cpu", seed: int = 0) -> Model:
    """The model that one entry of ``--model-obj`` names (see the module docstring); ``seed`` draws random weights."""
    kind, _, rest = obj.partition(":")
    if is_released(obj):
        model = released(obj, seed)
    else:
        model = KINDS[kind](rest, seed) if kind in KINDS else trained(obj)
    model.network.to(device)
    return model


def is_released(obj: str) -> bool:
    """Whether ``obj`` reads NAME@WEIGHTS."""
    name, at, _ = obj.partition("@")
    return bool(at) and not {"/", ":"} & set(name)


def seeded(obj: str) -> bool:
    """Whether the model is another one for every seed."""
    return obj.startswith("random:") or (is_released(obj) and released_parts(obj)[1] == "random")


def name_of(obj: str) -> str:
    """A model's short name: the run folder's, for floors ``random:`` and the run or architecture, NAME@FILE's stem."""
    kind, _, rest = obj.partition(":")
    if is_released(obj):
        name, weights, _ = released_parts(obj)
        return obj if weights in ("random", "download") else f"{name}@{Path(weights).stem}"
    if kind in KINDS:
        return f"{kind}:{name_of(rest)}" if rest and Path(rest).exists() else obj
    path = export_path(obj)
    run = path.parent.name
    return run if path.stem in ("model_final", "encoder") else f"{run}/{path.stem}"


def home_of(obj: str) -> Path | None:
    """Where results of a run's model lie by default: ``eval_model_final`` in its folder; None for all others."""
    if is_released(obj) or obj.partition(":")[0] in KINDS:
        return None
    path = export_path(obj)
    return path.parent / f"eval_{path.stem}"


def export_path(obj: str) -> Path:
    """The encoder file that a run folder or a file name means."""
    path = Path(obj) / FINAL if Path(obj).is_dir() else Path(obj)
    if obj in ZOO:
        raise ValueError(f"model {obj!r}: say which weights, as {obj}@FILE, {obj}@download or {obj}@random")
    if not path.is_file():
        raise ValueError(
            f"model {obj!r}: there is no file {path}; give a run folder, an exported encoder (.safetensors), "
            f"NAME@FILE for a released one or one of the floors {', '.join(KINDS)}"
        )
    return path.resolve()


def trained(obj: str) -> Model:
    """A run folder or an exported encoder."""
    path = export_path(obj)
    encoder, info = load_export(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Model(name_of(obj), "pretrained", digest, Frozen(encoder), Normalisation.from_dict(info["normalisation"]))


def released_parts(obj: str) -> tuple[str, str, dict[str, Any]]:
    """NAME@WEIGHTS?key=value -> the name, the weights and the options."""
    name, _, rest = obj.partition("@")
    weights, _, query = rest.partition("?")
    return name, weights, options(query, obj)


def released(obj: str, seed: int) -> Model:
    """``NAME@FILE``, ``NAME@download`` or ``NAME@random``."""
    name, weights, sizes = released_parts(obj)
    if weights == "random":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = load_encoder(name, "random", **sizes)
        role, identity = "floor", str(seed)
    else:
        path = ZOO[name].fetch() if weights == "download" and name in ZOO else find_weights(weights)
        encoder = load_encoder(name, path, **sizes)
        role, identity = "pretrained", hashlib.sha256(path.read_bytes()).hexdigest()
    expects = expected_by(encoder, ZOO[name].expects, sizes)
    return Model(name_of(obj), role, fingerprint([name, sizes, identity]), Released(encoder, expects), expects=expects)


def expected_by(encoder: Any, released: Expects, sizes: Mapping[str, Any]) -> Expects:
    """What an encoder at these sizes expects: as released, but for its pixels and number of blocks."""
    depth = len(encoder.blocks)
    return replace(
        released,
        size=sizes.get("img_size", released.size),
        patch=encoder.patch_size,
        layers=released.layers if max(released.layers) < depth else tuple(range(depth)),
    )


def find_weights(weights: str) -> Path:
    """The file itself, or the one of this name in the folder ``$CDIR``."""
    path = Path(expand(weights))
    kept = Path(os.environ.get("CDIR", "")) / path
    return kept if not path.exists() and kept.exists() else path


def random_floor(target: str, seed: int) -> Model:
    """``random:RUN`` or ``random:ARCHITECTURE?key=value&key=value``: the weights depend on ``seed`` alone."""
    if target and Path(target).exists():
        header = read_export_info(export_path(target))
        config, normalisation = header["encoder"], Normalisation.from_dict(header["normalisation"])
    else:
        architecture, _, query = target.partition("?")
        config, normalisation = {"name": architecture, **options(query, f"random:{target}")}, None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder(**config)
    digest = fingerprint([config, normalisation.to_dict() if normalisation else None, seed])
    return Model(name_of(f"random:{target}"), "floor", digest, Frozen(encoder), normalisation)


def options(query: str, target: str) -> dict[str, Any]:
    """``a=1&b=x`` as a dictionary; numbers and booleans as in YAML."""
    pairs = [p.partition("=") for p in query.split("&") if p]
    if any(not value for _, _, value in pairs):
        raise ValueError(f"model {target!r}: write options as ?key=value&key=value")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def pixel_floor(rest: str, seed: int) -> Model:
    """``pixelstats``."""
    if rest:
        raise ValueError(f"model 'pixelstats:{rest}': pixelstats takes no option")
    return Model("pixelstats", "floor", "pixelstats-1", PixelStats())


KINDS: Mapping[str, Callable[[str, int], Model]] = {"random": random_floor, "pixelstats": pixel_floor}


def expand_models(text: str) -> list[str]:
    """``A;B;folder;glob`` as single models; folders of runs and globs become the runs inside, in alphabetical order."""
    out: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        if is_released(part) or part.partition(":")[0] in KINDS:
            out.append(part)
        elif any(c in part for c in "*?["):
            found = [
                str(p) for p in map(Path, sorted(glob(part))) if p.suffix == ".safetensors" or (p / FINAL).is_file()
            ]
            out += found or missing(part)
        elif Path(part).is_dir() and not (Path(part) / FINAL).is_file():
            out += [str(p.parent) for p in sorted(Path(part).rglob(FINAL))] or missing(part)
        else:
            out.append(part)
    if not out:
        raise ValueError("--model-obj names no model")
    return list(dict.fromkeys(out))


def missing(part: str) -> list[str]:
    """Complain about an entry that matches nothing."""
    raise ValueError(f"--model-obj {part!r} holds no {FINAL}{suggest(part, list(KINDS))}")
