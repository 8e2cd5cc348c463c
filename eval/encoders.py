"""Everything ``--model-obj`` accepts, as one object: features of a standardised view.

runs/vit_small             a run folder (its model_final.safetensors, or as DINOv2 and Panopticon write it .pth),
                           a folder of run folders, a glob
path/encoder.safetensors   an exported encoder, or the folder that eval/export.py made of one
path/step-00001000         a checkpoint of a run, finished or not
path/model_final.pth       a file of the zoo's models in any layout that DINOv2 or Panopticon write, found by its keys
dofa@FILE                  a released encoder (a name of dinov2.models.zoo.ZOO) and its file, also looked for in $CDIR;
dofa@download              ... and its published file, downloaded once into $CDIR (or torch.hub's cache)
py:package.module:function a user's encoder: function() -> nn.Module (docs/models.md); options as ...:function?key=value
random:runs/vit_small      floor: that run's architecture and normalisation with fresh weights
random:vit_small           floor: an architecture with fresh weights; options as random:vit_small?patch_size=8
dofa@random                floor: random weights in the released layout; options as dofa@random?depth=2&img_size=64
pixelstats                 floor: mean and standard deviation of every band
rcf                        floor: random convolutional features; options as rcf?features=512&source=patches
unet, vit_scratch          baselines, trained from scratch with the decoder; options as unet?width=32
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from glob import glob
from pathlib import Path

import torch

from dinov2.config import fingerprint
from dinov2.models import build_encoder
from dinov2.models.zoo import ZOO
from dinov2.sensors import suggest
from dinov2.train.checkpoint import PATTERN, is_checkpoint
from eval.baselines import BASELINES, baseline
from eval.checkpoints import architecture, load_file
from eval.networks import Model, PixelStats, network_of
from eval.released import is_released, options, released, released_name, released_parts
from eval.users import users_encoder

# ours; that of a folder that eval/export.py wrote; that of DINOv2 and Panopticon
FINALS = ("model_final.safetensors", "model.safetensors", "model_final.pth")
ENCODERS = (".safetensors", ".pt", ".pth")  # files that a glob finds


def load_model(obj: str, device: torch.device | str = "cpu", seed: int = 0) -> Model:
    """The model that one entry of ``--model-obj`` names (see the module docstring); ``seed`` draws random weights.

    A model whose network depends on the data comes unmade: :meth:`eval.networks.Model.fitted` makes it.
    """
    kind, rest = split(obj)
    if is_released(obj):
        model = released(obj, seed)
    else:
        model = KINDS[kind](rest, seed) if kind else load_file(model_file(obj), name_of(obj))
    model.network.to(device)
    return model


def split(obj: str) -> tuple[str, str]:
    """``KIND``, ``KIND:rest`` or ``KIND?rest`` -> the key of ``KINDS`` and the rest; ("", obj) for all else."""
    kind, _, rest = re.sub("[:?]", "\0", obj, count=1).partition("\0")
    return (kind, rest) if kind in KINDS else ("", obj)


def seeded(obj: str) -> bool:
    """Whether the model is another one for every seed."""
    return split(obj)[0] in ("random", *BASELINES) or (is_released(obj) and released_parts(obj)[1] == "random")


def fresh(obj: str) -> str:
    """The entry of the same architecture with random weights; ValueError where there is none."""
    kind, _ = split(obj)
    if is_released(obj):
        name, _, rest = obj.partition("@")
        _, mark, query = rest.partition("?")
        return f"{name}@random{mark}{query}"
    if kind in ("pixelstats", "rcf", "py"):
        raise ValueError(f"model {obj!r} has no architecture that random weights could be drawn for")
    return obj if kind else f"random:{obj}"


def name_of(obj: str) -> str:
    """A model's short name: the run folder's, for floors ``random:`` and the run or architecture, NAME@FILE's stem."""
    kind, rest = split(obj)
    if is_released(obj):
        return released_name(obj)
    if kind:
        return f"{kind}:{name_of(rest)}" if rest and Path(rest).exists() else obj
    path = model_file(obj)
    run = path.parents[1 if path.parent.name == "checkpoints" else 0].name
    return run if path.stem in ("model_final", "model", "encoder") else f"{run}/{path.stem}"


def home_of(obj: str) -> Path | None:
    """Where results of a run's model lie by default: ``eval_model_final`` in its folder; None for all others."""
    if is_released(obj) or split(obj)[0]:
        return None
    path = model_file(obj)
    return path.parents[1 if path.parent.name == "checkpoints" else 0] / f"eval_{path.stem}"


def model_file(obj: str) -> Path:
    """The encoder file that a run folder or a file name means."""
    path = Path(obj)
    if path.is_dir() and not is_checkpoint(path):
        path = final_of(path) or path / FINALS[0]
    if obj in ZOO:
        raise ValueError(f"model {obj!r}: say which weights, as {obj}@FILE, {obj}@download or {obj}@random")
    if not path.exists():
        raise ValueError(
            f"model {obj!r}: there is no file {path}; give a run folder, an exported encoder (.safetensors), a "
            f"checkpoint, NAME@FILE for a released one or one of {', '.join(KINDS)}"
        )
    return path.resolve()


def final_of(folder: Path) -> Path | None:
    """The encoder file of a finished run's folder; None where ``folder`` is none."""
    return next((path for path in (folder / final for final in FINALS) if path.is_file()), None)


def random_floor(target: str, seed: int) -> Model:
    """``random:RUN`` or ``random:ARCHITECTURE?key=value&key=value``: the weights depend on ``seed`` alone."""
    if target and Path(target).exists():
        config, normalisation = architecture(model_file(target))
    else:
        name, _, query = target.partition("?")
        config, normalisation = {"name": name, **options(query, f"random:{target}")}, None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder(**config)
    digest = fingerprint([config, normalisation.to_dict() if normalisation else None, seed])
    return Model(name_of(f"random:{target}"), "floor", digest, network_of(encoder), normalisation)


def pixel_floor(rest: str, seed: int) -> Model:
    """``pixelstats``."""
    if rest:
        raise ValueError(f"model 'pixelstats:{rest}': pixelstats takes no option")
    return Model("pixelstats", "floor", "pixelstats-1", PixelStats())


KINDS: Mapping[str, Callable[[str, int], Model]] = {
    "random": random_floor,
    "pixelstats": pixel_floor,
    "py": users_encoder,
    **{kind: partial(baseline, kind) for kind in BASELINES},
}


def expand_models(text: str) -> list[str]:
    """``A;B;folder;glob`` as single models; folders of runs and globs become the runs inside, in alphabetical order."""
    out: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        if is_released(part) or split(part)[0]:
            out.append(part)
        elif any(c in part for c in "*?["):
            found = [
                str(p) for p in map(Path, sorted(glob(part))) if p.suffix in ENCODERS or final_of(p) or is_checkpoint(p)
            ]
            out += found or missing(part)
        elif Path(part).is_dir() and not final_of(Path(part)) and not is_checkpoint(Path(part)):
            out += sorted({str(p.parent) for final in FINALS for p in Path(part).rglob(final)}) or missing(part)
        else:
            out.append(part)
    if not out:
        raise ValueError("--model-obj names no model")
    return list(dict.fromkeys(out))


def missing(part: str) -> list[str]:
    """Complain about an entry that matches nothing."""
    checkpoints = sorted(Path(part).glob(f"checkpoints/{PATTERN}"))
    if checkpoints:
        raise ValueError(f"--model-obj {part!r} is not finished; evaluate one of its checkpoints, as {checkpoints[-1]}")
    raise ValueError(f"--model-obj {part!r} holds no {FINALS[0]}{suggest(part, list(KINDS))}")
