"""``train.py --dry-run``: what a run will cost, from one real batch, before anything is written."""

from __future__ import annotations

import time

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from dinov2 import distributed
from dinov2.data.batch import Batch
from dinov2.data.views import render
from dinov2.train.build import Parts, build
from dinov2.train.parallel import is_sharded
from dinov2.train.plan import state_bytes
from dinov2.train.trainer import step


def saved_bytes(parts: Parts, batch: Batch) -> int:
    """Bytes that one forward pass keeps for the backward pass, each storage counted once."""
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in parts.objective.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), parts.precision.autocast(parts.device):
        parts.objective(batch, parts.schedules.now(0))
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def dry_run(cfg: DictConfig) -> dict[str, float]:
    """Build everything, take one batch, time one step on throw-away weights; print and return the estimates."""
    parts = build(cfg)
    batches = parts.stream.batches(0)
    trainable = sum(p.numel() for p in parts.objective.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in parts.objective.parameters()) - trainable
    activations = saved_bytes(parts, render(next(batches), parts.device))
    begin = time.perf_counter()
    step(parts, batches, parts.schedules.now(0), cfg.optim.clip)
    seconds = time.perf_counter() - begin
    samples = cfg.train.steps * cfg.data.batch_size
    per_sample = parts.shards.bytes / len(parts.shards)
    sharded = any(map(is_sharded, parts.objective.parameters()))
    facts = {
        "trainable parameters": trainable,
        "teacher parameters": frozen,
        "state bytes per rank": state_bytes(parts.objective, distributed.world(), sharded),
        "activation bytes per rank": activations,
        "steps": cfg.train.steps,
        "epochs": samples / len(parts.shards),
        "bytes read": samples * per_sample,
        "seconds per step": seconds,
        "hours": seconds * cfg.train.steps / 3600,
    }
    if distributed.rank() == 0:
        table = Table(title="dry run: nothing was written", show_header=False)
        for name, value in facts.items():
            table.add_row(name, f"{value:,.2f}" if isinstance(value, float) else f"{value:,}")
        Console(soft_wrap=True).print(parts.summary(), *([parts.remedy] if parts.remedy else []), table, sep="\n")
    return facts
