"""The model card of an exported encoder: what it takes, what it learnt from, what it was measured at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dinov2.data.shards.index import INDEX, read_index
from dinov2.files import write_atomic
from dinov2.models import timeseries
from dinov2.models.export import CONFIG, from_pretrained
from dinov2.sensors import SENSORS
from eval.report import TEMPLATES
from eval.results import Row, markdown

CARD = "README.md"


def write_card(folder: Path, name: str, licence: str, rows: Sequence[Row]) -> Path:
    """``CARD`` of a folder that :func:`dinov2.models.export.save_pretrained` wrote."""
    told = json.loads((folder / CONFIG).read_text())
    config = told["info"].get("config")
    tensors = from_pretrained(folder).state_dict().values()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("model_card.md").render(
        **{**told, "info": {"released": None, **told["info"]}},
        name=name,
        licence=licence,
        folder=folder.name,
        millions=f"{sum(x.numel() for x in tensors) / 1e6:.2f}",
        series=told["encoder"]["name"] == timeseries.NAME,
        config=config,
        sets=[shard_set(path) for path in config["data"]["shards"]] if config else [],
        sensors=SENSORS,
        results=markdown(rows) if rows else "",
    )
    path = folder / CARD
    write_atomic(path, page)
    return path


def shard_set(path: str) -> Mapping[str, str]:
    """Name, number of samples, licence and provenance of a shard set; the last three only where it is at hand."""
    name = Path(path).name
    if not (Path(path) / INDEX).is_file():
        return {"name": name} | dict.fromkeys(("samples", "licence", "provenance"), "not at hand")
    part = read_index(path)
    provenance = "; ".join(f"{key}: {value}" for key, value in part.provenance.items())
    return {"name": name, "samples": str(part.samples.sum()), "licence": part.licence, "provenance": provenance}
