"""Golden adapters of losses, heads, schedules and parameter groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dinov2.data.batch import Batch
from dinov2.models import build_encoder
from dinov2.models.heads import DINOHead
from dinov2.models.zoo.dinov2 import unchunk
from dinov2.objectives import losses
from dinov2.objectives.base import Now
from dinov2.objectives.dino import DINO
from dinov2.objectives.two_view import enqueue
from dinov2.train.optim import parameter_groups
from dinov2.train.schedules import cosine, scaled_lr
from tests.golden.adapters_models import sizes
from tests.golden.harness import Adapter, Fixture, gradients

RULES = {"sqrt_wrt_1024": "sqrt_1024", "linear_wrt_256": "linear_256"}


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


def moco_queue(fixture: Fixture) -> dict[str, Tensor]:
    c, x, out = fixture.config, fixture.inputs, {}
    queue, pointer = x["bank_init"].clone(), torch.tensor([c["pointer_init"]])
    for step in range(c["n_steps"]):
        name = f"step{step}/q"
        query, key = x[name].clone().requires_grad_(), x[f"step{step}/k"]
        loss = losses.info_nce(query, key, c["temperature"], queue)
        out |= {f"out/step{step}/loss": loss.detach(), **gradients(loss, {name: query})}
        enqueue(queue, pointer, key)
        out |= {f"out/step{step}/bank": queue.clone(), f"out/step{step}/ptr": pointer.clone()}
    out["out/eval/loss_no_grad"] = losses.info_nce(x["eval/q"], x["eval/k"], c["temperature"], queue)
    return out | {"out/eval/bank": queue}


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
    return losses.prototype_cross_entropy(
        student, eye, teacher, eye, no_bias, weights, temperature=student_temp, teacher_temperature=1.0
    )


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
    weights = losses.masked_weights(masks)[masks]  # [M]
    centre = torch.full((c["K"],), c["center_init"])
    out = {}
    for step in range(c["centering_steps"]):
        out[f"out/centering/probs_step{step}"] = centred(teacher, centre, c["teacher_temp"])
        centre = moved(centre, teacher, c["center_momentum"])
        out[f"out/centering/center_after{step + 1}"] = centre[None, None]
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


# ---- one whole step


def our_name(name: str) -> str:
    """Our name of a parameter of the reference's training checkpoints."""
    role, name = re.fullmatch(r"(?:(student|teacher)\.)?(.*)", name).groups()
    prefix = "teacher_" if role == "teacher" else ""
    if name == "backbone.mask_token":
        return f"{prefix}mask_token"
    part, rest = name.split(".", 1)
    ours = {"backbone": "encoder", "dino_head": "heads.cls", "ibot_head": "heads.patch"}[part]
    return f"{prefix}{ours}.{unchunk(rest)}"


def build_dino(model: Mapping[str, Any], **options: Any) -> DINO:
    """DINO around the encoder that the reference's constructor arguments describe."""
    usual = {
        "ffn_layer": "mlp",
        "num_register_tokens": 0,
        "interpolate_offset": 0.1,
        "interpolate_antialias": False,
        "layer_norm_eps": 1e-6,
        "in_chans": 3,
    }
    embed = "spectral" if model.get("embed_layer") == "PanopticonPE" else "conv"
    return DINO(build_encoder("vit_base", embed=embed, **sizes({**usual, **model})), **options)


def ssl_step(fixture: Fixture) -> dict[str, Tensor]:
    c, x, state = fixture.config, fixture.inputs, fixture.state
    model = {**c["student"], **c[c["student"]["arch"]], "init_values": c["student"]["layerscale"] or None}
    model["img_size"] = model.get("pos_emb_img_size", c["crops"]["global_crops_size"])
    if "student.backbone.patch_embed.proj.weight" in state and model.get("embed_layer") != "PanopticonPE":
        model["in_chans"] = state["student.backbone.patch_embed.proj.weight"].shape[1]
    objective = build_dino(
        model | {"layer_norm_eps": c["layer_norm_eps"]},
        local_crops=c["crops"]["local_crops_number"],
        prototypes=c["dino"]["head_n_prototypes"],
        hidden_dim=c["dino"]["head_hidden_dim"],
        bottleneck_dim=c["dino"]["head_bottleneck_dim"],
        head_layers=c["dino"]["head_nlayers"],
        separate_ibot_head=c["ibot"]["separate_head"],
        ibot_weight=c["ibot"]["loss_weight"],
        koleo_weight=c["dino"]["koleo_loss_weight"],
        centering={"centering": "centering", "sinkhorn_knopp": "sinkhorn"}[c["train"]["centering"]],
        student_temp=c["student_temp"],
        center_momentum=c["center_momentum"],
    )
    assert c["dino"]["loss_weight"] == 1.0, "our class-token loss has weight 1"
    centres = ("dino_loss.center", "ibot_patch_loss.center")  # ours live in the bottleneck: 0 is the one they share
    assert not any(state[name].any() for name in centres), "the reference's centre must start at 0"
    ours = {our_name(name): tensor for name, tensor in state.items() if name not in centres}
    del ours["teacher_mask_token"]  # the teacher sees whole images
    objective.load_state_dict(ours | {name: b for name, b in objective.named_buffers() if name.startswith("centre_")})

    def view(name: str) -> dict[str, Tensor]:
        parts = {key.removeprefix(f"{name}/"): t for key, t in x.items() if key.startswith(f"{name}/")}
        return parts or {"imgs": x[name]}

    crops = {"global": view("collated_global_crops") | {"masks": x["collated_masks"]}}
    if c["crops"]["local_crops_number"]:
        crops["local"] = view("collated_local_crops")
    samples = len(x["collated_masks"]) // 2
    now = Now(step=0, lr=0.0, weight_decay=0.0, momentum=1.0, teacher_temp=c["teacher_temp"])
    terms = objective(Batch(crops, torch.arange(samples), [str(i) for i in range(samples)]), now)
    parameters = dict(objective.named_parameters())
    wanted = [name.removeprefix("grad/") for name in fixture.recorded if name.startswith("grad/")]
    out = gradients(terms["loss"], {name: parameters[our_name(name.removeprefix("state/"))] for name in wanted})
    objective.after_step(now)  # momentum 1: only the centres move
    for name, level, shape in (("dino", "cls", (1, -1)), ("ibot", "patch", (1, 1, -1))):
        centre = objective.teacher_heads.prototypes()[level] @ objective.get_buffer(f"centre_{level}")
        out[f"out/{name}_center_after"] = centre.view(shape)
    weighted = {
        "dino_local_crops_loss": terms["dino_local"],
        "dino_global_crops_loss": terms["dino_global"],
        "koleo_loss": terms["koleo"] * objective.koleo_weight,
        "ibot_loss": terms["ibot"] * objective.ibot_weight,
    }
    shown = {f"out/loss/{name}": term / c["total_loss_weights"][name] for name, term in weighted.items()}
    return out | shown | {"out/total_loss": terms["loss"], "out/teacher_temp": torch.tensor(c["teacher_temp"])}


# ---- optimiser and schedules


def multipliers(fixture: Fixture, objective: DINO, **options: Any) -> dict[str, Tensor]:
    """What ``parameter_groups`` gives the parameters that the fixture lists, in its order."""
    groups = parameter_groups(objective.named_parameters(), **options)
    group_of = {name: group for group in groups for name in group["names"]}
    listed = fixture.config["by_name"]
    backbone = {id(group_of[our_name(name)]) for name in listed if name.startswith("backbone.")}
    columns = {"lr_multiplier": "lr_multiplier", "wd_multiplier": "wd_multiplier", "freeze_epochs": "freeze_steps"}
    out = {
        f"out/{theirs}": torch.tensor([group_of[our_name(name)][ours] for name in listed], dtype=torch.float64)
        for theirs, ours in columns.items()
    }
    return out | {"out/n_fused_backbone_groups": torch.tensor(len(backbone))}


def listed_model(fixture: Fixture) -> dict[str, Any]:
    model = fixture.config["model"]
    return {**model, "init_values": 1e-5 if model["layer_scale"] else None}


def param_groups(fixture: Fixture) -> dict[str, Tensor]:
    c, head = fixture.config, fixture.config["head"]
    objective = build_dino(
        listed_model(fixture),
        prototypes=head["out_dim"],
        hidden_dim=head["hidden_dim"],
        bottleneck_dim=head["bottleneck_dim"],
        head_layers=head["nlayers"],
    )
    rates = {"layer_decay": c["layerwise_decay"], "patch_embed_lr": c["patch_embed_lr_mult"]}
    return multipliers(fixture, objective, **rates)


def param_groups_panopticon(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    objective = build_dino(listed_model(fixture), prototypes=4, hidden_dim=4, bottleneck_dim=4)
    lists = {"lr_multipliers": c["lr_multiplier_list"], "freeze": c["freeze_weights_list"]}
    translated = {
        option: {regex.replace("backbone", "encoder"): value for regex, value in pairs}
        for option, pairs in lists.items()
    }
    return multipliers(fixture, objective, layer_decay=c["args"]["lr_decay_rate"], **translated)


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
    ("contrastive", "moco_queue"): moco_queue,
    ("contrastive", "negcos_byol"): negcos_byol,
    ("contrastive", "ntxent"): ntxent,
    ("dinov2", "dino_head"): dino_head,
    ("dinov2", "dino_loss"): dino_loss,
    ("dinov2", "ibot_loss"): ibot_loss,
    ("dinov2", "koleo"): koleo,
    ("dinov2", "param_groups"): param_groups,
    ("dinov2", "schedules"): schedules,
    ("dinov2", "ssl_step_dinov2"): ssl_step,
    ("dinov2", "ssl_step_panopticon"): ssl_step,
    ("panopticon", "param_groups_panopticon"): param_groups_panopticon,
    ("panopticon", "schedule_with_hold"): schedule_with_hold,
}
