"""The sample contract: what a source yields, a shard stores and a view is cut from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dinov2.sensors import SENSORS, UNITS, Band

KEY = re.compile(r"[a-z0-9][a-z0-9_\-]*")
IMAGE_KEY = re.compile(r"([a-z0-9_]+)-([0-9]+)(m|cm)")
SAR_FLOOR = 1e-5  # linear power below this (-50 dB) is thermal noise; RTC products contain small negatives


@dataclass(frozen=True)
class ImageSpec:
    """What the pixels of one image key are. ``physical = stored * scale + offset`` in ``unit``.

    ``bands`` in the order of the array's channel axis; ``nodata`` is the stored value meaning "no observation"
    (``None``: every pixel is one; ``nan`` allowed). Non-finite pixels that are not nodata are an error.
    """

    sensor: str
    gsd_m: float
    bands: tuple[str, ...]
    dtype: str
    unit: str
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"image {self.key}: unit {self.unit!r} is not one of {', '.join(UNITS)}")
        SENSORS[self.sensor].channel_ids(self.bands)  # an unknown sensor or band raises here, by name

    @property
    def key(self) -> str:
        """The image key, for example ``sentinel2_l2a-10m``, or ``naip-60cm`` where the pixels are not whole metres."""
        whole = self.gsd_m == int(self.gsd_m)
        return f"{self.sensor}-{self.gsd_m:.0f}m" if whole else f"{self.sensor}-{100 * self.gsd_m:.0f}cm"

    @property
    def band_objects(self) -> tuple[Band, ...]:
        """The bands with their wavelengths."""
        return SENSORS[self.sensor].select(self.bands).bands

    @property
    def model_unit(self) -> str:
        """The unit that statistics and models see: linear SAR power becomes dB, all else stays physical."""
        return "db" if self.unit == "linear_power" else self.unit

    def invalid(self, stored: np.ndarray) -> np.ndarray:
        """Boolean array, True where ``stored`` holds nodata."""
        if self.nodata is None:
            return np.zeros(stored.shape, bool)
        return np.isnan(stored) if np.isnan(self.nodata) else stored == self.nodata

    def to_model(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers to float32 in ``model_unit`` (nodata is converted like any other number)."""
        physical = stored.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        if self.unit == "linear_power":
            return (10.0 * np.log10(np.maximum(physical, SAR_FLOOR))).astype(np.float32)
        return physical

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ImageSpec:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**raw, "bands": tuple(raw["bands"])})


@dataclass(frozen=True)
class Sample:
    """Everything observed over one footprint.

    ``key``        unique, lower case letters, digits, ``_`` and ``-`` (a dot would cut a WebDataset key).
    ``images``     image key -> ``[C, H, W]`` or ``[T, C, H, W]`` in the stored dtype, at the resolution stored.
    ``specs``      image key -> ImageSpec, same keys as ``images``.
    ``times``      image key -> ISO dates, one per time step (may be empty).
    ``footprint``  (min x, min y, max x, max y) in ``crs``; None for images without a position.
    ``labels``     name -> number, list of numbers, or an integer/float array ``[H, W]``; never a pixel of the input.
    ``meta``       whatever else the source knows (JSON values).
    """

    key: str
    images: Mapping[str, np.ndarray]
    specs: Mapping[str, ImageSpec]
    times: Mapping[str, list[str]] = field(default_factory=dict)
    footprint: tuple[float, float, float, float] | None = None
    crs: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.key):
            raise ValueError(f"sample key {self.key!r} must be lower case letters, digits, '_' or '-' without a dot")
        if not self.images:
            raise ValueError(f"sample {self.key!r} has no image")
        if self.images.keys() != self.specs.keys():
            raise ValueError(f"sample {self.key!r}: images {sorted(self.images)} but specs {sorted(self.specs)}")
        for name, image in self.images.items():
            spec = self.specs[name]
            if name != spec.key:
                raise ValueError(f"sample {self.key!r}: image {name!r} is described as {spec.key!r}")
            if image.ndim not in (3, 4) or image.shape[-3] != len(spec.bands):
                raise ValueError(
                    f"sample {self.key!r}, image {name!r}: shape {image.shape} does not hold the {len(spec.bands)} "
                    f"bands {', '.join(spec.bands)}"
                )
            if image.dtype != np.dtype(spec.dtype):
                raise ValueError(f"sample {self.key!r}, image {name!r}: dtype {image.dtype}, declared {spec.dtype}")

    def check_finite(self) -> None:
        """Raise, naming key, image and band, where a pixel is neither finite nor nodata."""
        for name, image in self.images.items():
            if image.dtype.kind != "f":
                continue
            bad = ~np.isfinite(image) & ~self.specs[name].invalid(image)
            if bad.any():
                channel = int(np.argwhere(bad)[0][-3])
                raise ValueError(
                    f"sample {self.key!r}, image {name!r}, band {self.specs[name].bands[channel]}: {int(bad.sum())} "
                    "non-finite pixels that are not nodata; set the image's nodata value or repair the source"
                )
