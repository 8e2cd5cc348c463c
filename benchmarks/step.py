"""One optimiser step of every objective, part by part, and DINO beside its plain formulation.

    python benchmarks/step.py                 # the six objectives, then DINO beside plain DINO: about two minutes
    python benchmarks/step.py --only dino     # one of simclr, moco, byol, barlow, mae, dino, plain

Process time on one thread, ViT-S/14, B = 2 images. Plain DINO has the published patch embedding, all logits at once,
Sinkhorn on the whole matrix, an EMA and an AdamW that loop over parameters. Every measurement has a process of its own,
so that peaks of memory are its own. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from benchmarks.patch_embed import folded_flops  # noqa: E402
from benchmarks.timeline import Timeline  # noqa: E402
from dinov2.cli import run  # noqa: E402
from dinov2.data.batch import Batch  # noqa: E402
from dinov2.data.masking import draw_mask  # noqa: E402
from dinov2.data.sample import ImageSpec, Sample  # noqa: E402
from dinov2.data.shards import write_shards  # noqa: E402
from dinov2.data.views import render  # noqa: E402
from dinov2.models import build_encoder  # noqa: E402
from dinov2.objectives import losses  # noqa: E402
from dinov2.objectives.base import Now  # noqa: E402
from dinov2.objectives.dino import DINO, Targets  # noqa: E402
from dinov2.train.build import build  # noqa: E402
from dinov2.train.optim import clip_gradients  # noqa: E402
from tests.dinov2.models.reference import PublishedPatchEmbed  # noqa: E402
from tests.tiny import schema, write_config  # noqa: E402

B = 2
NAMES = ("simclr", "moco", "byol", "barlow", "mae", "dino")
PARTS = ("data", "embed", "blocks", "heads", "losses", "optimiser", "EMA")
NOW = Now(step=0, lr=1e-4, weight_decay=0.04, momentum=0.994, teacher_temp=0.07)
FASTER, SMALLER, ROWS = 3.0, 5.0, 600  # targets: times in CPU, times in memory of the prototype loss at so many rows


def peak_mib() -> float:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- the six objectives


def samples():
    """Chips of ten bands, 264 pixels at 10 m."""
    fine, coarse = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
    rng = np.random.default_rng(0)
    for i in range(2 * B):
        images, specs = {}, {}
        for gsd, bands in ((10, fine), (20, coarse)):
            spec = ImageSpec("sentinel2_l2a", gsd, bands, "uint16", "reflectance", 1e-4, 0.0, 0)
            images[spec.key] = rng.integers(500, 4000, (len(bands), 2640 // gsd, 2640 // gsd)).astype(np.uint16)
            specs[spec.key] = spec
        yield Sample(f"s{i}", images, specs)


def flops(objective: nn.Module, batch: Batch) -> float:
    """GFLOP of a step by formula: multiply-adds x 2, forward once, and twice more where there is a gradient.

    Blocks: 2 x parameters x tokens + 4 x tokens^2 x width x depth; embedding: see ``folded_flops``; heads are left out
    but for DINO's prototypes.
    """
    encoder = objective.encoder
    width, depth, patch = encoder.embed_dim, len(encoder.blocks), encoder.patch_size
    weights = sum(p.numel() for p in encoder.blocks.parameters() if p.ndim == 2)
    total = 0.0
    for name, view in batch.views.items():
        images, channels = view["imgs"].shape[:2]
        patches = (view["imgs"].shape[-1] // patch) ** 2
        if name == "image":  # a masked autoencoder embeds what is visible only
            patches = round(patches * 0.25)
        tokens = patches + 1
        once = images * (2 * weights * tokens + 4 * tokens**2 * width * depth)
        attn = encoder.patch_embed.proj.in_features
        once += folded_flops(images, channels, patches, patch**2, attn, width, 16, channels)
        total += once * (
            3 + (name != "local" and (hasattr(objective, "teacher") or hasattr(objective, "teacher_heads")))
        )
    if isinstance(objective, DINO):
        rows = B * (2 + objective.local_crops) + int(batch.views["global"]["masks"].sum())
        total += 6 * rows * objective.heads.prototypes()["cls"].numel()
    return total / 1e9


def measure(name: str, steps: int = 2) -> dict[str, float]:
    """Seconds by part, GFLOP and peak memory of an objective's step, data included; the last of ``steps`` counts."""
    sized = {"dino": {"centering": "sinkhorn"}, "mae": {"size": 224, "decoder_dim": 512, "decoder_depth": 8}}
    raw = {
        "data": {"batch_size": B, "workers": 0},
        "model": {"arch": "vit_small"},
        "objective": {"name": name, **sized.get(name, {})},
        "train": {"steps": 10},
    }
    with tempfile.TemporaryDirectory() as folder:
        write_shards(samples(), folder)
        raw["data"]["shards"] = [folder]
        parts = build(schema.load(write_config(Path(folder) / "step.yaml", raw)))
        objective, batches = parts.objective, parts.stream.batches(0)
        timeline = Timeline()
        modules: dict[nn.Module, str] = {}
        for module_name, module in objective.named_modules():
            last = module_name.split(".")[-1]
            if last == "patch_embed":
                modules[module] = "embed"
            elif module_name.split(".")[-2:-1] in (["blocks"], ["decoder_blocks"]):
                modules[module] = "blocks" if "decoder" not in module_name else "heads"
            elif last in ("projector", "predictor", "mlp") and "blocks" not in module_name or last == "head":
                modules[module] = "heads"
        timeline.watch(modules)
        before = peak_mib()
        for _ in range(steps):
            timeline.seconds.clear()
            with timeline.during("data"):
                batch = render(next(batches), "cpu")
            terms = objective(batch, NOW)
            terms["loss"].backward()
            with timeline.during("optimiser"):
                clip_gradients(objective.named_parameters(), 3.0)
                parts.optimizer.step()
                parts.optimizer.zero_grad(set_to_none=True)
            with timeline.during("EMA"):
                objective.after_step(NOW)
        return {**timeline.seconds, "GFLOP": flops(objective, batch), "MiB": peak_mib() - before}


# ---- DINO beside its plain formulation


class PlainTargets(Targets):
    """``features`` are the probabilities themselves."""

    def entropy(self) -> Tensor:
        """Their mean entropy."""
        return -(self.features * self.features.clamp_min(1e-30).log()).sum(-1).mean()


class PlainDINO(DINO):
    """The same objective as it is usually written."""

    def targets(self, level: str, tokens: Tensor, prototypes: Tensor, temperature: float) -> Targets:
        """Sinkhorn-Knopp on the matrix of all logits."""
        q = torch.exp(self.teacher_heads.of(level)(tokens) / temperature).T  # [K, N]
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / len(q)
            q = q / q.sum(0, keepdim=True) / q.shape[1]
        return PlainTargets((q * q.shape[1]).T, prototypes, prototypes.new_zeros(len(prototypes)), temperature)

    def cross_entropy(self, own: Tensor, prototypes: Tensor, theirs: Tensor, by: Targets, weights: Tensor) -> Tensor:
        """Every pair of views by itself."""
        total = weights.new_zeros(())
        for view in own:
            logs = F.log_softmax(F.linear(view, prototypes) / self.student_temp, -1)  # [N, K]
            for probabilities in theirs:
                total = total - (weights * (probabilities * logs).sum(-1)).sum()
        return total

    def after_step(self, now: Now) -> None:
        """One parameter after the other."""
        pairs = (self.teacher_encoder, self.encoder), (self.teacher_heads, self.heads)
        with torch.no_grad():
            for teacher, student in pairs:
                for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                    t.mul_(now.momentum).add_(s, alpha=1 - now.momentum)


class Unfolded(nn.Module):
    """The published patch embedding behind our interface."""

    def __init__(self, folded: nn.Module) -> None:
        super().__init__()
        self.published = PublishedPatchEmbed(folded.proj.out_features)
        self.published.load_state_dict(folded.state_dict())

    def forward(self, x: dict[str, Tensor], keep: None = None) -> Tensor:
        """All patches."""
        return self.published(x)


def dino_batch(objective: DINO) -> Batch:
    """2 x 224 pixels of 9 bands and 4 x 98 of 3."""
    generator, views = torch.Generator().manual_seed(0), {}
    for view, channels in zip(objective.views, (9, 3), strict=True):
        rows = view.count * B
        ids = torch.linspace(443, 2200, channels).long().expand(rows, -1)
        views[view.name] = {
            "imgs": torch.randn(rows, channels, view.size, view.size, generator=generator),
            "chn_ids": ids,
        }
    spec = objective.views[0].mask
    masks = [draw_mask(spec, 224, np.random.default_rng(i)) for i in range(2 * B)]
    views["global"]["masks"] = torch.from_numpy(np.stack(masks))
    return Batch(views, torch.arange(B), [str(i) for i in range(B)])


def dino_steps(plain: bool, steps: int = 2) -> dict[str, float]:
    """Process time of the last of ``steps`` steps, and the loss of each."""
    torch.manual_seed(0)
    kind = PlainDINO if plain else DINO
    objective = kind(build_encoder("vit_small", attn_dim=2304), centering="sinkhorn")
    if plain:
        for encoder in (objective.encoder, objective.teacher_encoder):
            encoder.patch_embed = Unfolded(encoder.patch_embed)
        objective.teacher_encoder.requires_grad_(False)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    kernels = {"foreach": False} if plain else {"fused": True}
    optimizer = torch.optim.AdamW(parameters, lr=NOW.lr, weight_decay=NOW.weight_decay, **kernels)
    batch, found = dino_batch(objective), {}
    for step in range(steps):
        start = time.process_time()
        terms = objective(batch, NOW)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step(NOW)
        found |= {"seconds": time.process_time() - start, f"loss {step}": terms["loss"].item()}
    return found


def prototype_loss(plain: bool, rows: int = ROWS, prototypes: int = 65536, width: int = 256) -> dict[str, float]:
    """Growth in memory by the prototype loss of ``rows`` rows, forward and backward, in MiB."""
    generator = torch.Generator().manual_seed(0)
    own, theirs = (F.normalize(torch.randn(rows, width, generator=generator), dim=1) for _ in "st")
    student, w = own.requires_grad_(), torch.randn(prototypes, width, generator=generator).requires_grad_()
    teacher = w.detach().clone()
    weights = torch.full((rows,), 1 / rows)
    before = peak_mib()
    if plain:
        p = (theirs @ teacher.T / 0.07).softmax(-1)
        loss = -(weights * (p * F.log_softmax(student @ w.T / 0.1, -1)).sum(-1)).sum()
    else:
        loss = losses.prototype_cross_entropy(
            student[None], w, theirs[None], teacher, torch.zeros(prototypes), weights,
            temperature=0.1, teacher_temperature=0.07,
        )  # fmt: skip
    loss.backward()
    return {"MiB": peak_mib() - before, "loss": loss.item()}


# ---- the table


JOBS = {
    **{name: (lambda name=name: measure(name)) for name in NAMES},
    "dino step": lambda: dino_steps(plain=False),
    "plain step": lambda: dino_steps(plain=True),
    "dino loss": lambda: prototype_loss(plain=False),
    "plain loss": lambda: prototype_loss(plain=True),
}


def apart(job: str) -> dict[str, float]:
    """The job's numbers, from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--job", job]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def side_by_side() -> bool:
    """DINO beside plain DINO: whether all targets are met."""
    (new, old), (small, large) = ([apart(f"{form} {what}") for form in ("dino", "plain")] for what in ("step", "loss"))
    same = max(abs(new[k] - old[k]) / abs(old[k]) for k in new if k.startswith("loss"))
    ratio, memory = old["seconds"] / new["seconds"], large["MiB"] / small["MiB"]
    print(f"DINO step, 2 x 224 (9 bands) + 4 x 98 (3 bands): {new['seconds']:.2f} s, plain {old['seconds']:.2f} s: "
          f"{ratio:.1f}x (target {FASTER:g}x); losses of two steps differ by {same:.1e}")  # fmt: skip
    print(f"prototype loss of {ROWS} rows, 65,536 prototypes: {small['MiB']:.0f} MiB, plain {large['MiB']:.0f} MiB: "
          f"{memory:.1f}x (target {SMALLER:g}x)")  # fmt: skip
    return ratio >= FASTER and memory >= SMALLER and same < 1e-4


def main(argv: list[str]) -> int:
    """Print the table; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*NAMES, "plain"], help="one objective, or DINO beside plain DINO")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.job:
        print(json.dumps(JOBS[args.job]()))
        return 0
    names = [name for name in NAMES if args.only in (None, name)]
    if names:
        print("ms       " + "".join(f"{part:>10}" for part in (*PARTS, "all", "GFLOP", "MiB")))
    for name in names:
        row = apart(name)
        times = [row.get(part, 0.0) * 1e3 for part in PARTS]
        print(f"{name:9}" + "".join(f"{x:>10.0f}" for x in (*times, sum(times), row["GFLOP"], row["MiB"])), flush=True)
    return 0 if args.only not in (None, "plain") or side_by_side() else 1


if __name__ == "__main__":
    run(main)
