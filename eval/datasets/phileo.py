"""PhilEO Bench's downstream set (Fibaek et al. 2024, arXiv 2401.04464): npy stacks of patches, maps beside them.

One flat folder: ``<region>_<number>_<train|val|test>_s2.npy`` (N, H, W, C) and ``..._label_<roads|building|lc>.npy``
(N, H, W, 1), N differing from file to file. An image file without the label file is left out and counted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dinov2.env import expand
from eval.datasets import stores
from eval.datasets.base import EvalDataset
from eval.datasets.files import files
from eval.datasets.layers import Layer, Pixels
from eval.datasets.listing import Pattern, scan
from eval.datasets.targets import Target

STACK = "{id:[^_]+_[^_]+_(?:train|val|test)}"  # what the names of an image file and of its labels begin with
GROUPS = {  # the buckets of its protocols -> regions, as file names spell them
    "europe": ["europe", "denmark-1", "denmark-2"],
    "east-africa": ["east-africa", *(f"tanzania-{i}" for i in range(1, 6)), "uganda-1"],
    "northwest-africa": ["eq-guinea", "ghana-1", "egypt-1", "isreal-1", "isreal-2", "nigeria", "senegal"],
    "north-america": ["north-america"],
    "south-america": ["south-america"],
    "japan": ["japan"],
}


def phileo(
    *,
    root: str,
    layers: dict[str, Pixels],  # the one image
    label: str,  # what the label files are called: roads | building | lc
    kind: str,
    classes: list[str],
    codes: list[Any] | None = None,  # stored numbers of the classes
    ignore: list[Any] | None = None,  # stored numbers that are no label
    scale: float = 1.0,  # regression: the value is stored * scale
    unit: str = "",
    threshold: float | None = None,  # regression: precision, recall and F1 are of values above it
    bands: list[str] | None = None,
    size: int | None = None,
    title: str | None = None,
    split_hash: str | None = None,
) -> EvalDataset:
    """The patches of train, val and test, in groups of regions; ``bands`` and ``size`` as in EvalDataset.

    Stacks have the bands of the layer, or in front of them the scene classification, which is not read.
    """
    folder = Path(expand(root)).resolve()
    images = scan(folder, Pattern(f"{STACK}_s2.npy"))[0]["id"]
    labelled = scan(folder, Pattern(f"{STACK}_label_{label}.npy"))[0]["id"]
    alone = sorted(set(images) - set(labelled))
    heads = {name: stores.header(folder / f"{name}_s2.npy", "NHWC") for name in (images[0], *alone)}
    (name, pixels), count = *layers.items(), heads[images[0]].count
    several = len(pixels.stored)
    channels = list(range(2, several + 2)) if count == several + 1 else None  # None: any other number is an error
    layer = Layer(**vars(pixels), path=f"{STACK}_s2.npy", axes="NHWC", channels=channels)
    target = Target(path=f"{{id}}_label_{label}.npy", axes="NHWC", codes=codes, ignore=ignore or [], scale=scale)
    dataset = files(
        root=str(folder),
        layers={name: layer},
        kind=kind,
        classes=classes,
        target=target,
        unit=unit,
        where={"id": labelled} if alone else None,
        parse={"id": "{region}_{number}_{part}"},
        split_by="part",
        train=["train"],
        val=["val"],
        test=["test"],
        bands=bands,
        size=size,
        title=title,
        split_hash=split_hash,
    )
    groups = {name: [f"{region}_" for region in regions] for name, regions in GROUPS.items()}
    ignored = sum(heads[stack].samples for stack in alone)
    return replace(dataset, groups=groups, threshold=threshold, ignored=ignored)
