"""One merge, one check: a dataclass schema, a YAML file that holds differences only, and ``key=value`` overrides."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def signature_schema(name: str, function: Callable[..., Any]) -> type:
    """A dataclass of the keyword-only arguments of ``function``: its options are declared once, where they are used."""
    hints = typing.get_type_hints(function)
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = MISSING if parameter.default is parameter.empty else parameter.default
        fields.append((parameter.name, hints[parameter.name], dataclasses.field(default=default)))
    return dataclasses.make_dataclass(name, fields)


def merge(schema: Any, *layers: Any, origin: str) -> DictConfig:
    """Merge ``layers`` over ``schema`` (a dataclass or its instance); unknown keys and wrong types raise, by name."""
    config = OmegaConf.structured(schema)
    for layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except OmegaConfBaseException as error:
            raise ValueError(f"{origin}: {explain(error)}") from error
    OmegaConf.resolve(config)
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ValueError(f"{origin}: {', '.join(sorted(missing))} must be given (in the file or as key=value)")
    return config


def explain(error: OmegaConfBaseException) -> str:
    """OmegaConf's complaint in one line that names the full key."""
    text = str(error).strip().splitlines()[0].rstrip(".")
    if "is not a ListConfig" in text:
        text = "it takes a list: write [a, b], or [a] for one"
    key = getattr(error, "full_key", None)
    if "could not be converted to Integer" in text:
        text += " (write a whole number such as 1000, not 1e3 or 1000.0)"
    return f"config key {key!r}: {text}" if key else text


def read_yaml(path: Path) -> DictConfig:
    """A YAML mapping; errors name the file."""
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        raw = OmegaConf.load(path)
    except Exception as error:  # yaml raises several unrelated types; all mean the same to the user
        raise ValueError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, DictConfig):
        raise ValueError(f"{path} must hold a mapping of keys to values")
    return raw


def read_overrides(overrides: Sequence[str]) -> DictConfig:
    """``["optim.base_lr=1e-3"]`` as a config."""
    for item in overrides:
        if "=" not in item:
            raise ValueError(f"{item!r} is neither an option nor key=value; see --help")
    return OmegaConf.from_dotlist(list(overrides))


def plain(config: Any) -> Any:
    """Dictionaries, lists, numbers and strings."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def fingerprint(value: Any) -> str:
    """Twelve hex digits that identify a configuration, whatever the order of its keys."""
    text = json.dumps(plain(value), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
