"""AdamW: which parameter learns how fast, decays how much, and from when on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinov2 import distributed
from dinov2.objectives.base import Now
from dinov2.train.parallel import is_sharded, own

BLOCK = re.compile(r"encoder\.blocks\.(?:\d+\.)?(\d+)\.")  # the index within a chunk is global: blocks.<chunk>.<index>.
EMBEDDING = re.compile(r"(encoder\.)?(patch_embed|pos_embed|cls_token|mask_token|register_tokens)\b")


def _layer(name: str, depth: int) -> int:
    """0 for embeddings and tokens, 1..depth for the blocks, depth + 1 for everything above them."""
    block = BLOCK.match(name)
    return int(block[1]) + 1 if block else 0 if EMBEDDING.match(name) else depth + 1


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    layer_decay: float = 1.0,
    patch_embed_lr: float = 1.0,
    lr_multipliers: Mapping[str, float] | None = None,
    freeze: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Groups of parameters with ``names``, ``lr_multiplier``, ``wd_multiplier`` and ``freeze_steps``.

    The rate falls by ``layer_decay`` per layer below the top of ``encoder.`` (BEiT, arXiv 2106.08254); it is multiplied
    by ``patch_embed_lr`` and by every regex of ``lr_multipliers`` that is found in the name; the last regex of
    ``freeze`` that is found says for how many steps it is 0. Vectors (biases, norms, LayerScale) do not decay. A regex
    found in no name raises ValueError. ``named`` are pairs as of ``named_parameters()``; frozen ones are left out.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    depth = max((int(m[1]) + 1 for name, _ in trainable if (m := BLOCK.match(name))), default=0)
    factors = {r"^encoder\.patch_embed\.": patch_embed_lr} | dict(lr_multipliers or {})
    for option, patterns in (("lr_multipliers", lr_multipliers or {}), ("freeze", freeze or {})):
        for pattern in patterns:
            try:
                found = any(re.search(pattern, name) for name, _ in trainable)
            except re.error as error:
                raise ValueError(f"optim.{option}: {pattern!r} is no regular expression ({error})") from error
            if not found:
                raise ValueError(f"optim.{option}: {pattern!r} is found in no trainable parameter's name")
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    for name, p in trainable:
        rate = layer_decay ** (depth + 1 - _layer(name, depth))
        for pattern, factor in factors.items():
            rate *= factor if re.search(pattern, name) else 1.0
        decay = 0.0 if p.ndim <= 1 else 1.0
        frozen = ([0] + [steps for pattern, steps in (freeze or {}).items() if re.search(pattern, name)])[-1]
        numbers = {"lr_multiplier": rate, "wd_multiplier": decay, "freeze_steps": frozen}
        group = groups.setdefault((rate, decay, frozen), {"params": [], "names": [], **numbers})
        group["params"].append(p)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(objective: nn.Module, optim: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW over the objective's trainable parameters; ``optim`` holds the options of that section.

    Fused: one pass over the parameters, on CPUs too, and the same bits on every run.
    """
    keys = ("layer_decay", "patch_embed_lr", "lr_multipliers", "freeze")
    groups = parameter_groups(objective.named_parameters(), **{key: optim[key] for key in keys})
    return torch.optim.AdamW(groups, lr=optim["lr"], betas=tuple(optim["betas"]), fused=True)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as ``<parameter>.<name>``; zeros where it has not stepped yet, as its first step makes them."""
    found: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            state = optimizer.state[p]
            if not state:
                zeros = {
                    key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in ("exp_avg", "exp_avg_sq")
                }
                state.update(step=torch.zeros((), device=p.device), **zeros)
            found |= {f"{name}.{key}": value for key, value in state.items()}
    return found


def set_rates(optimizer: torch.optim.Optimizer, now: Now) -> None:
    """Give every group the learning rate and weight decay of this step."""
    for group in optimizer.param_groups:
        group["lr"] = now.lr * group["lr_multiplier"] if now.step >= group["freeze_steps"] else 0.0
        group["weight_decay"] = now.weight_decay * group["wd_multiplier"]


def part_of(name: str) -> str:
    """The part of an objective that a parameter belongs to: ``patch_embed``, ``blocks`` (with tokens), ``heads``."""
    if name.startswith("encoder.patch_embed."):
        return "patch_embed"
    return "blocks" if name.startswith("encoder.") else "heads"


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """``lr/<part>``: the highest learning rate of each part at this step."""
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        for key in {f"lr/{part_of(name)}" for name in group["names"]}:
            found[key] = max(found.get(key, 0.0), group["lr"])
    return found


def norm_of_each(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norms ``[N]`` of whole or sharded tensors, the same on every rank."""
    norms = torch.stack(torch._foreach_norm([own(t) for t in tensors]))
    sharded = torch.tensor([is_sharded(t) for t in tensors], device=norms.device)
    return torch.where(sharded, distributed.sum_(norms.square()).sqrt(), norms) if sharded.any() else norms


def clip_gradients(named: Iterable[tuple[str, nn.Parameter]], max_norm: float) -> dict[str, Tensor]:
    """Scale all gradients so that their joint L2 norm is at most ``max_norm``; the norms before.

    ``grad_norm`` is that of all, ``grad_norm/<part>`` of each part; ``named`` are pairs as of ``named_parameters()``.
    """
    trained = {name: p for name, p in named if p.grad is not None}
    norms = norm_of_each([p.grad for p in trained.values() if p.grad is not None])
    total = torch.linalg.vector_norm(norms)
    torch.nn.utils.clip_grads_with_norm_(trained.values(), max_norm, total)
    found = {"grad_norm": total}
    parts = [part_of(name) for name in trained]
    for part in dict.fromkeys(parts):
        own = torch.tensor([p == part for p in parts], device=norms.device)
        found[f"grad_norm/{part}"] = torch.linalg.vector_norm(norms * own)
    return found
