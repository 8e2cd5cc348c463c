"""``eval/predict.py areas``: how much of each class there is in maps, and how right they are where polygons say so."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.io import DatasetReader
from torch import Tensor

from eval.datasets.base import IGNORE
from eval.datasets.stores import Header, Tile
from eval.datasets.targets import class_numbers
from eval.datasets.vectors import draw, near
from eval.dense_metrics import segmentation_scores
from eval.geotiff import BLOCK, classes_in, named
from eval.metrics import confusion_matrix
from eval.series.mosaic import Grid, windows

EARTH = 6_371_007.18  # metres: radius of the sphere with the area of the WGS 84 ellipsoid
HECTARE = 1e4  # square metres
SCORES = ("precision", "recall", "f1", "iou")  # user's and producer's accuracy are the first two


def areas(argv: list[str]) -> int:
    """A table with a line per class: pixels and hectares in all maps; with reference polygons also the pixels of which
    they say the class, and precision, recall, F1 and IoU; the last line is of all classes together.
    """
    p = argparse.ArgumentParser(prog="eval/predict.py areas", description=areas.__doc__)
    add = p.add_argument
    add("--input", nargs="+", required=True, help="maps of classes; where they overlap, make a mosaic first")
    add("--output", type=Path, required=True, help="CSV")
    add("--reference", type=Path, help="polygons (GeoPackage, GeoJSON, shapefile)")
    add("--column", help="of the polygons: names or numbers of classes")
    args = p.parse_args(argv)
    if (args.reference is None) != (args.column is None):
        raise ValueError("--reference and --column go together: polygons, and the column that says their class")
    names: list[str] = []
    counts = confusion = torch.empty(0)
    for path in named(args.input):
        with rasterio.open(path) as raster:
            found, _ = classes_in(raster.tags())
            if not found or found != (names or found):
                raise ValueError(f"{path} is no map of the classes {', '.join(names) or 'that eval/predict.py makes'}")
            if not names:
                names, counts, confusion = found, torch.zeros(len(found), 2), torch.zeros(len(found), len(found))
            for seen, hits in measured(raster, names, args.reference, args.column):
                counts, confusion = counts + seen, confusion + hits
    if args.reference and not confusion.any():
        raise ValueError(f"no polygon of {args.reference} holds the centre of a pixel that has a class in the maps")
    write_table(args.output, names, counts, confusion if args.reference else None)
    print(args.output.read_text(), end="")
    return 0


def measured(
    raster: DatasetReader, names: list[str], reference: Path | None, column: str | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every window pixels and hectares ``[K, 2]`` and the confusion ``[K, K]`` (row: the polygons' class)."""
    crs = raster.crs.to_string() if raster.crs else None
    head = Header(1, 1, 1, raster.height, raster.width, raster.dtypes[0], raster.transform, crs)
    hectares = hectares_of_rows(raster)
    for window in windows(Grid(crs or "", raster.transform, raster.height, raster.width)):
        classes = raster.read(1, window=window)
        rows = np.broadcast_to(hectares[window.row_off :][: window.height, None], classes.shape)
        seen = raster.read_masks(1, window=window) > 0
        both = [np.bincount(classes[seen], w, minlength=len(names)) for w in (None, rows[seen])]
        hits = torch.zeros(len(names), len(names))
        if reference and column:
            shapes, labels, place, shape = near(reference, column, head, Tile(window.row_off, window.col_off, BLOCK))
            truth = draw(shapes, class_numbers(labels, names, str(reference)), place, shape, IGNORE)
            truth = truth[: window.height, : window.width]
            known = torch.from_numpy(seen & (truth != IGNORE))
            predicted, true = torch.from_numpy(classes.astype(np.int64)), torch.from_numpy(truth)
            hits = confusion_matrix(predicted[known], true[known], len(names)).double()
        yield torch.from_numpy(np.stack(both, 1)), hits


def hectares_of_rows(raster: DatasetReader) -> np.ndarray:
    """``[H]``: the area of a pixel of each row; in degrees that of the sphere between two parallels."""
    if raster.crs is None:
        raise ValueError(f"{raster.name} has no reference system: its pixels have no known area")
    t = raster.transform
    if raster.crs.is_geographic:
        edges = np.radians(t.f + t.e * np.arange(raster.height + 1))
        return EARTH**2 * np.radians(abs(t.a)) * np.abs(np.diff(np.sin(edges))) / HECTARE
    metres = raster.crs.linear_units_factor[1]
    return np.full(raster.height, abs(t.determinant) * metres**2 / HECTARE)


def write_table(path: Path, names: list[str], counts: Tensor, confusion: Tensor | None) -> None:
    """The CSV."""
    lines: list[dict[str, Any]] = [
        {"class": name, "pixels": int(n), "hectares": f"{area:.4f}"}
        for name, (n, area) in zip([*names, "all"], [*counts.tolist(), counts.sum(0).tolist()], strict=True)
    ]
    if confusion is not None:
        scores = segmentation_scores(confusion)
        for k, line in enumerate(lines[:-1]):
            line |= {"reference_pixels": int(scores["support"][k])} | {s: f"{scores[s][k]:.4f}" for s in SCORES}
        means = {s: f"{scores[s].nanmean():.4f}" for s in SCORES}
        lines[-1] |= {"reference_pixels": int(confusion.sum())} | means
        lines[-1]["overall_accuracy"] = f"{scores['overall_accuracy']:.4f}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[-1]), restval="")
        writer.writeheader()
        writer.writerows(lines)
