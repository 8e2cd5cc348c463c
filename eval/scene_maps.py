"""Prediction maps: a raster is read tile by tile, blended without seams and written strip by strip."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from torch import Tensor

from dinov2 import __version__
from dinov2.data.sample import Sample
from dinov2.data.views import full_view
from eval.geotiff import FLOATS, Storage, cog, tags_of, write_legend, write_picture
from eval.maps import css, palette
from eval.reading import VIEW, Item, as_batch, collate_items, days_of, progress
from eval.scenes import Given, Scene
from eval.tiling import Corner, starts, stitch, taper
from eval.trained import Trained

CLASSES = Storage("int16", -1, 2)
SHARE = 1e-4  # a step of the stored probabilities
CACHE = 256  # MiB of blocks that GDAL keeps of files being read and written


@dataclass(frozen=True)
class Job:
    """How files are predicted.

    ``digest`` identifies the model; ``tile`` and ``overlap`` are pixels of the file, and so is ``cell``, the side of
    what the model sees as one: tiles begin at whole cells, so that their borders do not change what it sees.
    """

    trained: Trained
    digest: str
    given: Given
    tile: int
    overlap: int
    cell: int
    batch: int
    probabilities: bool
    out: Path
    device: torch.device

    def target(self, path: Path) -> Path:
        """The map of a file."""
        return self.out / f"{path.stem}_pred.tif"

    def tags(self, path: Path) -> dict[str, str]:
        """What a map says of its making; one with the same tags is not made again."""
        about = path.stat()
        source = f"{path.name} {about.st_size} {about.st_mtime_ns}"
        how = f"{self.given} tile {self.tile} overlap {self.overlap} probabilities {self.probabilities}"
        tags = {"model_digest": self.digest, "source": source, "prediction": how, "software": f"eo-ssl {__version__}"}
        if self.trained.kind != "segmentation":
            return tags | {"unit": self.trained.unit}
        colours = map(css, palette(len(self.trained.classes)))
        for k, (name, colour) in enumerate(zip(self.trained.classes, colours, strict=True)):
            tags |= {f"class_{k}": name, f"colour_{k}": colour}
        return tags


@torch.inference_mode()
def cell_of(trained: Trained) -> int:
    """Pixels per side that the coarsest feature map has one value for; 1 where images are resized first."""
    shape, ids = trained.example
    view = {"imgs": torch.zeros(1, *shape), "chn_ids": torch.tensor([ids])}
    device = next(trained.head.parameters()).device
    maps = trained.model.maps({name: x.to(device) for name, x in view.items()})
    return 1 if trained.joined.size else shape[-1] // min(m.shape[-1] for m in maps)


def windows(job: Job, shape: tuple[int, int]) -> list[Corner]:
    """The tiles that cover a raster, row by row; the last ones may reach beyond it by less than a cell."""
    cells, stride = job.tile // job.cell, (job.tile - job.overlap) // job.cell
    rows, columns = ([job.cell * i for i in starts(-(-side // job.cell), cells, stride)] for side in shape)
    return list(product(rows, columns))


def outcome(trained: Trained, logits: Tensor) -> Tensor:
    """Logits ``[B, K, H, W]`` -> probabilities of all classes ``[B, K', H, W]``; values as they are."""
    if trained.kind != "segmentation":
        return logits
    if logits.shape[1] > 1:
        return logits.softmax(1)
    p = logits.sigmoid()
    return torch.cat([1 - p, p], 1)


def look(job: Job, samples: Sequence[Sample]) -> Tensor:
    """``[B, K, tile, tile]`` of windows, as :func:`outcome` gives it; they reach the model as in training."""
    joined, frames, side = job.trained.joined, job.trained.frames, (job.tile, job.tile)
    items = []
    for sample in samples:
        size = joined.size or side
        raw = full_view(sample, bands=joined.bands, size=size, norm=joined.norm, frames=frames)
        days = torch.tensor(days_of(sample, list(sample.images)))
        items.append(Item(raw, torch.empty(side), days, torch.zeros(frames, dtype=torch.bool)))
    (group,) = collate_items(items)
    batch = as_batch(*group, joined=joined, device=job.device, frames=frames)
    return outcome(job.trained, job.trained.predict(batch.views[VIEW], side, **batch.meta)).cpu()


def tiles(job: Job, scene: Scene) -> Iterator[tuple[Corner, Tensor]]:
    """``[K + 1, tile, tile]`` of every window; last 1 where it was observed. Windows without any are not looked at."""
    channels, every = len(job.trained.classes), windows(job, scene.raster.shape)
    firsts = range(0, len(every), job.batch)
    for first in progress(firsts, Path(scene.raster.name).name, len(firsts)):
        places = every[first : first + job.batch]
        samples, seen = zip(*(scene.read(at, job.tile) for at in places), strict=True)
        found = torch.zeros(len(places), channels + 1, job.tile, job.tile)
        found[:, channels] = torch.from_numpy(np.stack(seen))
        some = [i for i, mask in enumerate(seen) if mask.any()]
        if some:
            found[some, :channels] = look(job, [samples[i] for i in some])
        yield from zip(places, found, strict=True)


def write_map(job: Job, path: Path) -> None:
    """Predict one file; ``<stem>_pred.tif`` comes last, so that what goes with it is there where it is."""
    trained, target = job.trained, job.target(path)
    with ExitStack() as stack, rasterio.Env(GDAL_CACHEMAX=CACHE):
        raster = stack.enter_context(rasterio.open(path))
        channels = [c for c in trained.joined.channels if c]
        scene, (height, width) = Scene.of(raster, channels, trained.frames, job.given), raster.shape
        grid: dict[str, Any] = dict(shape=raster.shape, crs=raster.crs, transform=raster.transform)
        grid["tags"] = {**raster.tags(), **job.tags(path), "bands": scene.words}
        segments = trained.kind == "segmentation"
        names, storage, resampling = (["class"], CLASSES, "mode") if segments else (trained.classes, FLOATS, "average")
        made = stack.enter_context(cog(target, names=names, storage=storage, resampling=resampling, **grid))
        if job.probabilities:
            beside, names = job.out / f"{path.stem}_prob.tif", ["confidence", *trained.classes]
            shares = stack.enter_context(cog(beside, names=names, storage=CLASSES, resampling="average", **grid))
            shares.scales = (SHARE,) * len(names)
        weight, top = taper(job.tile, job.overlap) ** 2, 0  # squared: a tile comes in softly
        for strip in stitch(tiles(job, scene), height, width, job.tile, weight):
            values, seen = strip[:-1].numpy(), strip[-1].numpy() > 0.5  # [K, rows, W], [rows, W]
            window = Window(0, top, width, len(seen))
            classes = values.argmax(0, keepdims=True).astype(np.int16)
            made.write(np.where(seen, classes, -1) if segments else np.where(seen, values, np.nan), window=window)
            if job.probabilities:
                both = np.concatenate([values.max(0, keepdims=True), values])
                shares.write(np.where(seen, np.rint(both / SHARE), -1).astype(np.int16), window=window)
            top += len(seen)


def finish(job: Job, path: Path) -> None:
    """What lies beside a map: names and colours of its classes, and a picture."""
    names, target = job.trained.classes, job.target(path)
    colours = palette(len(names)) if job.trained.kind == "segmentation" else None
    if colours is not None:
        write_legend(target, names, colours)
    write_picture(target, colours)


def make(job: Job, path: Path) -> bool:
    """The map of a file and what lies beside it; False where the same map was there."""
    target = job.target(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a raster without a place gives a map without one
        there = target.is_file() and tags_of(target).items() >= job.tags(path).items()
        if not there:
            write_map(job, path)
        finish(job, path)
    return not there
