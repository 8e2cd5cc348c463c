"""Pickles of other people's metadata, read without giving them anything to run."""

from __future__ import annotations

import datetime
import io
import pickle
from typing import Any

import numpy as np

PACKAGES = ("geobench", "geobench.io", "ccb.io")  # names of one package over time
CLASSES = {
    "dataset": ("CloudProbability", "ElevationBand", "HyperSpectralBands", "Landsat8", "Mask", "MultiBand")
    + ("SegmentationClasses", "Sentinel1", "Sentinel2", "SpectralBand"),
    "label": ("Classification", "Detection", "MultiLabelClassification", "SemanticSegmentation"),
    "task": ("TaskSpecifications",),
}


class Inert:
    """Stands for an object of any class: takes what it is given and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


STUBS = {(f"{package}.{module}", name) for package in PACKAGES for module in CLASSES for name in CLASSES[module]}
STUBS |= {("affine", "Affine"), ("rasterio.crs", "CRS"), ("rasterio._crs", "_CRS")}
ARRAYS = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}  # of numbers only
REAL: dict[tuple[str, str], Any] = {("datetime", "date"): datetime.date}
REAL |= {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
REAL |= {(f"numpy.{core}.multiarray", name): made for core in ("core", "_core") for name, made in ARRAYS.items()}


class Unpickler(pickle.Unpickler):
    """Finds the names that GEO-Bench needs: dates and arrays as they are, all else as :class:`Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name; ValueError for anything else."""
        if (module, name) in STUBS:
            return Inert
        if (module, name) in REAL:
            return REAL[module, name]
        raise ValueError(f"its metadata names {module}.{name}, which is refused: unpickling it could run code")


def loads(pickled: bytes) -> Any:
    """The plain parts of a pickle; ValueError where it names what is not known, or is damaged."""
    try:
        return Unpickler(io.BytesIO(pickled)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"its metadata cannot be read ({error})") from error
