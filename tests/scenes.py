"""Rasters in files, models trained to predict them, and the command that does."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from eval.encoders import load_model
from eval.features import Trial
from eval.predict import main
from eval.tasks.decoder import Options, decoder
from eval.tasks.encoding import Store
from eval.tasks.heads import Wanted
from eval.trained import Trained
from tests.dense import dataset, scene

CPU = torch.device("cpu")
VIT = "random:vit_tiny?patch_size=4&img_size=16&embed_dim=32&depth=2&num_heads=2&attn_dim=32&attn_heads=2"
MODELS = {
    "pixels": ("pixelstats", {}, {}),
    "unet": ("unet?width=4&depth=2", {"decoder": "unet", "epochs": 6}, {}),
    "vit": (VIT, {}, {}),
    "values": ("pixelstats", {}, {"kind": "regression"}),
    "dates": ("pixelstats", {"neck": "linear"}, {"frames": 3}),
    "attention": (VIT, {"neck": "ltae"}, {"frames": 3}),
    "resized": (VIT, {}, {"size": (24, 24)}),
    "labels": (VIT, {"decoder": "linear_classifier"}, {"kind": "multilabel", "dense": False}),
}
UTM = dict(crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -10, 5_800_000))


def cell(name: str, folder: Path) -> Path:
    """The file of a model of ``MODELS``, trained shortly."""
    source, how, options = MODELS[name]
    sizing = "resize" if name == "resized" else None
    trial = Trial.of(load_model(source, seed=3), dataset(**options), CPU, sizing=sizing, batch_size=4)
    given = Options(**{"decoder": "linear", "epochs": 3, "batch_size": 4, "evaluate_every": 1, **how})
    (outcome,) = decoder(trial, Store(1 << 30), [Wanted(0, range(12))], given)
    whole = outcome.trained[0] is not trial.model
    Trained.of(trial, *outcome.trained, whole, (source, 3)).save(folder / "seed-0.safetensors")
    return folder / "seed-0.safetensors"


def image(height: int, width: int, frames: int = 1) -> np.ndarray:
    """``[frames * 3, H, W]`` of the kind the models were trained on."""
    return scene(np.random.default_rng(7), (height, width), frames)[0].reshape(-1, height, width)


def write(path: Path, pixels: np.ndarray, names=(), **profile) -> Path:
    profile = {**UTM, "driver": "GTiff", "dtype": pixels.dtype, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], **profile
        ) as file:
            file.write(pixels)
            if names:
                file.descriptions = names
    return path


def read(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return file.read()


def run(cell: Path, source: Path, out: Path, *options: str) -> int:
    return main(["--model-obj", str(cell), "--input", str(source), "--output", str(out), "--device", "cpu", *options])


def predicted(cell: Path, source: Path, out: Path, *options: str) -> np.ndarray:
    """The classes or values ``[H, W]``."""
    assert run(cell, source, out, *options) == 0
    return read(out / f"{source.stem}_pred.tif")[0]
