"""What ``eval/embed.py --model-obj`` accepts: encoders of pixel series."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dinov2.config import fingerprint
from dinov2.data.series_tiles import Tile
from dinov2.data.stats import Normalisation
from dinov2.models.export import load_export
from dinov2.models.timeseries import SeriesEncoder
from dinov2.models.zoo.tessera import RELEASES, Table, load_series

FINAL = "model_final.safetensors"
UNITS = {"sentinel2_l2a": "reflectance", "sentinel1_rtc": "db"}  # of the released encoders' numbers


@dataclass(frozen=True)
class SeriesModel:
    """An encoder in evaluation mode, the statistics of its inputs and a digest of its weights.

    ``catalogue``: see :class:`dinov2.models.zoo.tessera.SeriesRelease`.
    """

    name: str
    digest: str
    encoder: SeriesEncoder
    normalisation: Normalisation
    catalogue: str = ""

    def check_source(self, tile: Tile) -> None:
        """ValueError where a tile says that it was made from another catalogue than the statistics are of."""
        made = tile.provenance.get("catalogue", "")
        if made and self.catalogue not in made:
            raise ValueError(
                f"{tile.folder} was made from {made}, the statistics of {self.name} are of series from "
                f"{self.catalogue}: prepare the tiles from there"
            )


def load_model(obj: str, seed: int = 0) -> SeriesModel:
    """``RUN`` (a run folder or an exported encoder), ``random:RUN`` (its floor) or ``NAME@FILE`` (a released encoder).

    What is none of these, and encoders of images, raise ValueError.
    """
    name, at, file = obj.partition("@")
    if at and name in RELEASES:
        encoder, release = load_series(name, file), RELEASES[name]
        known = published(release.normalisation)
        return SeriesModel(f"{name}@{Path(file).stem}", digest(Path(file)), encoder, known, release.catalogue)
    random = obj.startswith("random:")
    path = Path(obj.removeprefix("random:"))
    path = path / FINAL if path.is_dir() else path
    loaded, header = load_export(path)
    if not isinstance(loaded, SeriesEncoder):
        raise ValueError(f"{path} is an encoder of images, not of pixel series: use eval/predict.py --features")
    norm, identity = Normalisation.from_dict(header["normalisation"]), digest(path)
    if random:
        loaded, identity = untrained(header["encoder"], seed), fingerprint([identity, "random", seed])
    return SeriesModel(f"{'random:' * random}{path.parent.name}", identity, loaded, norm)


def untrained(config: Mapping[str, object], seed: int) -> SeriesEncoder:
    """The same architecture with fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SeriesEncoder(**{k: v for k, v in config.items() if k != "name"}).eval()  # type: ignore[arg-type]


def published(table: Table) -> Normalisation:
    """The numbers of a release."""
    return Normalisation(table, {sensor: UNITS[sensor] for sensor in table})


def digest(path: Path) -> str:
    """Twelve digits of the file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
