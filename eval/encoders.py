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
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path

import torch

from dinov2.config import fingerprint
from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import load_export, read_export_info
from dinov2.models.zoo import ZOO
from dinov2.sensors import suggest
from eval.networks import Frozen, Model, PixelStats
from eval.released import is_released, options, released, released_name, released_parts

FINAL = "model_final.safetensors"


def load_model(obj: str, device: torch.device | str = "cpu", seed: int = 0) -> Model:
    """The model that one entry of ``--model-obj`` names (see the module docstring); ``seed`` draws random weights."""
    kind, _, rest = obj.partition(":")
    if is_released(obj):
        model = released(obj, seed)
    else:
        model = KINDS[kind](rest, seed) if kind in KINDS else trained(obj)
    model.network.to(device)
    return model


def seeded(obj: str) -> bool:
    """Whether the model is another one for every seed."""
    return obj.startswith("random:") or (is_released(obj) and released_parts(obj)[1] == "random")


def name_of(obj: str) -> str:
    """A model's short name: the run folder's, for floors ``random:`` and the run or architecture, NAME@FILE's stem."""
    kind, _, rest = obj.partition(":")
    if is_released(obj):
        return released_name(obj)
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
