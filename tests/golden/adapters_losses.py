"""Golden adapters of losses, heads, schedules and parameter groups."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dinov2.models.heads import DINOHead
from dinov2.objectives import losses
from dinov2.train.schedules import cosine, scaled_lr
from tests.golden.harness import Adapter, Fixture, gradients

RULES = {"sqrt_wrt_1024": "sqrt_1024"}


def tracked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that ask for a gradient."""
    return {name: t.clone().requires_grad_() for name, t in tensors.items()}


# ---- two views


def pair_loss(fixture: Fixture, loss) -> dict[str, Tensor]:
    z = tracked({name: fixture.inputs[name] for name in ("z0", "z1")})
    value = loss(z["z0"], z["z1"])
    return {"out/loss": value, **gradients(value, z)}


def ntxent(fixture: Fixture) -> dict[str, Tensor]:
    return pair_loss(fixture, lambda a, b: losses.nt_xent(a, b, fixture.config["temperature"]))


def barlow(fixture: Fixture) -> dict[str, Tensor]:
    return pair_loss(fixture, lambda a, b: losses.cross_correlation(a, b, fixture.config["lambda_param"]))


def negcos_byol(fixture: Fixture) -> dict[str, Tensor]:
    x, z0, z1 = fixture.inputs, fixture.inputs["z0"], fixture.inputs["z1"]
    p = tracked({name: x[name] for name in ("p0", "p1")})
    symmetric = (losses.negative_cosine(p["p0"], z1) + losses.negative_cosine(p["p1"], z0)) / 2
    return {
        **pair_loss(fixture, losses.negative_cosine),
        "out/byol_symmetric": symmetric,
        **gradients(symmetric, p),
    }


# ---- DINO


def dino_head(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    head = DINOHead(
        c["in_dim"],
        c["out_dim"],
        layers=c["nlayers"],
        hidden_dim=c["hidden_dim"],
        bottleneck_dim=c["bottleneck_dim"],
        norm=c["use_bn"],
        bias=c["mlp_bias"],
    ).eval()
    head.load_state_dict(fixture.state)
    x = fixture.inputs["x"].clone().requires_grad_()
    y = head(x)
    wanted = {"x": x} | {f"state/{name}": p for name, p in head.named_parameters()}
    return {"out/y": y, **gradients((y * fixture.inputs["grad_weight"]).sum(), wanted)}


def centred(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Teacher targets by our centring, with prototypes that leave ``logits`` ``[N, K]`` as they are."""
    return (logits / temperature + losses.centering_bias(torch.eye(logits.shape[1]), centre, temperature)).softmax(-1)


def moved(centre: Tensor, logits: Tensor, momentum: float) -> Tensor:
    """The centre after a batch of teacher logits ``[N, K]``."""
    return losses.moved_centre(centre, logits.sum(0), torch.tensor(len(logits)), momentum)


def balanced(logits: Tensor, temperature: float, iterations: int, rows: Tensor | None = None) -> Tensor:
    """Teacher targets by our Sinkhorn-Knopp, likewise."""
    bias = losses.sinkhorn_bias(logits, torch.eye(logits.shape[1]), temperature, iterations, rows)
    return (logits / temperature + bias).softmax(-1)


def cross_entropy(student: Tensor, student_temp: float, probabilities: Tensor, weights: Tensor) -> Tensor:
    """Our prototype loss of student logits ``[S, N, K]`` and teacher probabilities ``[T, N, K]``."""
    eye, no_bias = torch.eye(student.shape[-1]), torch.zeros(student.shape[-1])
    # the logarithm of a probability is a logit; the floor keeps its softmax within float32
    teacher = probabilities.clamp_min(1e-38).log()
    return losses.prototype_cross_entropy(student, eye, student_temp, teacher, eye, 1.0, no_bias, weights)


def dino_loss(fixture: Fixture) -> dict[str, Tensor]:
    c, x = fixture.config, fixture.inputs
    teacher = torch.cat([x[f"teacher/{i}"] for i in range(c["n_global"])])  # [T*B, K]
    mean_over_batch = torch.full((c["batch"],), 1 / c["batch"])
    centre = torch.full((c["prototypes"],), c["center_init"])
    out = {}
    for step in range(c["centering_steps"]):
        logits = teacher * c["centering_input_scale"][step] + c["centering_input_offset"][step]
        out[f"out/centering/step{step}/probs"] = centred(logits, centre, c["teacher_temp"])
        centre = moved(centre, logits, c["center_momentum"])
    out[f"out/centering/center_after{c['centering_steps']}"] = centre[None]
    for case in c["sinkhorn"]:
        step = case["input_step"]
        logits = teacher * c["centering_input_scale"][step] + c["centering_input_offset"][step]
        out[f"out/{case['output']}"] = balanced(logits, c["teacher_temp"], case["n_iterations"])
    for name, source in c["loss_probs"].items():
        probabilities = out[f"out/{source}"].view(c["n_global"], c["batch"], -1)  # [T, B, K]
        students = tracked({f"{name}/student/{i}": x[f"student/{i}"] for i in range(c["n_global"] + c["n_local"])})
        everyone = torch.stack(list(students.values()))  # [S, B, K]
        loss = cross_entropy(everyone, c["student_temp"], probabilities, mean_over_batch)
        pairs = c["loss_global_cat"]
        student = everyone[pairs["student"]].flatten(0, 1)[None]  # [1, T*B, K]
        swapped = probabilities[pairs["teacher_chunks"]].flatten(0, 1)[None]
        over_rows = torch.full((student.shape[1],), 1 / student.shape[1])
        out[f"out/{name}/loss_all_pairs"] = loss
        out[f"out/{name}/loss_global_cat"] = cross_entropy(student, c["student_temp"], swapped, over_rows)
        out |= gradients(loss, students)
    return out


def ibot_loss(fixture: Fixture) -> dict[str, Tensor]:
    c, x = fixture.config, fixture.inputs
    masks = x["masks"]  # [B, N]
    teacher = x["teacher_full"].flatten(0, 1)[x["mask_indices"]]  # [M, K]
    weights = losses.masked_weights(masks)  # [M]
    centre = torch.full((c["K"],), c["center_init"])
    out = {}
    for step in range(c["centering_steps"]):
        out[f"out/centering/probs_step{step}"] = centred(teacher, centre, c["teacher_temp"])
        if step == 0:
            centre = moved(centre, teacher, c["center_momentum"])
            out["out/centering/center_after1"] = centre[None, None]
    for case in c["sinkhorn"]:
        padded = torch.cat([teacher, torch.full((case["pad_rows"], c["K"]), case.get("pad_value", 0.0))])
        real = torch.arange(len(padded)) < case["n_masked_patches"]
        out[f"out/{case['output']}"] = balanced(padded, c["teacher_temp"], case["n_iterations"], real)
    probabilities = {name: out[f"out/{source}"] for name, source in c["forward_masked_probs"].items()}
    probabilities["full"] = (teacher / c["teacher_temp"]).softmax(-1)
    for name, p in probabilities.items():
        student = tracked({f"{name}/student_full": x["student_full"]})
        rows = student[f"{name}/student_full"].flatten(0, 1)[x["mask_indices"]]
        loss = cross_entropy(rows[None], c["student_temp"], p[None], weights)
        out[f"out/{name}/{'forward' if name == 'full' else 'forward_masked'}"] = loss
        out |= gradients(loss, student)
    return out


def koleo(fixture: Fixture) -> dict[str, Tensor]:
    x = tracked({"x": fixture.inputs["x"]})
    loss = losses.koleo(x["x"])
    unit = F.normalize(fixture.inputs["x"], dim=1)
    return {
        "out/loss": loss,
        "out/nn_index": losses.nearest_neighbours(unit, unit),
        "out/loss_with_duplicates": losses.koleo(fixture.inputs["x_with_duplicate_rows"]),
        **gradients(loss, x),
    }


# ---- schedules


def series(schedule, steps: int) -> Tensor:
    return torch.tensor([schedule(step) for step in range(steps)], dtype=torch.float64)


def schedules(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    out = {}
    for name, s in c["series"].items():
        schedule = cosine(
            s["base_value"],
            s["final_value"],
            s["total_iters"],
            freeze=s["freeze_iters"],
            warmup=s["warmup_iters"],
            start=s["start_warmup_value"],
        )
        out[f"out/{name}"] = series(schedule, c["steps"])
        out[f"out/{name}"][: s["zero_first_iters"]] = 0  # ours: a group's freeze_steps
    rates = [scaled_lr(c["base_lr"], s["batch"] * s["world"], RULES[s["rule"]]) for s in c["scaled_lr_cases"]]
    return out | {"out/scaled_lr": torch.tensor(rates, dtype=torch.float64)}


def schedule_with_hold(fixture: Fixture) -> dict[str, Tensor]:
    out = {}
    for i, c in enumerate(fixture.config["cases"]):
        schedule = cosine(
            c["base_value"],
            c["final_value"],
            c["total_iters"],
            freeze=c["freeze_iters"],
            warmup=c["warmup_iters"],
            hold=c["hold_iters"],
            start=c["start_warmup_value"],
        )
        out[f"out/{i}"] = series(schedule, c["total_iters"] + fixture.config["steps_past_end"])
    return out


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("contrastive", "barlow"): barlow,
    ("contrastive", "negcos_byol"): negcos_byol,
    ("contrastive", "ntxent"): ntxent,
    ("dinov2", "dino_head"): dino_head,
    ("dinov2", "dino_loss"): dino_loss,
    ("dinov2", "ibot_loss"): ibot_loss,
    ("dinov2", "koleo"): koleo,
    ("dinov2", "schedules"): schedules,
    ("panopticon", "schedule_with_hold"): schedule_with_hold,
}
