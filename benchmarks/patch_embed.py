"""The folded patch embedding beside the published one: time, operations, bytes for backward, share of a ViT-B step.

    python benchmarks/patch_embed.py            # all rows, some minutes
    python benchmarks/patch_embed.py --quick    # C = 3 and 10

Forward and backward on one thread, measured in process time and in alternation, so that other load on the machine
touches both forms alike. 224-pixel images, patch 14, attn_dim 2304, 16 heads, embed_dim 768.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dinov2.cli import run  # noqa: E402
from dinov2.models import build_encoder  # noqa: E402
from dinov2.models.spectral import SpectralPatchEmbed  # noqa: E402
from tests.dinov2.models.reference import PublishedPatchEmbed  # noqa: E402

ROWS = {3: 8, 10: 8, 13: 8, 50: 2, 202: 1}  # channels -> images
TARGETS = {3: 8.0, 10: 30.0, 13: 35.0}  # channels -> least ratio
MAX_SAVED, MAX_SHARE = 9.0, 0.05  # MiB per image at 13 channels; of a ViT-B/14 forward and backward


def published_flops(images: int, channels: int, length: int, pixels: int, dim: int, width: int) -> int:
    """Multiply-adds x 2 of the published form's forward pass (``pixels`` = patch_size**2)."""
    return images * length * (channels * (2 * pixels * dim + 4 * dim**2 + 4 * dim) + 2 * dim * width)


def folded_flops(
    images: int, channels: int, length: int, pixels: int, dim: int, width: int, heads: int, distinct: int
) -> int:
    """The same of the folded form: parameters once, ``distinct`` channel ids once, then every patch."""
    fold = 2 * dim**2 + 2 * heads * dim * pixels + 2 * dim**2 * pixels
    table = distinct * (2 * dim * heads + 2 * dim**2)
    patches = images * length * (channels * (4 * pixels * heads + 2 * dim) + 2 * dim * pixels + 2 * dim * width)
    return fold + table + patches


def saved_bytes(module: nn.Module, x: dict[str, Tensor]) -> int:
    """Bytes that one forward pass keeps for its backward pass; parameters are not counted."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = module(x)
    del out  # until here the graph kept every storage alive, so no address was given twice
    return sum(found.values())


def view(images: int, channels: int) -> dict[str, Tensor]:
    """Noise at ``channels`` wavelengths."""
    ids = torch.linspace(443, 2200, channels).long().repeat(images, 1)
    return {"imgs": torch.randn(images, channels, 224, 224), "chn_ids": ids}


def seconds(module: nn.Module, x: dict[str, Tensor], calls: int) -> float:
    """Process time of one forward and backward pass, mean of ``calls``."""
    start = time.process_time()
    for _ in range(calls):
        module.zero_grad()
        module(x).square().mean().backward()
    return (time.process_time() - start) / calls


def alternate(jobs: list[Callable[[], float]], rounds: int) -> list[float]:
    """The least time of each job over ``rounds`` in alternation."""
    times = [[job() for job in jobs] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def row(channels: int, images: int, rounds: int) -> tuple[str, bool]:
    """One line of the table, and whether its targets are met."""
    folded, published, x = SpectralPatchEmbed(), PublishedPatchEmbed(), view(images, channels)
    published.load_state_dict(folded.state_dict())
    small = view(1, 1)
    for module in (folded, published):
        seconds(module, small, 1)  # the first call allocates
    old, new = alternate([lambda: seconds(published, x, 1), lambda: seconds(folded, x, 4)], rounds)
    saved = saved_bytes(folded, x) / images / 2**20
    sizes = (images, channels, 256, 196, 2304, 768)
    flops = published_flops(*sizes) / folded_flops(*sizes, 16, channels)
    times = f"{old * 1e3:>12.0f} {new * 1e3:>10.0f} {old / new:>7.1f}x"
    return f"{channels:>4} {images:>3} {times} {flops:>7.1f}x {saved:>15.1f}", old / new >= TARGETS.get(
        channels, 0.0
    ) and (channels != 13 or saved <= MAX_SAVED)


def share(images: int, channels: int, rounds: int) -> tuple[str, bool]:
    """Share of the embedding in a ViT-B/14's forward and backward pass."""
    encoder, x = build_encoder("vit_base"), view(images, channels)
    whole, part = alternate([lambda: seconds(encoder, x, 1), lambda: seconds(encoder.patch_embed, x, 2)], rounds)
    line = f"share of a ViT-B/14 step at C = {channels}, B = {images}: {part / whole:.1%} ({whole * 1e3:.0f} ms)"
    return line, part / whole <= MAX_SHARE


def main(argv: list[str]) -> int:
    """Print the table; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="C = 3 and 10 only, one round")
    parser.add_argument("--channels", type=int, nargs="+", choices=list(ROWS), help="these rows only")
    parser.add_argument("--rounds", type=int, default=2, help="alternations; the least time counts")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rounds = 1 if args.quick else args.rounds
    good = True
    print("   C   B published ms  folded ms   ratio    FLOPs MiB saved/image")
    for channels in args.channels or ([3, 10] if args.quick else list(ROWS)):
        line, met = row(channels, ROWS[channels], rounds)
        print(line + ("" if met else "  target missed"), flush=True)
        good &= met
    line, met = share(8, 10, rounds)
    print(line + ("" if met else "  target missed"))
    return 0 if good and met else 1


if __name__ == "__main__":
    run(main)
