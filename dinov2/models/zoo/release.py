"""What the project knows about one released model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.state import State, read_weights

# Names under which training codes nest the weights; what lies beside them (optimiser, epoch, student) is not read.
WRAPPERS = ("model", "state_dict", "teacher")
Converted = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Bands:
    """Channels of one sensor (names of ``configs/sensors``), in the order of the weights, in ``unit``."""

    sensor: str
    names: tuple[str, ...]
    unit: str


@dataclass(frozen=True)
class Expects:
    """What released weights expect of their input, and what they give.

    ``bands``: the channels, sensor after sensor; empty: any bands, told apart by ``chn_ids``. ``scaling``:
    ``standardise`` (x - mean) / std; ``two_sigma`` mean - 2 std .. mean + 2 std -> 0 .. 1, clipped; ``clip`` to 0 .. 1.
    ``mean``, ``std``: per band in its unit; empty: those of the data at hand. ``size``, ``patch``: pixels. ``frames``:
    most dates of a time series. ``layers``: blocks whose maps dense tasks use, with ``dim`` channels each.
    ``embedding``: what ``forward`` returns.
    """

    bands: tuple[Bands, ...]
    scaling: str
    size: int
    patch: int
    layers: tuple[int, ...]
    dim: int
    embedding: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    frames: int = 1


@dataclass(frozen=True)
class Release:
    """A released encoder: how to build it, how its file is laid out and where it is published.

    ``build(**sizes)`` makes the encoder at its released sizes, ``sizes`` overriding them. ``convert(content)`` turns
    the file's content into (encoder state, other released tensors that an objective may load); keys it does not know
    are kept, so that strict loading names them. ``family`` and ``marks`` tell models apart: ``marks(flat)`` is whether
    a file's tensors under their dotted names (:func:`flatten`) are of this family. ``url`` None: not downloadable.
    ``sha256``: the checksum or its first digits; None: the publisher names none.
    """

    build: Callable[..., nn.Module]
    convert: Callable[[Any], Converted]
    url: str | None
    family: str
    marks: Callable[[State], bool]
    expects: Expects
    licence: str = "not confirmed"
    sha256: str | None = None

    def fetch(self) -> Path:
        """The released file in the folder ``$CDIR`` (unset: torch.hub's cache), downloaded on first use.

        A checksum that the publisher names is verified, of a file that is there already too. Another one, no network
        and no address: ValueError.
        """
        if self.url is None:
            raise ValueError(
                f"the published address of {self.family} is not confirmed; pass weights=PATH (docs/models.md says what "
                "is known), or weights='random' for an untrained model"
            )
        folder = Path(os.environ.get("CDIR") or Path(torch.hub.get_dir()) / "checkpoints")
        path = folder / self.url.rsplit("/", 1)[-1]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.sha256)
            except (OSError, RuntimeError) as error:  # no network, no such file; a checksum that differs
                raise ValueError(
                    f"could not download the released weights from {self.url} ({error}); fetch the file on a machine "
                    "with network access and pass weights=PATH, or weights='random' for an untrained model"
                ) from error
        elif self.sha256 and not sha256(path).startswith(self.sha256):
            raise ValueError(f"{path} is not the published file (another checksum); remove it to download it again")
        return path

    def content(self, weights: Any) -> Any:
        """What a path, a state dict, or for None the published file holds."""
        return weights if isinstance(weights, dict) else read_weights(self.fetch() if weights is None else weights)


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries under its dotted name."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from flatten(value, f"{name}.{key}" if name else str(key))


def named(flat: State, ending: str) -> Tensor | None:
    """The first tensor whose dotted name is or ends with ``ending``."""
    return next((v for k, v in flat.items() if f".{k}".endswith(f".{ending}")), None)


def encoder_state(content: Any, *, prefixes: Sequence[str] = (), unused: Sequence[str] = ()) -> dict[str, Tensor]:
    """The encoder's tensors of a released file under their bare names.

    Opens ``WRAPPERS``, joins nested dictionaries with dots, strips the first of ``prefixes`` that occurs, and leaves
    out the keys that fit a pattern of ``unused``: what such files are known to hold beside the encoder.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"a weights file should hold a dictionary of tensors, not a {type(content).__name__}")
    while name := next((w for w in WRAPPERS if isinstance(content.get(w), Mapping)), None):
        content = content[name]
    state = dict(flatten(content))
    prefix = next((p for p in prefixes if any(k.startswith(p) for k in state)), "")
    bare = ((k.removeprefix(prefix), v) for k, v in state.items())
    return {k: v for k, v in bare if not any(fnmatchcase(k, pattern) for pattern in unused)}


def with_final_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``norm.*`` may be absent, as in files cut to the blocks for dense tasks: then it scales by 1 and shifts by 0."""
    like = state.get("blocks.0.norm1.weight")
    if like is not None and not {"norm.weight", "norm.bias"} & state.keys():
        return {**state, "norm.weight": torch.ones_like(like), "norm.bias": torch.zeros_like(like)}
    return state
