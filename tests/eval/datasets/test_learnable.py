"""Classes that a linear probe must tell apart, and labels that nobody can learn, in the layout of every dataset."""

import json

import h5py
import numpy as np
import pyogrio
import pytest
import shapely
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dinov2.sensors import SENSORS
from eval.datasets import DATASETS, build_dataset, defaults, describe
from eval.datasets.base import IGNORE
from eval.datasets.listing import Pattern

GEOBENCH = [name for name in DATASETS if name.startswith("m-")]
FILES = ["sen1floods11", "hls_burn_scars", "enmap_potsdam", "terramesh_landcover"]
SIDE = 6


class Scene:
    """A map of classes (or one class) and what it looks like: every class has its own level in every band."""

    def __init__(self, seed, classes, dense, scrambled):
        self.rng = np.random.default_rng(seed)
        shape = (SIDE, SIDE) if dense else ()
        self.truth = self.rng.integers(0, classes, shape)
        seen = self.rng.integers(0, classes, shape) if scrambled else self.truth
        self.level = np.broadcast_to(seen, (SIDE, SIDE))

    def bands(self, count):
        # between the levels of its neighbours, and in every band in another order
        base = self.level * (np.arange(count) % 2 * 2 - 1)[:, None, None] + 50
        return (base * 40 + self.rng.integers(-9, 10, base.shape)).astype(np.int16)


def pixels(dataset, split):
    """``x [N, C]``, ``y [N]``: labelled pixels of a split, or the means of its images and their labels."""
    xs, ys = [], []
    for i in range(len(split)):
        images = split[i].images
        x = np.concatenate([images[key].astype(np.float64) for key in dataset.images])
        if split.dense:
            y = split.target(i).ravel()
            xs.append(x.reshape(len(x), -1).T[y != IGNORE])
            ys.append(y[y != IGNORE])
        else:
            xs.append(x.mean((1, 2))[None])
    return np.concatenate(xs), np.concatenate(ys) if ys else split.labels.numpy()


def accuracy(dataset):
    """On the test split, of a linear probe of the pixels."""
    (x, y), (x_test, y_test) = (pixels(dataset, dataset.splits[name]) for name in ("train", "test"))
    if dataset.kind == "multilabel":
        y, y_test = y[:, 0], y_test[:, 0]
    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=1e4, max_iter=2000).fit(scaler.transform(x), y)
    return float((probe.predict(scaler.transform(x_test)) == y_test).mean())


def write_geobench(root, name, scenes):
    options = defaults(name)
    root.mkdir()
    keys = [f"id_{i}" for i in range(len(scenes))]
    (root / "default_partition.json").write_text(
        json.dumps({"train": keys[:-38], "valid": keys[-38:-34], "test": keys[-34:]})
    )
    target = options.get("target", {})
    codes = np.array(target.get("codes") or range(len(options["classes"])))
    for key, scene in zip(keys, scenes, strict=True):
        with h5py.File(root / f"{key}.hdf5", "w") as file:
            for layer in options["layers"].values():
                for band, image in zip(layer["names"], scene.bands(len(layer["names"])), strict=True):
                    file[band] = image
            if scene.truth.ndim:
                file["label"] = codes[scene.truth]
    truth = {key: int(scene.truth) for key, scene in zip(keys, scenes, strict=True) if not scene.truth.ndim}
    count = len(options["classes"])
    (root / "label_map.json").write_text(json.dumps({c: [k for k, v in truth.items() if v == c] for c in range(count)}))
    vectors = {key: [value] + [0] * (count - 1) for key, value in truth.items()}
    (root / "label_stats.json").write_text(json.dumps(vectors))


def write_files(root, name, scenes, tif):
    options = defaults(name)
    target = options["target"]
    codes = np.array(target.get("codes") or range(len(options["classes"])))
    lists = {}
    for i, scene in enumerate(scenes):
        split = "train" if i < len(scenes) - 38 else "val" if i < len(scenes) - 34 else "test"
        folder = next((f for f in (options.get(split), options["train"] if "train" in options else None)
                       if isinstance(f, list)), [""])[0]  # fmt: skip
        values = {"id": f"chip_{i}", "split": folder}
        for layer in options["layers"].values():
            count = len(layer.get("bands") or SENSORS[layer["sensor"]].band_names)
            tif(root / Pattern(layer["path"]).fill(values), scene.bands(count))
        tif(root / Pattern(target["path"]).fill(values), codes[scene.truth].astype(np.int16))
        lists.setdefault(split, []).append(values["id"])
    for split, keys in lists.items():
        if isinstance(options.get(split), str):
            entries = [Pattern(options["entry"]).fill({"id": key}) for key in keys]
            titled = isinstance(options.get("column"), str)
            path = root / options[split]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(([options["column"] + ",mask"] if titled else []) + [f"{e},x" for e in entries]))


def write_polygons(root, scenes, tif):
    shapes, names = [], []
    for i, scene in enumerate(scenes):
        x, y = 500000 + 10 * SIDE * i, 5000000
        tif(root / f"images/t{i}.tif", scene.bands(12), corner=(x, y))
        shapes.append(shapely.box(x, y - 10 * SIDE, x + 10 * SIDE, y))
        names.append("ab"[int(scene.truth)])
    wkb = shapely.to_wkb(np.array(shapes, object))
    data = [np.array(names, object)]
    pyogrio.raw.write(root / "polygons.gpkg", wkb, data, ["class"], geometry_type="Polygon", crs="EPSG:32633")


def make(root, name, scrambled, tif):
    changes = {}
    options = defaults(name)
    kind = options.get("kind", "segmentation" if describe(name)["reader"] == "files" else "classification")
    count = 2 if kind == "multilabel" or name == "polygons" else len(options["classes"])
    dense = kind == "segmentation" and name != "polygons"
    scenes = [Scene(i, count, dense, scrambled) for i in range(50 if dense else 110)]
    if not dense:
        for i, scene in enumerate(scenes[:count]):  # every class is there
            scene.level = scene.level if scrambled else np.broadcast_to(i, (SIDE, SIDE))
            scene.truth = np.array(i)
    if name == "polygons":
        changes = {"classes": ["a", "b"], "tile": SIDE, "block": 10 * SIDE, "test": 0.3, "val": 0.1}
        write_polygons(root, scenes, tif)
    elif name in GEOBENCH:
        root = root / name
        write_geobench(root, name, scenes)
    else:
        changes = {"test": [f"chip_{i}" for i in range(14, 50)]} if "train" not in options else {}
        write_files(root, name, scenes, tif)
    return build_dataset({"name": name, "root": str(root), **changes}), count


QUICK = ("m-eurosat", "m-bigearthnet", "m-chesapeake")  # the others differ in names and numbers alone


@pytest.mark.parametrize(
    "name",
    [*FILES, "polygons", *(n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in GEOBENCH)],
)
def test_a_linear_probe_is_right_where_it_can_be_and_at_chance_where_nothing_can_be_learnt(tmp_path, tif, name):
    for scrambled in (False, True):
        folder = tmp_path / str(scrambled)
        folder.mkdir()
        dataset, classes = make(folder, name, scrambled, tif)
        found = accuracy(dataset)
        samples = len(pixels(dataset, dataset.splits["test"])[1])
        if scrambled:
            assert abs(found - 1 / classes) < max(0.12, 4 * (0.25 / samples) ** 0.5)
        else:
            assert found == 1.0
