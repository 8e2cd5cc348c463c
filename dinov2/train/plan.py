"""What a run on many GPUs would take: memory, traffic and time, by arithmetic from the configuration and the indexes.

Legend: W ranks, P numbers (T trained, F of a teacher), d width, N tokens. Sources of the formulae: ZeRO (Rajbhandari
et al. 2020, arXiv 1910.02054, sec. 3) for the state, Korthikanti et al. 2022 (arXiv 2205.05198, eq. 2) for
activations, a ring's 2 (W - 1) / W for traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import cast

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from dinov2.data.shards import ShardSet
from dinov2.data.shards.index import read_index
from dinov2.env import expand
from dinov2.models.layers import Block
from dinov2.models.vit import VisionTransformer
from dinov2.objectives.base import Objective
from dinov2.train.build import build_objective, build_stream, check_batch, normalisation_of
from dinov2.train.flops import patches, sample_flops

NODE = 8  # GPUs of one machine
MATRIX = 790e12  # bf16 operations per second that large matrix products reach on an H200
SHARE = 0.4  # of them that a whole step is assumed to reach (the log's mfu of a short run replaces it)
LINK = 40e9  # bytes per second and GPU between machines: 400 Gbit/s at 80 %
LINK_INSIDE = 400e9  # within a machine
ACTIVATIONS = 34  # bytes per token, width and block in bf16, attention matrices never stored
BLOCK_INPUT = 2  # of them that activation checkpointing keeps


@dataclass(frozen=True)
class Plan:
    """Figures of a run; bytes and seconds of one GPU where nothing else is said."""

    ranks: int
    trained_parameters: int
    frozen_parameters: int
    state_bytes: float
    activation_bytes: float
    traffic_bytes_per_step: float
    compute_seconds_per_step: float
    traffic_seconds_per_step: float
    images_per_second: float  # of all GPUs
    read_bytes_per_second: float  # of all GPUs, from wherever the shards are
    read_bytes_per_second_and_node: float
    steps: int
    epochs: float
    hours: float
    gpu_hours: float
    checkpoint_bytes: float


def plan(cfg: DictConfig, ranks: int, objective: Objective, samples: int, sample_bytes: float) -> Plan:
    """The plan of ``objective`` (on the meta device) over ``samples`` samples of ``sample_bytes`` stored bytes each.

    ValueError for encoders whose operations have no formula.
    """
    operations = sample_flops(objective)
    if operations is None:
        raise ValueError(f"there is no plan for model.arch {cfg.model.arch}: leave --ranks out to measure a step")
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in objective.parameters()) - trained
    share = cfg.data.batch_size // ranks
    micro = min(cfg.data.micro_batch or share, share)
    sharded = cfg.train.parallel == "fsdp"
    link = LINK if ranks > NODE else LINK_INSIDE
    traffic = traffic_bytes(objective, ranks, -(-share // micro), sharded)
    again = 4 / 3 if cfg.train.activation_checkpointing else 1.0  # a second forward pass of the student
    compute = share * again * operations / (MATRIX * SHARE)
    seconds = compute + traffic / link
    images = cfg.data.batch_size / seconds
    hours = cfg.train.steps * seconds / 3600
    return Plan(
        ranks=ranks,
        trained_parameters=trained,
        frozen_parameters=frozen,
        state_bytes=state_bytes(objective, ranks, sharded),
        activation_bytes=micro * activation_bytes(objective, cfg.train.activation_checkpointing),
        traffic_bytes_per_step=traffic,
        compute_seconds_per_step=compute,
        traffic_seconds_per_step=traffic / link,
        images_per_second=images,
        read_bytes_per_second=images * sample_bytes,
        read_bytes_per_second_and_node=images * sample_bytes * min(NODE, ranks) / ranks,
        steps=cfg.train.steps,
        epochs=cfg.train.steps * cfg.data.batch_size / samples,
        hours=hours,
        gpu_hours=hours * ranks,
        checkpoint_bytes=12 * trained + 4 * frozen,  # weights and two moments; a teacher's weights
    )


def in_blocks(objective: Objective) -> tuple[int, int, int]:
    """Numbers in trained blocks, in a teacher's blocks, and in the largest block."""
    blocks = [m for m in objective.modules() if isinstance(m, Block)]
    sizes = [(sum(p.numel() for p in b.parameters()), next(b.parameters()).requires_grad) for b in blocks]
    return (
        sum(n for n, learns in sizes if learns),
        sum(n for n, learns in sizes if not learns),
        max(n for n, _ in sizes),
    )


def state_bytes(objective: Objective, ranks: int, sharded: bool) -> float:
    """Float32 weights, gradients and two moments, and a teacher: 16 T + 4 F, or their shard and what is gathered."""
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in objective.parameters()) - trained
    total = 16.0 * trained + 4.0 * frozen
    if not sharded:
        return total + 4.0 * trained * (ranks > 1)  # the flat copy of all gradients that is reduced
    own, teacher, largest = in_blocks(objective)
    outside = 4.0 * (trained + frozen - own - teacher) + 4.0 * (trained - own)  # the root's weights and gradients
    return total / ranks + outside + 2 * (2 + 4) * largest  # two blocks in bf16, and their gradients


def activation_bytes(objective: Objective, checkpointed: bool) -> float:
    """What one sample's forward pass keeps for the backward pass in bf16: the blocks'; +-30 %."""
    encoder = cast(VisionTransformer, objective.encoder)
    tokens = sum(view.count * (patches(encoder, view)[1] + 1 + encoder.registers) for view in objective.views)
    depth = len(encoder.blocks)
    kept = BLOCK_INPUT * depth + ACTIVATIONS if checkpointed else ACTIVATIONS * depth
    return float(kept * encoder.embed_dim * tokens)


def traffic_bytes(objective: Objective, ranks: int, passes: int, sharded: bool) -> float:
    """Bytes that a GPU sends per step of ``passes`` micro-batches.

    Replicated: one all-reduce of T float32 gradients. Sharded: each kind of view gathers the student's blocks in bf16
    for its forward and again for its backward pass and scatters float32 gradients; the teacher's are gathered once.
    """
    ring = (ranks - 1) / ranks
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    if not sharded:
        return 2 * ring * 4 * trained
    own, teacher, _ = in_blocks(objective)
    everything = sum(p.numel() for p in objective.parameters())
    root = 4 * (everything - own - teacher) + 4 * (trained - own)
    return ring * passes * (len(objective.views) * own * (2 + 2 + 4) + 2 * teacher + root)


def print_plan(cfg: DictConfig, ranks: int) -> Plan:
    """Check a configuration as its run on ``ranks`` GPUs would, reading no shard, and print what it would take."""
    with torch.device("meta"):
        objective = build_objective(cfg)
    shards = ShardSet([read_index(expand(folder)) for folder in cfg.data.shards])
    stream = build_stream(cfg, objective, shards, normalisation_of(cfg, objective, shards), (ranks - 1, ranks))
    stream.dataset.order.addresses(next(stream.positions(0)))  # the last rank's first batch has a place in the sets
    remedy = check_batch(cfg, objective, stream)
    found = plan(cfg, ranks, objective, len(shards), shards.bytes / len(shards))
    table = Table(title=f"{ranks} H200, computed: nothing was run", show_header=False)
    for field in fields(found):
        value = getattr(found, field.name)
        gib = "bytes" in field.name
        shown = f"{value / 2**30:,.2f} GiB" if gib else f"{value:,.0f}" if value >= 1e4 else f"{value:,.4g}"
        table.add_row(field.name.replace("_", " "), shown)
    Console(soft_wrap=True).print(f"{len(shards):,} samples in {len(shards.counts):,} shards", remedy or "", table)
    return found
