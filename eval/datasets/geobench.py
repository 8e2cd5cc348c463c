"""GEO-Bench v1 (Lacoste et al. 2023): one HDF5 file per sample, bands as arrays of their own, partitions in JSON.

Bands are found by name, never by position: alphabetical order is not band order. Names end in a date where bands are
dated. What the metadata pickle of a file says is not needed, but for the class of a sample where no label_map.json
tells it; it is read by :mod:`eval.datasets.inert`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from data_prep.common import slug
from dinov2.data.sample import ImageSpec, Sample
from dinov2.env import expand
from eval.datasets import inert, stores
from eval.datasets.base import EvalDataset, Split, chosen_specs
from eval.datasets.layers import Pixels
from eval.datasets.listing import Columns, kept, state
from eval.datasets.targets import MapReader, Target

SPLITS = {"train": "train", "val": "valid", "test": "test"}  # our name -> theirs
LABEL = "label"  # name of the mask among the arrays, and of the class in the metadata
DATED = r"{}_(\d{{4}}-\d\d-\d\d)"


def geobench(
    *,
    root: str,
    layers: dict[str, Pixels],  # ``names`` are those of the arrays
    classes: list[str],
    kind: str = "classification",  # or multilabel, segmentation
    target: Target | None = None,  # segmentation: which numbers are classes (None: 0, 1, 2, ...)
    partition: str = "default",  # or 0.01x_train, 0.02x_train, ... 1.00x_train: a smaller training split
    images: list[str] | None = None,
    bands: list[str] | None = None,
    size: int | None = None,
    title: str | None = None,
    split_hash: str | None = None,
) -> EvalDataset:
    """One of the twelve tasks in the folder ``root``; ``images``, ``bands``, ``size`` as in EvalDataset."""
    folder = Path(expand(root)).resolve()
    recipe = {"reader": "geobench", "root": folder, "partition": partition, "kind": kind}
    rows = kept(recipe, lambda: index(folder, partition, kind)).to_pydict()
    first = folder / f"{rows['id'][0]}.hdf5"
    stored = {spec.key: (pixels, spec) for pixels in layers.values() for spec in [pixels.spec(dtype(first, pixels))]}
    shown = chosen_specs({key: spec for key, (_, spec) in stored.items()}, images, bands)
    maps = MapReader(folder, target or Target(), tuple(classes)) if kind == "segmentation" else None
    splits = {}
    for name in SPLITS:
        here = [i for i, split in enumerate(rows["assigned"]) if split == name]
        source = Source(folder, {s.key: stored[s.key] for s in shown}, [rows["id"][i] for i in here], maps)
        labels = None if maps else torch.tensor([rows["label"][i] for i in here])
        labels = labels.bool() if labels is not None and kind == "multilabel" else labels
        splits[name] = Split([slug(i) for i in source.ids], labels, source.sample, source.map if maps else None)
    held = [(name, state(folder / f"{name}.hdf5")) for name in sorted(rows["id"])]  # they may be changed in place
    return EvalDataset(
        name=title or folder.name,
        classes=tuple(classes),
        splits=splits,
        specs=shown,
        bands=tuple(bands) if bands else None,
        size=size,
        data_hash=hashlib.sha256(repr((stored, target, held)).encode()).hexdigest()[:12],
        kind=kind,
    ).require(split_hash)


def index(folder: Path, partition: str, kind: str) -> tuple[Columns, list[Path]]:
    """A row per sample of the partition, and the files that tell."""
    path = folder / f"{partition}_partition.json"
    if not path.is_file():
        known = ", ".join(sorted(p.name.removesuffix("_partition.json") for p in folder.glob("*_partition.json")))
        raise ValueError(f"{path} is missing; {folder} has the partitions {known or 'of no data set'}")
    listed = json.loads(path.read_text())
    pairs = [(name, ours) for ours, theirs in SPLITS.items() for name in listed[theirs]]
    there = {p.stem for p in folder.glob("[!.]*.hdf5")}
    lacking = next((name for name, _ in pairs if name not in there), None)
    if lacking is not None:
        raise ValueError(f"the file {folder / lacking}.hdf5 is missing, which {path.name} lists; get the data again")
    columns: Columns = {"id": [name for name, _ in pairs], "assigned": [split for _, split in pairs]}
    tells = folder / ("label_stats.json" if kind == "multilabel" else "label_map.json")
    if kind != "segmentation":
        columns["label"] = labels_of(folder, columns["id"], tells)
    return columns, [folder, path, tells]


def labels_of(folder: Path, ids: Sequence[str], tells: Path) -> list[Any]:
    """The class of every sample, or its labels as zeros and ones.

    They are in ``label_map.json`` (number of the class -> samples, in any order) or ``label_stats.json`` (sample ->
    zeros and ones) where there is one, else in every file's metadata.
    """
    if not tells.is_file():
        return [np.asarray(metadata(folder / f"{name}.hdf5")[LABEL]).tolist() for name in ids]
    told = json.loads(tells.read_text())
    if tells.name == "label_map.json":
        told = {name: int(number) for number, names in told.items() for name in names}
    lacking = next((name for name in ids if name not in told), None)
    if lacking is not None:
        raise ValueError(f"{tells} does not tell the label of {lacking}; get the data again")
    return [told[name] for name in ids]


def metadata(path: Path) -> dict[str, Any]:
    """What the file's pickle says; ValueError where it names what could run code."""
    with opened(path) as file:
        text = file.attrs["pickle"]
    try:
        return inert.loads(ast.literal_eval(text))
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{path}: {error}; get the file again") from error


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A sample's file; ValueError where it is missing, damaged, or lacks what is asked of it."""
    stores.require(path)
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged or of another data set ({error}); get the file again") from error


def dtype(path: Path, pixels: Pixels) -> str:
    """That in which all bands of an image are stored; no pixel is read."""
    with opened(path) as file:
        return str(np.result_type(*(file[named(file, name)[0][0]].dtype for name in pixels.names or ())))


def named(file: h5py.File, name: str) -> list[tuple[str, str]]:
    """(array, date) of a band, in order of time; the date is "" where bands are not dated."""
    if name in file:
        return [(name, "")]
    found = [(key, re.fullmatch(DATED.format(re.escape(name)), key)) for key in sorted(file)]
    if not any(match for _, match in found):
        raise KeyError(f"there is no band {name!r} among {', '.join(file)}")
    return [(key, match[1]) for key, match in found if match]


@dataclass(frozen=True)
class Source:
    """The samples of one split; loader processes can pickle it. ``layers``: image key -> how it is stored."""

    folder: Path
    layers: Mapping[str, tuple[Pixels, ImageSpec]]
    ids: Sequence[str]
    maps: MapReader | None

    def sample(self, i: int) -> Sample:
        """Sample ``i``: bands of one date ``[C, H, W]``, of several ``[T, C, H, W]``."""
        path, images, times = self.folder / f"{self.ids[i]}.hdf5", {}, {}
        with opened(path) as file:
            for key, (pixels, spec) in self.layers.items():
                arrays = [named(file, name) for name in pixels.names or ()]
                shapes = {file[name].shape for band in arrays for name, _ in band}
                if len(shapes) > 1 or len(set(map(len, arrays))) > 1:
                    raise ValueError(f"{path}: the bands of {key} differ in size or in number of dates: {shapes}")
                steps = [np.stack([file[name][()] for name, _ in step]) for step in zip(*arrays, strict=True)]
                images[key] = pixels.fitted(np.stack(steps) if len(steps) > 1 else steps[0], spec, path)
                times[key] = [date for _, date in arrays[0] if date]
        specs = {key: spec for key, (_, spec) in self.layers.items()}
        return Sample(slug(self.ids[i]), images, specs, times, meta={"id": self.ids[i]})

    def map(self, i: int) -> np.ndarray:
        """int64 ``[H, W]`` classes of sample ``i``."""
        assert self.maps is not None
        path = self.folder / f"{self.ids[i]}.hdf5"
        with opened(path) as file:
            stored = file[named(file, LABEL)[0][0]][()]
            pixels, spec = next(iter(self.layers.values()))
            shape = file[named(file, (pixels.names or [""])[0])[0][0]].shape
        if stored.shape != shape:
            raise ValueError(f"{path}: the label has {stored.shape} pixels, {spec.key} has {shape}")
        return self.maps.numbers(stored, path)
