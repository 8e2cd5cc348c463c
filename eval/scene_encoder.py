"""An encoder of images on rasters of a named sensor: embeddings in place of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dinov2.data.sample import ImageSpec
from dinov2.data.shards import ShardSet
from dinov2.data.stats import Normalisation
from dinov2.sensors import SENSORS, suggest
from eval.datasets import EvalDataset
from eval.encoders import load_model
from eval.joining import join
from eval.networks import Model
from eval.series.mosaic import embedding_names
from eval.tasks.heads import Head
from eval.trained import Trained

EMBEDS = "embedding"  # the kind of what such an encoder predicts
SIDE = 256  # pixels of a tile for encoders that were made for no size


class LastMap(Head):
    """In place of a head: the deepest feature map ``[B, D, h, w]``, as large as it is."""

    def __init__(self) -> None:
        super().__init__(None, nn.Identity())

    def forward(
        self, features: Sequence[Tensor], size: Sequence[int], days: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        """See the class."""
        return features[-1]


@dataclass(frozen=True)
class Sensors(EvalDataset):
    """Images of named sensors; nothing has been seen of them but perhaps ``statistics``."""

    statistics: Normalisation | None = None

    def normalisation(self) -> Normalisation:
        """The statistics; ValueError where there are none."""
        if self.statistics is None:
            raise ValueError(
                f"the encoder has no statistics of {self.name} in its unit: name a shard set that has with --statistics"
            )
        return self.statistics


@torch.inference_mode()
def encoder_on(obj: str, sensors: Sequence[str], statistics: Path | None, device: torch.device) -> Trained:
    """The encoder ``obj`` (a ``--model-obj`` entry) for ``sensors``: names, as NAME:B02,B03 those bands of it.

    Without bands all of the sensor that the encoder has statistics of. ``statistics``: a shard set with those of
    sensors that it has none of. ValueError for unknown sensors and bands, and where statistics are missing.
    """
    model = load_model(obj, device)
    specs = tuple(spec_of(model, text) for text in sensors)
    beside = Normalisation.from_stats(ShardSet.open(statistics).stats) if statistics else None
    joined = join(model, Sensors(", ".join(sensors), (), {}, specs, None, None, "", statistics=beside))
    joined = replace(joined, size=None, sizing="positions interpolated")
    side = model.native or SIDE
    ids = [c.band.channel_id for c in joined.channels if c]
    example = {"imgs": torch.zeros(1, len(ids), side, side), "chn_ids": torch.tensor([ids])}
    example = {name: x.to(device) for name, x in example.items()}
    model = model.fitted(example)
    names = tuple(embedding_names(model.maps(example)[-1].shape[1]))
    shape = [len(ids), side, side]
    return Trained(model, LastMap(), joined, EMBEDS, names, "", 1, True, (obj, 0), False, (shape, ids), side)


def spec_of(model: Model, text: str) -> ImageSpec:
    """What the numbers of a sensor's files are, and which bands the encoder takes."""
    name, _, listed = text.partition(":")
    if name not in SENSORS:
        raise ValueError(f"--sensor {name!r} is unknown{suggest(name, list(SENSORS))} Known: {', '.join(SENSORS)}")
    sensor = SENSORS[name]
    known = model.normalisation.table.get(name) if model.normalisation else None
    bands = listed.split(",") if listed else [b for b in sensor.band_names if known is None or b in known]
    chosen = sensor.select(bands).bands
    gsd = min(band.gsd_m for band in chosen)
    names = tuple(band.name for band in chosen)
    return ImageSpec(name, gsd, names, "float32", sensor.unit, sensor.scale, sensor.offset, sensor.nodata)
