"""Everything ``--model-obj`` accepts, as one object: features of a standardised view.

runs/vit_small             a run folder (its model_final.safetensors), a folder of run folders, a glob
path/encoder.safetensors   an exported encoder
random:runs/vit_small      floor: that run's architecture and normalisation with fresh weights
random:vit_small           floor: an architecture with fresh weights; options as random:vit_small?patch_size=8
pixelstats                 floor: mean and standard deviation of every band
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from dinov2.config import fingerprint
from dinov2.data.batch import View
from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import load_export, read_export_info
from dinov2.sensors import suggest

FINAL = "model_final.safetensors"
LAST_BLOCKS = 4  # the linear grid pools up to so many (DINOv2)


class PixelStats(nn.Module):
    """Mean and standard deviation per band of the standardised image: what needs no network at all."""

    def pooled(self, x: View) -> dict[str, Tensor]:
        """``{"pixels": [B, 2C]}``; hidden channels stay 0."""
        shown = ~x["spec_masks"] if "spec_masks" in x else torch.ones_like(x["chn_ids"], dtype=torch.bool)
        std, mean = torch.std_mean(x["imgs"].flatten(2), dim=2, correction=0)  # [B, C]
        return {"pixels": torch.cat([mean * shown, std * shown], 1)}

    def maps(self, x: View) -> list[Tensor]:
        """Pixel statistics have no feature map."""
        raise ValueError("pixelstats has no feature maps; evaluate it with knn or linear")


class Frozen(nn.Module):
    """A vision transformer that is only looked at."""

    encoder: Any

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.encoder.blocks)

    def pooled(self, x: View) -> dict[str, Tensor]:
        """Every pooling of the linear grid from one pass; ``cls`` equals the encoder's own output."""
        layers = self.encoder.get_intermediate_layers(x, n=min(LAST_BLOCKS, self.depth), return_class_token=True)
        tokens = [cls for _, cls in layers]  # n x [B, D]
        cls, cls4, mean = tokens[-1], torch.cat(tokens, 1), layers[-1][0].mean(1)
        return {
            "cls": cls,
            "mean": mean,
            "cls+mean": torch.cat([cls, mean], 1),
            "cls4": cls4,
            "cls4+mean": torch.cat([cls4, mean], 1),
        }

    def maps(self, x: View) -> list[Tensor]:
        """Feature maps ``[B, D, h, w]`` at four depths (every third block of twelve)."""
        at = sorted({max(0, round(self.depth * i / LAST_BLOCKS) - 1) for i in range(1, LAST_BLOCKS + 1)})
        return list(self.encoder.get_intermediate_layers(x, n=at, reshape=True))


@dataclass(frozen=True)
class Model:
    """An encoder under evaluation.

    ``role`` is pretrained or floor; ``digest`` identifies the weights; ``normalisation`` travels with a checkpoint and
    is None where the dataset's own statistics apply.
    """

    name: str
    role: str
    digest: str
    network: Frozen | PixelStats
    normalisation: Normalisation | None = None

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
    model = KINDS[kind](rest, seed) if kind in KINDS else trained(obj)
    model.network.to(device)
    return model


def name_of(obj: str) -> str:
    """A model's short name: the run folder's, for floors ``random:`` and the run or architecture."""
    kind, _, rest = obj.partition(":")
    if kind in KINDS:
        return f"{kind}:{name_of(rest)}" if rest and Path(rest).exists() else obj
    path = export_path(obj)
    run = path.parent.name
    return run if path.stem in ("model_final", "encoder") else f"{run}/{path.stem}"


def home_of(obj: str) -> Path | None:
    """Where results of a trained model lie by default: ``eval_model_final`` in its run folder; None for floors."""
    if obj.partition(":")[0] in KINDS:
        return None
    path = export_path(obj)
    return path.parent / f"eval_{path.stem}"


def export_path(obj: str) -> Path:
    """The encoder file that a run folder or a file name means."""
    path = Path(obj) / FINAL if Path(obj).is_dir() else Path(obj)
    if not path.is_file():
        raise ValueError(
            f"model {obj!r}: there is no file {path}; give a run folder, an exported encoder (.safetensors) or one of "
            f"the floors {', '.join(KINDS)}"
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
        config, normalisation = {"name": architecture, **options(query, target)}, None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder(**config)
    digest = fingerprint([config, normalisation.to_dict() if normalisation else None, seed])
    return Model(name_of(f"random:{target}"), "floor", digest, Frozen(encoder), normalisation)


def options(query: str, target: str) -> dict[str, Any]:
    """``a=1&b=x`` as a dictionary; numbers and booleans as in YAML."""
    pairs = [p.partition("=") for p in query.split("&") if p]
    if any(not value for _, _, value in pairs):
        raise ValueError(f"model 'random:{target}': write options as ?key=value&key=value")
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
        if part.partition(":")[0] in KINDS:
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
