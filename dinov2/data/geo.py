"""What geo-aware pretraining predicts of a sample: its position, and fractions of the maps that came with it.

Targets are those of PhilEO-MajorTOM, with its cloud classes read as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rasterio.warp import transform

from dinov2.data.sample import Sample

CLOUD_CLASSES = (0, 1, 2, 3)  # of Major-TOM: clear, thick, thin, shadow
PERCENT = 100.0


@dataclass(frozen=True)
class GeoTargets:
    """Sample -> targets, each a float32 vector ``[K]``, and under ``NAME_weight`` how much it counts, 0 to 1.

    ``clouds``, ``buildings`` and ``landcover`` are the names of labels (maps ``[H, W]`` that data preparation sampled)
    or None: a map of cloud classes, of building density in percent, of the classes ``codes``. ``coords``: the position.
    """

    clouds: str | None
    buildings: str | None
    landcover: str | None
    codes: Sequence[int]
    coords: bool

    @property
    def widths(self) -> dict[str, int]:
        """Target -> K."""
        every = {"coords": 4, "clouds": len(CLOUD_CLASSES), "buildings": 1, "landcover": len(self.codes)}
        return {name: width for name, width in every.items() if getattr(self, name)}

    @property
    def labels(self) -> dict[str, str]:
        """Target -> the label that it is made of."""
        return {name: getattr(self, name) for name in self.widths if name != "coords"}

    def __call__(self, sample: Sample) -> dict[str, np.ndarray]:
        """See the class. A map that the sample lacks weighs 0; one that is none, or no position: ValueError."""
        found = {"coords": (position(sample), 1.0)} if self.coords else {}
        for name, label in self.labels.items():
            found[name] = self._of_map(name, sample.labels.get(label), f"sample {sample.key!r}, label {label!r}")
        parts = {name: value for name, (value, _) in found.items()}
        parts |= {f"{name}_weight": np.array([weight]) for name, (_, weight) in found.items()}
        return {name: part.astype(np.float32) for name, part in parts.items()}

    def _of_map(self, name: str, pixels: object, where: str) -> tuple[np.ndarray, float]:
        """The target of a map, and the share of its pixels that say something."""
        if pixels is None:
            return np.zeros(self.widths[name]), 0.0
        image = np.asarray(pixels)
        if image.ndim != 2:
            raise ValueError(f"{where}: geo_aware takes a map [H, W] of {name}, not an array of {image.ndim} axes")
        if name == "buildings":
            valid = (image >= 0) & (image <= PERCENT)
            return np.array([image[valid].mean() / PERCENT if valid.any() else 0.0]), float(valid.mean())
        return fractions(image, CLOUD_CLASSES if name == "clouds" else self.codes)


def fractions(image: np.ndarray, codes: Sequence[int]) -> tuple[np.ndarray, float]:
    """The share ``[K]`` of each class among the pixels that have one of ``codes``, and the share of such pixels."""
    counts = np.array([(image == code).sum() for code in codes])
    return counts / max(counts.sum(), 1), counts.sum() / image.size


def position(sample: Sample) -> np.ndarray:
    """The centre of a sample as sine and cosine of latitude and of longitude, mapped to 0..1, ``[4]``.

    Latitude makes a full turn from pole to pole, as published.
    """
    if sample.footprint is None or sample.crs is None:
        raise ValueError(f"sample {sample.key!r} has no position to predict: set objective.coords=false")
    west, south, east, north = sample.footprint
    longitude, latitude = transform(sample.crs, "EPSG:4326", [(west + east) / 2], [(south + north) / 2])
    turns = (latitude[0] + 90) / 180, (longitude[0] + 180) / 360
    angles = [2 * math.pi * turn for turn in turns]
    return np.array([(f(angle) + 1) / 2 for angle in angles for f in (math.sin, math.cos)])


def check_labels(targets: GeoTargets, known: Mapping[str, object]) -> None:
    """ValueError where the shards hold no map that a target is made of; ``known``: their labels."""
    for name, label in targets.labels.items():
        if label not in known:
            raise ValueError(
                f"objective.{name}: the shards hold no label {label!r}, only {', '.join(known) or 'none'}; prepare "
                f"them with --label-raster {label}=MAP, or set objective.{name}=null"
            )
