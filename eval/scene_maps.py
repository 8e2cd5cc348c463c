"""Prediction maps: a raster is read tile by tile, blended without seams and written strip by strip."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from torch import Tensor

from dinov2 import __version__
from dinov2.data.sample import Sample
from dinov2.data.views import full_view
from eval.geotiff import class_tags, cog, tags_of, write_legend, write_picture
from eval.maps import palette
from eval.reading import VIEW, Item, as_batch, collate_items, days_of, progress
from eval.scene_encoder import EMBEDS
from eval.scene_layers import Extras, layers
from eval.scenes import Given, Scene
from eval.series.quicklook import write_quicklook
from eval.tiling import Corner, starts, stitch, taper
from eval.trained import Trained

CACHE = 256  # MiB of blocks that GDAL keeps of files being read and written
SUFFIXES = ("_pred", "_prob", "_embedding", "_scale")  # of the files that are made


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
    extras: Extras
    out: Path
    device: torch.device

    @property
    def step(self) -> int:
        """Pixels of the file per pixel of the map: an embedding is one of a cell."""
        return self.cell if self.trained.kind == EMBEDS else 1

    def target(self, path: Path) -> Path:
        """The map of a file."""
        return layers(self.trained, self.out / path.stem, self.extras)[0].path

    def tags(self, path: Path) -> dict[str, str]:
        """What a map says of its making; one with the same tags is not made again."""
        about = path.stat()
        source = f"{path.name} {about.st_size} {about.st_mtime_ns}"
        how = f"{self.given} tile {self.tile} overlap {self.overlap} {self.extras}"
        tags = {"model_digest": self.digest, "source": source, "prediction": how, "software": f"eo-ssl {__version__}"}
        if self.trained.kind != "segmentation":
            return tags | ({"unit": self.trained.unit} if self.trained.unit else {})  # files keep no empty tags
        return tags | class_tags(self.trained.classes, palette(len(self.trained.classes)))


@torch.inference_mode()
def cell_of(trained: Trained, device: torch.device) -> int:
    """Pixels per side that the coarsest feature map has one value for; 1 where images are resized first."""
    shape, ids = trained.example
    view = {"imgs": torch.zeros(1, *shape, device=device), "chn_ids": torch.tensor([ids], device=device)}
    return 1 if trained.joined.size else shape[-1] // min(m.shape[-1] for m in trained.model.maps(view))


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
    """``[K + 1, side, side]`` of every window; last 1 where it was observed. Windows without any are not looked at."""
    channels, every, side = len(job.trained.classes), windows(job, scene.raster.shape), job.tile // job.step
    firsts = range(0, len(every), job.batch)
    for first in progress(firsts, Path(scene.raster.name).name, len(firsts)):
        places = every[first : first + job.batch]
        samples, seen = zip(*(scene.read(at, job.tile) for at in places), strict=True)
        found = torch.zeros(len(places), channels + 1, side, side)
        found[:, channels] = F.max_pool2d(torch.from_numpy(np.stack(seen)).float(), job.step)  # a cell: any pixel of it
        some = [i for i, mask in enumerate(seen) if mask.any()]
        if some:
            found[some, :channels] = look(job, [samples[i] for i in some])
        yield from zip([(row // job.step, column // job.step) for row, column in places], found, strict=True)


def placed(points: Sequence[GroundControlPoint], step: int) -> list[GroundControlPoint]:
    """The ground control points of a raster as those of a map with one pixel for ``step`` of it."""
    return [GroundControlPoint(p.row / step, p.col / step, p.x, p.y, p.z, p.id, p.info) for p in points]


def write_map(job: Job, path: Path) -> None:
    """Predict one file; the map comes last, so that what goes with it is there where it is."""
    trained, step = job.trained, job.step
    with ExitStack() as stack, rasterio.Env(GDAL_CACHEMAX=CACHE):
        raster = stack.enter_context(rasterio.open(path))
        channels = [c for c in trained.joined.channels if c]
        scene = Scene.of(raster, channels, trained.frames, job.given)
        points, swath = raster.gcps  # what places a raster without a transform, and its reference system
        height, width = (-(-side // step) for side in raster.shape)
        transform, files = raster.transform @ Affine.scale(step), []
        tags = {**raster.tags(), **job.tags(path), "bands": scene.words}
        for layer in layers(trained, job.out / path.stem, job.extras):
            opened = cog(
                layer.path, (height, width), raster.crs, transform, storage=layer.storage, names=layer.names, tags=tags,
                resampling=layer.resampling,
            )  # fmt: skip
            file = stack.enter_context(opened)
            file.scales = layer.scales or file.scales
            if points:
                file.gcps = placed(points, step), swath
            files.append((file, layer.stored))
        weight, top = taper(job.tile // step, job.overlap // step) ** 2, 0  # squared: a tile comes in softly
        for strip in stitch(tiles(job, scene), height, width, job.tile // step, weight):
            values = np.where(strip[-1].numpy() > 0.5, strip[:-1].numpy(), np.nan)  # [K, rows, W]
            window = Window(0, top, width, values.shape[1])
            for file, stored in files:
                file.write(stored(values), window=window)
            top += values.shape[1]


def finish(job: Job, path: Path) -> None:
    """What lies beside a map: names and colours of its classes, and a picture."""
    target, names = job.target(path), job.trained.classes
    if job.trained.kind == EMBEDS:
        write_quicklook(target, target.with_suffix(".png"))
        return
    colours = palette(len(names)) if job.trained.kind == "segmentation" else None
    if colours is not None:
        write_legend(target, names, colours)
    write_picture(target, colours)


def make(job: Job, path: Path) -> bool:
    """The map of a file and what lies beside it; False where the same map was there."""
    target = job.target(path)
    files, tags = [layer.path for layer in layers(job.trained, job.out / path.stem, job.extras)], job.tags(path).items()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a raster without a place gives a map without one
        there = all(file.is_file() and tags_of(file).items() >= tags for file in files)
        if not there:
            beside = "embedding_scale" if job.trained.kind == EMBEDS else "prob"
            target.with_name(f"{path.stem}_{beside}.tif").unlink(missing_ok=True)  # of a former map
            write_map(job, path)
        finish(job, path)
    return not there
