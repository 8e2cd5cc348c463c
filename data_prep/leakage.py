"""``leakage``: samples of a pretraining set that show the ground of an evaluation set.

Boxes in degrees are compared; chips that are side by side share slivers of them, so less than ``--min-share`` of the
smaller box does not count.

Example: python data_prep/main.py leakage data/pretraining data/evaluation
"""

from __future__ import annotations

import argparse

import numpy as np
import shapely

from data_prep import footprints

SHOWN = 10  # pairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("a", help="folder or URL of a shard set, of pretraining for example")
    parser.add_argument("b", help="another one, of evaluation for example")
    parser.add_argument("--min-share", type=float, default=0.1, help="of the smaller box that counts (%(default)s)")


def pieces(folder: str) -> tuple[list[str], np.ndarray, np.ndarray, int]:
    """Keys, rectangles and the key's number of each, and how many samples have no position."""
    table = footprints.read(folder)
    boxes = list(footprints.boxes(table))
    parts = [(i, piece) for i, box in enumerate(boxes) if box for piece in footprints.pieces(box)]
    corners = np.array([piece for _, piece in parts], float).reshape(-1, 4)
    owners = np.array([i for i, _ in parts], int)
    return table["key"].to_pylist(), shapely.box(*corners.T), owners, boxes.count(None)


def overlaps(a: np.ndarray, b: np.ndarray, min_share: float) -> np.ndarray:
    """Pairs ``[2, n]`` of rectangles that share at least ``min_share`` of the smaller one's area."""
    found = shapely.STRtree(b).query(a, predicate="intersects")  # [2, n]
    shared = shapely.area(shapely.intersection(a[found[0]], b[found[1]]))
    smaller = np.minimum(shapely.area(a[found[0]]), shapely.area(b[found[1]]))
    return found[:, (shared > 0) & (shared >= min_share * smaller)]


def leakage(args: argparse.Namespace) -> tuple[int, list[str]]:
    """How many samples of A show ground of B, and sentences about it."""
    (keys_a, boxes_a, owner_a, none_a), (keys_b, boxes_b, owner_b, none_b) = pieces(args.a), pieces(args.b)
    for folder, boxes in ((args.a, boxes_a), (args.b, boxes_b)):
        if not len(boxes):
            raise ValueError(f"{folder}: no sample has a position, so nothing can be compared")
    pairs = overlaps(boxes_a, boxes_b, args.min_share)
    both = sorted({(int(owner_a[i]), int(owner_b[j])) for i, j in pairs.T})
    of_a, of_b = {i for i, _ in both}, {j for _, j in both}
    said = [
        f"{len(of_a)} of {len(keys_a)} samples of {args.a} show ground of {args.b}",
        f"{len(of_b)} of {len(keys_b)} samples of {args.b} are shown by {args.a}",
    ]
    unknown = ((args.a, none_a), (args.b, none_b))
    said += [
        f"{count} samples of {folder} have no position and cannot be compared" for folder, count in unknown if count
    ]
    return len(of_a), said + [f"{keys_a[i]} shows {keys_b[j]}" for i, j in both[:SHOWN]]
