"""What embeddings of pixels are worth: classes or values learnt from tables, beside the same learners on raw series.

    python eval/pixels.py --features embedded.parquet --features raw.parquet --label crop --fractions 0.01 0.1 1 \\
        --seeds 5 --block 0.5 --output results/crops
    python eval/pixels.py map --features fields.parquet --label height --task regression --learner forest \\
        --input maps/embedding.tif --output height.tif

Tables come from eval/embed.py points or series: columns e000, e001, ... are features, x and y the place. Every learner
is trained on the same rows of every table. With ``--block`` whole squares of that many units of x and y are held out,
so that few test pixels have neighbours in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.csv  # noqa: E402

from dinov2 import cli  # noqa: E402
from dinov2.files import write_atomic  # noqa: E402
from eval.geotiff import FLOATS, Storage, class_tags, cog, write_legend, write_picture  # noqa: E402
from eval.maps import palette  # noqa: E402
from eval.series.learners import LEARNERS, SCORES, Data, fewer, fitted, read_table, split  # noqa: E402
from eval.series.mosaic import EmbeddingMap  # noqa: E402

NODATA = 255  # of maps of classes


def run(tables: Sequence[Data], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of results for every table, learner, fraction and seed."""
    first, out = tables[0], []
    for seed in range(args.seeds):
        train, test = split(first, args.block, seed)
        for fraction in args.fractions:
            rows = fewer(train, first.labels, fraction, args.task, seed)
            for data in tables:
                for name in args.learners:
                    model = fitted(LEARNERS[args.task][name](seed, len(rows)), data.features[rows], data.labels[rows])
                    predicted = model.predict(data.features[test])
                    scores = {k: float(f(data.labels[test], predicted)) for k, f in SCORES[args.task].items()}
                    about = {"features": data.name, "learner": name, "fraction": fraction, "seed": seed}
                    out.append({**about, "n_train": len(rows), "n_test": len(test), **scores})
        print(f"seed {seed}: {len(train)} rows to train on, {len(test)} to test on", flush=True)
    return out


def summary(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Markdown: mean and standard deviation over seeds, a line per table and learner, a column per fraction."""
    fractions = list(dict.fromkeys(row["fraction"] for row in rows))
    text = f"| features | learner | {' | '.join(f'{100 * f:g} %' for f in fractions)} |\n"
    text += "|---|---|" + "---|" * len(fractions) + "\n"
    for features, learner in dict.fromkeys((row["features"], row["learner"]) for row in rows):
        cells = []
        for fraction in fractions:
            group = [r[metric] for r in rows
                     if (r["features"], r["learner"], r["fraction"]) == (features, learner, fraction)]  # fmt: skip
            cells.append(f"{np.mean(group):.3f} ± {np.std(group):.3f}")
        text += f"| {features} | {learner} | {' | '.join(cells)} |\n"
    return text


def map_of(args: argparse.Namespace) -> None:
    """Train on the whole table and predict every pixel of an embedding map, window by window."""
    data = read_table(args.features[0], args.label, args.task)
    model = fitted(LEARNERS[args.task][args.learner](0, len(data.labels)), data.features, data.labels)
    classes = list(model.classes_) if args.task == "classification" else []
    if len(classes) > NODATA:
        raise ValueError(f"{len(classes)} classes do not fit a map of bytes; at most {NODATA} do")
    with EmbeddingMap(args.input) as source:
        file, width = source.file, data.features.shape[1]
        if file.count != width:
            raise ValueError(f"{args.input} has {file.count} dimensions, {args.features[0]} has {width}")
        storage = Storage("uint8", NODATA, 2) if classes else FLOATS
        tags = {"label": args.label, "learner": args.learner, "digest": file.tags().get("model_digest", "")}
        names, colours = [str(c) for c in classes], palette(len(classes))
        tags |= class_tags(names, colours)
        resampling = "nearest" if classes else "average"
        with cog(
            args.output, file.shape, file.crs, file.transform, storage=storage, names=[args.label], tags=tags,
            resampling=resampling,
        ) as out:  # fmt: skip
            for window in source.windows():
                x = source.read(window)
                seen = ~np.isnan(x[..., 0])
                values = np.full(seen.shape, storage.nodata, storage.dtype)
                if seen.any():
                    predicted = model.predict(x[seen])
                    values[seen] = np.searchsorted(classes, predicted) if classes else predicted
                out.write(values, 1, window=window)
    if classes:
        write_legend(args.output, names, colours)
    write_picture(args.output, colours if classes else None)
    print(f"{args.output}: {args.label} by {args.learner} trained on {len(data.labels)} rows")


def parser(mapping: bool) -> argparse.ArgumentParser:
    """The command line of either form."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--features", type=Path, action="append", required=True, help="table; several: compared on the same rows")
    add("--label", required=True, help="column to predict; of classes, -1 is unlabelled")
    add("--task", choices=LEARNERS, default="classification", help="(%(default)s)")
    if mapping:
        add("--learner", default="linear", help="one of linear, knn, forest, mlp (%(default)s)")
        add("--input", type=Path, required=True, help="embedding map")
        add("--output", type=Path, required=True, help="cloud-optimised GeoTIFF")
        return p
    add("--learners", nargs="+", default=["linear", "knn", "forest", "mlp"], help="(all)")
    add("--fractions", nargs="+", type=float, default=[1.0], help="of the training rows (1)")
    add("--seeds", type=int, default=5, help="splits (%(default)s)")
    add("--block", type=float, default=0.0, help="side of the squares held out, in units of x and y; 0: rows (0)")
    add("--output", type=Path, required=True, help="folder for results.csv and results.md")
    return p


def main(argv: list[str]) -> None:
    """Entry point."""
    mapping = argv[:1] == ["map"]
    args = parser(mapping).parse_args(argv[1:] if mapping else argv)
    for name in [args.learner] if mapping else args.learners:
        if name not in LEARNERS[args.task]:
            raise ValueError(f"learner {name!r} is not one of {', '.join(LEARNERS[args.task])}")
    if mapping:
        return map_of(args)
    if args.seeds < 1 or not all(0 < f <= 1 for f in args.fractions):
        raise ValueError("--seeds must be at least 1, and --fractions greater than 0 and at most 1")
    tables = [read_table(path, args.label, args.task) for path in args.features]
    for data in tables[1:]:
        if not np.array_equal(data.labels, tables[0].labels):
            raise ValueError(f"{data.name} holds other rows than {tables[0].name}: make both from the same input")
    rows = run(tables, args)
    args.output.mkdir(parents=True, exist_ok=True)
    pa.csv.write_csv(pa.Table.from_pylist(rows), args.output / "results.csv")
    metrics = list(SCORES[args.task])
    write_atomic(args.output / "results.md", "\n".join(f"{m}\n\n{summary(rows, m)}" for m in metrics))
    print(summary(rows, metrics[0]))


if __name__ == "__main__":
    cli.run(main)
