"""``eval/embed.py points`` and ``series``: tables of embeddings, one row per place, for the tasks of eval/pixels.py."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pyogrio
import rasterio.warp
import shapely
import torch
from pyogrio.errors import DataSourceError

from dinov2.data.sample import Sample
from dinov2.data.series import Observed, observe
from dinov2.data.shards import ShardSet
from dinov2.files import atomic
from eval.series.encode import embed
from eval.series.models import SeriesModel, load_model
from eval.series.mosaic import EmbeddingMap

FEATURE = "e"  # columns e000, e001, ... hold features; all others are kept as they are
RAW = "raw:"


def write_table(path: Path, features: np.ndarray, others: Mapping[str, Any]) -> None:
    """A parquet file of ``features [N, D]`` beside other columns."""
    columns = {f"{FEATURE}{i:03d}": pa.array(x) for i, x in enumerate(np.ascontiguousarray(features.T))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        pq.write_table(pa.table({**others, **columns}), file)


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray, str, pa.Table]:
    """x ``[N]``, y ``[N]``, their reference system, and all other columns of points in a file (a csv has lon, lat)."""
    if path.suffix.lower() == ".csv":
        table = pa.csv.read_csv(path)
        if not {"lon", "lat"} <= set(table.column_names):
            raise ValueError(
                f"{path} has the columns {', '.join(table.column_names)}; points need lon and lat (EPSG:4326)"
            )
        lon, lat = (table[name].to_numpy() for name in ("lon", "lat"))
        if not len(lon) or not all(v.dtype.kind in "iuf" and np.isfinite(v).all() for v in (lon, lat)):
            raise ValueError(f"{path}: every row needs a number as lon and as lat, and there must be one")
        return lon, lat, "EPSG:4326", table
    try:
        meta, table = pyogrio.read_arrow(path)
    except DataSourceError as error:
        raise ValueError(f"{path} cannot be read ({error}); give points as csv, gpkg, geojson or shp") from error
    places = shapely.from_wkb(table[meta["geometry_name"] or "wkb_geometry"].to_numpy(zero_copy_only=False))
    if not len(places) or (shapely.get_type_id(places) != shapely.GeometryType.POINT).any():
        raise ValueError(f"{path} should hold points only; it holds {len(places)} features")
    if not meta["crs"]:
        raise ValueError(f"{path} does not tell its reference system")
    return (
        shapely.get_x(places),
        shapely.get_y(places),
        meta["crs"],
        table.drop_columns(meta["geometry_name"] or "wkb_geometry"),
    )


def points(argv: list[str]) -> int:
    """Embeddings at points: every column of the points, x and y in the map's reference system, and e000, e001, ..."""
    p = argparse.ArgumentParser(prog="eval/embed.py points", description=points.__doc__)
    p.add_argument("--input", type=Path, required=True, help="embedding map; of codes, with <name>_scale.tif beside it")
    p.add_argument("--points", type=Path, required=True, help="gpkg, shp, geojson; or csv with lon and lat")
    p.add_argument("--output", type=Path, required=True, help="parquet file")
    args = p.parse_args(argv)
    x, y, crs, others = read_points(args.points)
    with EmbeddingMap(args.input) as source:
        if source.file.crs is None:
            raise ValueError(f"{args.input} has no reference system: where the points lie in it is unknown")
        x, y = (np.array(v) for v in rasterio.warp.transform(crs, source.file.crs, x, y))
        features = source.at(list(zip(x, y, strict=True)))
    seen = ~np.isnan(features[:, 0])
    if not seen.any():
        raise ValueError(f"none of the {len(x)} points of {args.points} lies on an embedding of {args.input}")
    kept = {name: others[name].filter(pa.array(seen)) for name in others.column_names}
    write_table(args.output, features[seen], {**kept, "x": x[seen], "y": y[seen]})
    print(f"{args.output}: {seen.sum()} points; {(~seen).sum()} lie outside of the map or on no observation")
    return 0


def series(argv: list[str]) -> int:
    """Embeddings of labelled series: one row per sample of a shard set of single pixels, with its labels and place.

    ``--model-obj raw:RUN`` writes what the run's encoder is fed instead, date after date: the baseline without a
    network. It needs series that share their number of dates; what was not observed is the band's mean.
    """
    p = argparse.ArgumentParser(prog="eval/embed.py series", description=series.__doc__)
    p.add_argument("--model-obj", "--model_obj", required=True, help="as for maps, or raw:RUN")
    p.add_argument("--input", required=True, help="shard set")
    p.add_argument("--output", type=Path, required=True, help="parquet file")
    p.add_argument("--seed", type=int, default=0, help="of random:RUN (%(default)s)")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    model = load_model(args.model_obj.removeprefix(RAW), args.seed)
    shards = ShardSet.open([args.input])
    samples = [shards.read(shard, i) for shard, count in enumerate(shards.counts) for i in range(count)]
    if args.model_obj.startswith(RAW):
        features = raw(model, samples)
    else:
        features = embed_samples(model, samples)
    labels = sorted({name for s in samples for name in s.labels})
    others = {name: [s.labels.get(name) for s in samples] for name in labels}
    centres = [np.array(s.footprint).reshape(2, 2).mean(0) if s.footprint else (np.nan, np.nan) for s in samples]
    place = dict(zip(("x", "y"), np.array(centres).T, strict=True))
    write_table(args.output, features, {"key": [s.key for s in samples], **others, **place})
    print(f"{args.output}: {len(features)} series, {features.shape[1]} features")
    return 0


def images_of(sample: Sample) -> list[Observed]:
    """The images of a sample of one pixel."""
    if any(image.shape[-2:] != (1, 1) for image in sample.images.values()):
        raise ValueError(f"sample {sample.key!r} is no single pixel")
    return [
        Observed(x[..., 0].swapaxes(1, 2), sample.specs[n], sample.times.get(n, [])) for n, x in sample.images.items()
    ]


def embed_samples(model: SeriesModel, samples: Sequence[Sample]) -> np.ndarray:
    """Embeddings ``[N, D]``; samples with equal dates are worked on together."""
    together: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        images_of(sample)
        together.setdefault(repr(sorted((k, tuple(v)) for k, v in sample.times.items())), []).append(number)
    out = np.full((len(samples), model.encoder.embed_dim), np.nan, np.float32)
    for members in together.values():
        first = samples[members[0]]
        images = [
            Observed(
                np.concatenate([samples[i].images[n][..., 0].swapaxes(1, 2) for i in members], 1), spec, first.times[n]
            )
            for n, spec in first.specs.items()
        ]
        out[members] = embed(model, images, torch.device("cpu"), f"samples like {first.key!r}")
    return out


def raw(model: SeriesModel, samples: Sequence[Sample]) -> np.ndarray:
    """Standardised numbers ``[N, dates * bands]`` of all branches; 0, the band's mean, where nothing was observed."""
    rows = []
    for sample in samples:
        parts = []
        for name, wanted in model.encoder.inputs.items():
            track = observe(images_of(sample), wanted, 1, model.normalisation, f"sample {sample.key!r}")
            dates = np.arange(len(track.days))[None]
            parts.append(track.pick(name, np.zeros(1, int), dates, track.valid.T)[name].ravel())
        rows.append(np.concatenate(parts))
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"{RAW} needs series with equally many dates; these have {min(lengths)} to {max(lengths)} numbers"
        )
    return np.stack(rows)
