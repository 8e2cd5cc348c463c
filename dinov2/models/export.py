"""The exported encoder: one safetensors file that holds everything needed to use it.

The file's header (readable without the weights) carries, as JSON: the encoder's architecture, the normalisation of its
training data, and ``info``: sensors, training config, step, whatever else the writer wants to keep with it; and the
digests of the tensors and of all this. A folder in the Hugging Face layout holds the same twice, as
``model.safetensors`` and, for those who read no header, as ``config.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dinov2.files import write_atomic
from dinov2.models import build_encoder
from dinov2.models.state import State, build_loaded, digest

FORMAT = "eossl-encoder/1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
DESCRIBED = ("encoder", "normalisation", "info")


def save_export(path: str | Path, encoder: nn.Module, *, normalisation: dict[str, Any], info: dict[str, Any]) -> None:
    """Write ``encoder`` (made by build_encoder) to ``path``, atomically. ``normalisation``: Normalisation.to_dict()."""
    from safetensors import SafetensorError  # here and below: the hub entries import this package without safetensors
    from safetensors.torch import save_file

    assert encoder.config, "only encoders made by build_encoder can be exported"
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    metadata = {"format": FORMAT, "digest": sorted_digest(tensors)}
    for name, value in zip(DESCRIBED, (encoder.config, normalisation, info), strict=True):
        metadata[name] = json.dumps(value)
    metadata["described"] = header_digest(metadata)
    temporary = Path(f"{path}.tmp{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as any new file has; the library's are readable by their owner alone
        save_file(tensors, temporary, metadata)
        temporary.chmod(mode)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:  # a full disk or an unwritable folder among them
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sorted_digest(state: State) -> str:
    """The digest of tensors, whatever their order."""
    return digest(dict(sorted(state.items())))


def header_digest(metadata: dict[str, str]) -> str:
    """sha256 of what a header tells: other statistics or channels would change results as other weights do."""
    return hashlib.sha256("\n".join(metadata[name] for name in DESCRIBED).encode()).hexdigest()


def read_export_info(path: str | Path) -> dict[str, Any]:
    """``{"encoder": ..., "normalisation": ..., "info": ...}`` from the header, without reading weights."""
    metadata = read_header(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no exported encoder: format {metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata.get("described", (found := header_digest(metadata))) != found:  # older exports have none
        raise ValueError(f"{path} is damaged or was changed: its header is not what it was written with")
    return {name: json.loads(metadata[name]) for name in DESCRIBED}


def read_header(path: str | Path) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such exported encoder")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def load_export(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder in evaluation mode, and the header as :func:`read_export_info` gives it.

    A file that is no export, whose keys or shapes do not fit its own architecture, or whose tensors are not those that
    were written, raises ValueError naming it.
    """
    header = read_export_info(path)
    return load_described(path, header["encoder"], read_header(path).get("digest")), header


def from_pretrained(folder: str | Path) -> nn.Module:
    """The encoder of a local folder in the Hugging Face layout, in evaluation mode; see :func:`save_pretrained`.

    The tensors must be those that ``config.json`` was written with: any others raise ValueError.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; give a folder that eval/export.py has written")
    config = json.loads(path.read_text())
    if config.get("format") != FORMAT:
        raise ValueError(f"{path} describes no exported encoder: format {config.get('format')!r}, expected {FORMAT!r}")
    return load_described(Path(folder) / WEIGHTS, config["encoder"], config["digest"])


def save_pretrained(
    folder: str | Path, encoder: nn.Module, *, normalisation: dict[str, Any], info: dict[str, Any]
) -> None:
    """Write ``encoder`` as a folder in the Hugging Face layout: ``model.safetensors`` and ``config.json``."""
    path = Path(folder) / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    save_export(path, encoder, normalisation=normalisation, info=info)
    config = {"model_type": "eo-ssl", "format": FORMAT, "digest": read_header(path)["digest"]}
    write_atomic(path.with_name(CONFIG), json.dumps({**config, **read_export_info(path)}, indent=2) + "\n")


def load_described(path: str | Path, encoder: dict[str, Any], expected: str | None) -> nn.Module:
    """The encoder with the tensors of a file; ``expected``: their digest (None: of exports older than digests)."""
    from safetensors.torch import load_file

    read_header(path)
    tensors = load_file(path)
    if expected is not None and sorted_digest(tensors) != expected:
        raise ValueError(f"{path} is damaged or was changed: its tensors are not those it was written with")
    return build_loaded(partial(build_encoder, **encoder), tensors, str(path))
