from pathlib import Path

import numpy as np
import pytest
import torch

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet, write_shards
from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import save_export

SPEC = ImageSpec("sentinel2_l2a", 10, ("B02", "B03", "B04"), "uint16", "reflectance", 1e-4, 0.0, None)
RADAR = ImageSpec("sentinel1_rtc", 10, ("VV", "VH"), "float32", "linear_power")
CLASSES = ["dark", "bright", "striped"]


def chip(rng: np.random.Generator, kind: int) -> np.ndarray:
    """A chip whose class anyone can see: dark, bright, or striped at the dark class' mean."""
    image = rng.integers(900, 1100, (3, 16, 16))
    if kind == 1:
        image += 2000
    if kind == 2:
        image[:, :, ::2] += 800
        image[:, :, 1::2] -= 800
    return image.astype(np.uint16)


def make_samples(count: int, *, seed: int = 0, prefix: str = "s", radar: bool = False):
    """Samples of three classes in turn; ``meta.place`` groups four neighbours."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        images, specs = {SPEC.key: chip(rng, i % 3)}, {SPEC.key: SPEC}
        if radar:
            images[RADAR.key] = rng.gamma(4, 0.02, (2, 16, 16)).astype(np.float32)
            specs[RADAR.key] = RADAR
        labels = {"scene": i % 3, "share": 0.5}
        yield Sample(f"{prefix}{i:04d}", images, specs, labels=labels, meta={"place": f"p{i // 4}", "cloud": 0.1})


def write(folder: Path, samples, per_shard: int = 16) -> Path:
    """A shard set with the three class names."""
    write_shards(
        samples,
        folder,
        samples_per_shard=per_shard,
        labels={"scene": {"kind": "class", "classes": CLASSES, "ignore": -1}},
        provenance={"source": "test"},
        licence="none",
    )
    return folder


def tiny(seed: int = 5):
    """A small encoder."""
    torch.manual_seed(seed)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "attn_dim": 32, "attn_heads": 2}
    return build_encoder("vit_tiny", patch_size=8, img_size=16, **sizes)


def write_run(folder: Path, shards: Path, seed: int = 5) -> Path:
    """A run folder with an exported encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    norm = Normalisation.from_stats(ShardSet.open(shards).stats)
    save_export(folder / "model_final.safetensors", tiny(seed), normalisation=norm.to_dict(), info={"step": 1})
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """96 samples of three classes, 24 places."""
    return write(tmp_path_factory.mktemp("shards") / "world", make_samples(96, radar=True))


@pytest.fixture
def run(tmp_path, shards) -> Path:
    """A run folder called "run"."""
    return write_run(tmp_path / "run", shards)


@pytest.fixture
def config(shards) -> dict:
    """A k-NN evaluation of ``shards`` split by place."""
    dataset = {"name": "shards", "root": str(shards), "label": "scene", "split_by": "meta.place"}
    return {"name": "tiny/knn", "dataset": {**dataset, "images": ["sentinel2_l2a"]}, "task": {"name": "knn", "k": 5}}


@pytest.fixture
def tools():
    """The helpers above, for tests that need their own data."""

    class Tools:
        spec, radar, classes = SPEC, RADAR, CLASSES
        samples, write, encoder, write_run = map(staticmethod, (make_samples, write, tiny, write_run))

    return Tools
