"""The exported encoder: one safetensors file that holds everything needed to use it.

The file's header (readable without the weights) carries, as JSON: the encoder's architecture, the normalisation of its
training data, and ``info``: sensors, training config, step, whatever else the writer wants to keep with it.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dinov2.models import build_encoder
from dinov2.models.state import build_loaded

FORMAT = "eossl-encoder/1"


def save_export(path: str | Path, encoder: nn.Module, *, normalisation: dict[str, Any], info: dict[str, Any]) -> None:
    """Write ``encoder`` (made by build_encoder) to ``path``, atomically. ``normalisation``: Normalisation.to_dict()."""
    from safetensors import SafetensorError  # here and below: the hub entries import this package without safetensors
    from safetensors.torch import save_file

    assert encoder.config, "only encoders made by build_encoder can be exported"
    metadata = {"format": FORMAT}
    for name, value in {"encoder": encoder.config, "normalisation": normalisation, "info": info}.items():
        metadata[name] = json.dumps(value)
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    temporary = Path(f"{path}.tmp{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    except SafetensorError as error:  # a full disk or an unwritable folder among them
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_export_info(path: str | Path) -> dict[str, Any]:
    """``{"encoder": ..., "normalisation": ..., "info": ...}`` from the header, without reading weights."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such exported encoder")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no exported encoder: format {metadata.get('format')!r}, expected {FORMAT!r}")
    return {name: json.loads(metadata[name]) for name in ("encoder", "normalisation", "info")}


def load_export(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder in evaluation mode, and the header as :func:`read_export_info` gives it.

    A file that is no export, or whose keys or shapes do not fit its own architecture, raises ValueError naming it.
    """
    from safetensors.torch import load_file

    header = read_export_info(path)
    return build_loaded(partial(build_encoder, **header["encoder"]), load_file(path), str(path)), header
