"""What the project knows about one released model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.state import read_weights


@dataclass(frozen=True)
class Release:
    """A released encoder: how to build it, how its file is laid out and where it is published.

    ``build(**sizes)`` makes the encoder at its released sizes, ``sizes`` overriding them. ``convert(content)`` turns
    the file's content into (encoder state, other released tensors that an objective may load); keys it does not know
    raise ValueError. ``sha256`` None: the publisher names no checksum.
    """

    build: Callable[..., nn.Module]
    convert: Callable[[Any], tuple[dict[str, Tensor], dict[str, Tensor]]]
    url: str
    sha256: str | None = None

    def fetch(self) -> Path:
        """The released file in torch.hub's cache, downloaded on first use. Offline: ValueError."""
        path = Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[-1]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.sha256)
            except (OSError, RuntimeError) as error:  # no network, no such file; a checksum that differs
                raise ValueError(
                    f"could not download the released weights from {self.url} ({error}); fetch the file on a machine "
                    "with network access and pass weights=PATH, or weights='random' for an untrained model"
                ) from error
        return path

    def read(self, weights: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(encoder state, other tensors) of a path, of a state dict, or for None of the published file."""
        if isinstance(weights, dict):
            return self.convert(weights)
        return self.convert(read_weights(self.fetch() if weights is None else weights))
