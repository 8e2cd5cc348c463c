"""Encoders as graphs that run without this project: ``torch.export`` programs and ONNX files.

Batch and number of channels are free, height and width are those of the export: learned positions are resized once. A
plain patch convolution has a fixed number of channels. Padding (``spec_masks``) is not in a graph: a batch has the same
number of channels in every image.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dinov2.models.patch import ConvPatchEmbed
from dinov2.models.vit import VisionTransformer

OUTPUTS = ("cls", "patches")
TOLERANCE = 1e-5  # of the largest output
NOTE = "eossl.json"  # in a program's archive; "eossl" in an ONNX file


class Graph(nn.Module):
    """Images ``[B, C, H, W]`` and channel ids ``[B, C]`` to normalised ``cls [B, D]`` and ``patches [B, L, D]``."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, imgs: Tensor, chn_ids: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        found = self.encoder.forward_features({"imgs": imgs, "chn_ids": chn_ids})
        return tuple(found[name] for name in OUTPUTS)


def example(channels: Sequence[int], size: int, batch: int) -> tuple[Tensor, Tensor]:
    """Random standardised images with these channels, and their ids."""
    return torch.randn(batch, len(channels), size, size), torch.tensor([list(channels)] * batch)


@torch.no_grad()
def trace(encoder: VisionTransformer, channels: Sequence[int], size: int) -> ExportedProgram:
    """The encoder's graph for images of ``size`` pixels.

    ``channels`` are ids that the encoder takes; the graph takes any others that it takes, and any number of them.
    """
    embed, batch = encoder.patch_embed, Dim("batch")
    if isinstance(embed, ConvPatchEmbed):
        shapes: dict[int, Any] = {0: batch}
    else:
        shapes = {0: batch, 1: Dim("channels")}
        embed.keeps_fold = False  # type: ignore[assignment]  # tensors that are traced have no address to compare
    # two of everything at least: sizes of one are traced as constants
    channels = [*channels, *channels] if len(channels) == 1 and 1 in shapes else channels
    return torch.export.export(Graph(encoder), example(channels, size, 2), dynamic_shapes=(shapes, shapes))


def write_program(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    """``torch.export.load(path).module()(imgs, chn_ids)``; ``about`` is the file ``eossl.json`` inside."""
    torch.export.save(program, path, extra_files={NOTE: json.dumps(about)})


def write_onnx(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    """An ONNX file with the inputs ``imgs`` and ``chn_ids`` (int64); ``about`` is in its metadata as JSON."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install 'eo-ssl[onnx]'")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing, which nothing needs
    made = torch.onnx.export(
        program, (), input_names=["imgs", "chn_ids"], output_names=OUTPUTS, dynamo=True, verbose=False
    )
    assert made is not None
    made.model.metadata_props[Path(NOTE).stem] = json.dumps(about)
    made.save(path, external_data=False)


def run_program(path: Path, imgs: Tensor, chn_ids: Tensor) -> list[Tensor]:
    """What a written program makes of a view."""
    return list(torch.export.load(path).module()(imgs, chn_ids))


def run_onnx(path: Path, imgs: Tensor, chn_ids: Tensor) -> list[Tensor]:
    """What onnxruntime makes of a view."""
    import onnxruntime  # an extra, imported where it was asked for

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {"imgs": imgs.numpy(), "chn_ids": chn_ids.numpy()}
    return [torch.from_numpy(x) for x in session.run(OUTPUTS, {i.name: given[i.name] for i in session.get_inputs()})]


GRAPHS = {"torch_export": ("model.pt2", write_program, run_program), "onnx": ("model.onnx", write_onnx, run_onnx)}


@torch.no_grad()
def difference(found: Sequence[Tensor], encoder: VisionTransformer, view: tuple[Tensor, Tensor]) -> float:
    """The largest difference from the encoder's own outputs, as a share of the largest of them."""
    wanted = Graph(encoder)(*view)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))
