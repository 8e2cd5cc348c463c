"""The dataset cards in configs/datasets as a page.

python -m eval.datasets.cards          # writes docs/datasets.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinov2 import cli
from eval.datasets import CONFIGS, DATASETS, READERS, describe

PAGE = CONFIGS.parents[1] / "docs" / "datasets.md"
HEAD = """# Datasets

What `dataset: {name: NAME}` can name in an evaluation config. Written by `python -m eval.datasets.cards` from the cards
in `configs/datasets`; to add one see [extending.md](extending.md). Nothing is downloaded: get the data from the address
given, put them where `root` says, or set `dataset.root`. What is known of the sets of GEO-Bench-2 is in
[geobench2.md](geobench2.md).

"""


def page() -> str:
    """The page in Markdown: a table of all datasets, and a section for each."""
    cards = {name: describe(name) for name in DATASETS if name not in READERS}
    rows = [
        f"| [{name}](#{name.lower()}) | {d['card']['task']} | {kind(d)} | {sensors(d)} |" for name, d in cards.items()
    ]
    table = "\n".join(["| name | task | kind | sensors |", "|---|---|---|---|", *rows])
    return HEAD + table + "\n" + "".join(section(name, described) for name, described in cards.items())


def section(name: str, described: Mapping[str, Any]) -> str:
    """One dataset."""
    card, classes = described["card"], described.get("classes") or []
    lines = {
        "Task": card["task"],
        "Classes": f"{len(classes)}: {', '.join(classes)}" if classes else "",
        "Images": "; ".join(image(layer) for layer in described.get("layers", {}).values()),
        "Root": f"`{described['root']}`",
        "Licence": card["licence"],
        "Citation": card["citation"],
        "Get it": card["get"],
    }
    listed = "\n".join(f"- **{title}**: {text}" for title, text in lines.items() if text)
    return f"\n## {name}\n\n{card['title']}.\n\n{listed}\n\n{card['notes'].strip()}\n"


def image(layer: Mapping[str, Any]) -> str:
    """One image of a sample in words."""
    bands = layer.get("bands")
    unit = f", {layer['unit']}" if "unit" in layer else ""
    return f"{layer['sensor']} at {layer['gsd_m']} m ({', '.join(bands) if bands else 'all bands'}{unit})"


def kind(described: Mapping[str, Any]) -> str:
    """The kind of task; what a shard set says of its label decides for the sandbox."""
    return described.get("kind") or {"files": "segmentation", "geobench": "classification"}.get(
        described["reader"], "as the set describes the label"
    )


def sensors(described: Mapping[str, Any]) -> str:
    """Names of its sensors."""
    layers = described.get("layers", {}).values()
    return ", ".join(dict.fromkeys(layer["sensor"] for layer in layers)) or ", ".join(described.get("images", []))


def main(argv: list[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGE, help="file to write (%(default)s)")
    parser.parse_args(argv).out.write_text(page())
    return 0


if __name__ == "__main__":
    cli.run(main)
