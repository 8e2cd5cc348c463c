"""An evaluation: one dataset, one task, some seeds. YAML files hold differences only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from dinov2 import config
from dinov2.sensors import suggest
from eval import datasets
from eval.knn import knn
from eval.labels import Labels
from eval.probe import linear
from eval.tasks.decoder import Options

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "eval"
TASKS: Mapping[str, Callable[..., Any]] = {"knn": knn, "linear": linear, "decoder": Options}  # what has their options
COUNTS = ("batch_size", "crop_size", "epochs", "evaluate_every", "k", "resamples", "stride")  # of at least one
LISTS = ("learning_rates", "poolings", "seeds")  # of at least one
PLACES = ("root", "val_root", "test_root")  # where data lies does not change a result; what it is does (data_hash)


@dataclass
class Running:
    """How, not what: none of these changes a result beyond rounding."""

    batch_size: int = 64  # images encoded at once
    workers: int = 0  # loader processes
    memory: int = 4 << 30  # bytes of feature maps that may be kept; what does not fit is encoded again
    tensorboard: bool = False  # write what decoders learn, beside their rows


@dataclass
class Treatment:
    """How a dataset meets a model that was made for other data."""

    missing: str = "error"  # bands that the encoder expects and the dataset lacks: error | drop | zero
    size: str | None = None  # resize | tile | interpolate (None: resize for released encoders, interpolate for others)
    stride: int | None = None  # pixels between the windows of size=tile (None: the fewest that cover an image)
    normalisation: str = "model"  # model: the encoder's own, where it has one | dataset: of the training images


@dataclass(frozen=True)
class Evaluation:
    """One resolved evaluation; ``name`` is the config's path below configs/eval, of a curve's with the amount."""

    name: str
    dataset: dict[str, Any]
    task: dict[str, Any]
    seeds: tuple[int, ...]
    resamples: int
    model: dict[str, Any]
    running: dict[str, int]
    labels: dict[str, Any]
    family: str = ""  # the name that the evaluations of one labels.curve share

    @property
    def missing(self) -> str:
        """What to do about bands that the encoder expects and the dataset lacks."""
        return self.model["missing"]

    @property
    def config_hash(self) -> str:
        """Identifies everything that decides a result, given model, data and seed."""
        return self.hash_without(*PLACES)

    @property
    def training_hash(self) -> str:
        """... and what decides the training: all but the test images."""
        return self.hash_without(*PLACES, "test")

    def hash_without(self, *options: str) -> str:
        """Twelve hex digits of all but these options of the dataset."""
        dataset = {k: v for k, v in self.dataset.items() if k not in options}
        decides = {"dataset": dataset, "task": self.task, "resamples": self.resamples}
        for section, defaults in (("model", Treatment), ("labels", Labels)):  # these leave the hash of older rows alone
            given = {
                k: v for k, v in getattr(self, section).items() if k != "index"
            }  # where a choice is kept is no part
            changed = {k: v for k, v in given.items() if v != getattr(defaults, k)}
            decides |= {section: changed} if changed else {}
        return config.fingerprint(decides)


def load_all(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> list[Evaluation]:
    """The evaluations of a config: one, or one for every amount of ``labels.curve``."""
    whole = load(source, overrides)
    if whole.labels["curve"] is None:
        return [whole]
    out = []
    for amount in whole.labels["curve"]:
        shots = int(amount) if amount > 1 else None
        if shots not in (None, amount):
            raise ValueError(f"labels.curve of {whole.name}: {amount:g} is neither a fraction nor a number of images")
        name = f"{shots}-shot" if shots else f"{100 * amount:g}-percent"
        labels = whole.labels | {"curve": None, "shots": shots, "fraction": 1.0 if shots else amount}
        out.append(replace(whole, name=f"{whole.name}/{name}", labels=labels, family=whole.name))
    return out


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Evaluation:
    """Read a YAML file (or a mapping with a ``name``), apply ``key=value`` overrides, check every key."""
    if isinstance(source, Mapping):
        raw = OmegaConf.create(dict(source))
        name, origin = raw.pop("name", "evaluation"), "evaluation config"
    else:
        path = Path(source)
        raw, origin = config.read_yaml(path), str(source)
        below = path.resolve().is_relative_to(CONFIGS)
        name = path.resolve().relative_to(CONFIGS).with_suffix("").as_posix() if below else path.stem
    given = raw, config.read_overrides(overrides)
    layers = {"dataset": datasets.defaults(name_of("dataset", given))}, *given
    schema = make_dataclass(
        "EvaluationConfig",
        [
            part("dataset", layers, datasets.DATASETS, origin),
            part("task", layers, TASKS, origin),
            ("seeds", list[int], field(default_factory=lambda: [0])),
            ("resamples", int, 1000),  # bootstrap resamples of the test images
            ("model", Treatment, field(default_factory=Treatment)),
            ("running", Running, field(default_factory=Running)),
            ("labels", Labels, field(default_factory=Labels)),
        ],
    )
    plain = config.plain(config.merge(schema, *layers, origin=origin))
    sections = (("", plain), *((f"{name}.", plain[name]) for name in ("task", "model", "running")))
    for prefix, options in sections:
        for key, value in options.items():
            if (key in COUNTS and value is not None and value < 1) or (key in LISTS and not value):
                raise ValueError(f"{origin}: {prefix}{key} is {value}; give at least {'1' if key in COUNTS else 'one'}")
    return Evaluation(name=name, **{**plain, "seeds": tuple(plain["seeds"])})


def part(
    key: str, layers: Sequence[Any], table: Mapping[str, Callable[..., Any]], origin: str
) -> tuple[str, type, Any]:
    """The schema field of ``key``: the options of the function that ``key.name`` chooses."""
    name = name_of(key, layers)
    if name not in table:
        raise ValueError(f"{origin}: {key}.name is {name!r}{suggest(name, list(table))} Known: {', '.join(table)}")
    options = config.signature_schema(key.title(), table[name])
    chosen = make_dataclass(key.title(), [("name", str, field(default=name))], bases=(options,), kw_only=True)
    return key, chosen, MISSING


def name_of(key: str, layers: Sequence[Any]) -> str:
    """``key.name`` in the last of the layers that has one."""
    names = [layer.get(key, {}).get("name") for layer in layers]
    return next((n for n in reversed(names) if n is not None), "")


def expand_configs(text: str) -> list[Path]:
    """``X;Y;folder;glob`` as YAML files in alphabetical order."""
    out: list[Path] = []
    for item in filter(None, (p.strip() for p in text.split(";"))):
        path = Path(item)
        if path.is_dir():
            found = sorted(path.rglob("*.yaml"))
        else:
            found = [Path(p) for p in sorted(glob(item))] if any(c in item for c in "*?[") else [path]
        if not found:
            raise ValueError(f"--config-obj {item!r} holds no YAML file")
        out += found
    if not out:
        raise ValueError("--config-obj names no config")
    return list(dict.fromkeys(out))
