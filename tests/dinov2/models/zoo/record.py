"""Records what other implementations of RemoteCLIP and DINOv3 give on tiny models, under the published files' names.

    pip install transformers
    python tests/dinov2/models/zoo/record.py

writes recorded/*.safetensors: the state under ``state/``, images under ``in/``, outputs under ``out/``. The recorded
files are of transformers 5.23; CLIP is run with GELU as OpenCLIP's ViT-B-32 is.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, DINOv3ViTConfig, DINOv3ViTModel

HERE = Path(__file__).resolve().parent / "recorded"
WIDTH, DEPTH, HEADS, PATCH = 16, 2, 2, 4


def randomise(model: nn.Module) -> dict[str, Tensor]:
    """Weights that no term of the function is small with; the state."""
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return {k: v.clone() for k, v in model.eval().state_dict().items()}


def layers(state: dict[str, Tensor], prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    """``prefix.<i>.<theirs>.{weight,bias}`` under the published names."""
    return {
        f"{i}.{ours}{end}": state[f"{prefix}.{i}.{theirs}{end}"]
        for i in range(DEPTH)
        for theirs, ours in names.items()
        for end in (".weight", ".bias", "")
        if f"{prefix}.{i}.{theirs}{end}" in state
    }


def joined(state: dict[str, Tensor], start: str, end: str) -> Tensor:
    """Queries, keys (without bias: 0), values as one."""
    q = state[f"{start}.q_proj.{end}"]
    return torch.cat([state.get(f"{start}.{which}_proj.{end}", torch.zeros_like(q)) for which in "qkv"])


@torch.no_grad()
def remoteclip() -> dict[str, Tensor]:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        image_size=16, patch_size=PATCH, projection_dim=8, hidden_act="gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config)
    own = {k.removeprefix("vision_model."): v for k, v in randomise(model).items()}
    state = {
        "class_embedding": own["embeddings.class_embedding"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "conv1.weight": own["embeddings.patch_embedding.weight"],
        "proj": own["visual_projection.weight"].T.contiguous(),
        **{f"ln_pre.{e}": own[f"pre_layrnorm.{e}"] for e in ("weight", "bias")},
        **{f"ln_post.{e}": own[f"post_layernorm.{e}"] for e in ("weight", "bias")},
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
             "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    blocks = layers(own, "encoder.layers", names)
    for i in range(DEPTH):
        for end in ("weight", "bias"):
            blocks[f"{i}.attn.in_proj_{end}"] = joined(own, f"encoder.layers.{i}.self_attn", end)
    state |= {f"transformer.resblocks.{k}": v for k, v in blocks.items()}
    x = torch.randn(2, 3, 16, 16)
    out = model(x, output_hidden_states=True)
    tokens = {f"out/tokens/{i}": h for i, h in enumerate(out.hidden_states[1:])}
    return {f"state/visual.{k}": v for k, v in state.items()} | {"in/x": x, "out/embedding": out.image_embeds, **tokens}


@torch.no_grad()
def dinov3() -> dict[str, Tensor]:
    config = DINOv3ViTConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        image_size=16, patch_size=PATCH, num_register_tokens=4, layerscale_value=1.0,
    )  # fmt: skip
    model = DINOv3ViTModel(config)
    own = randomise(model)
    embeddings = {"cls_token": "cls_token", "register_tokens": "storage_tokens",
                  "patch_embeddings.weight": "patch_embed.proj.weight",
                  "patch_embeddings.bias": "patch_embed.proj.bias"}  # fmt: skip
    state = {ours: own[f"embeddings.{theirs}"] for theirs, ours in embeddings.items()}
    state |= {"mask_token": own["embeddings.mask_token"][0], "norm.weight": own["norm.weight"]}
    state |= {"norm.bias": own["norm.bias"], "rope_embed.periods": 1 / model.rope_embeddings.inv_freq}
    state |= {"local_cls_norm.weight": own["norm.weight"] + 1, "local_cls_norm.bias": own["norm.bias"] + 1}
    names = {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj", "mlp.up_proj": "mlp.fc1",
             "mlp.down_proj": "mlp.fc2", "layer_scale1.lambda1": "ls1.gamma",
             "layer_scale2.lambda1": "ls2.gamma"}  # fmt: skip
    blocks = layers(own, "model.layer", names)
    for i in range(DEPTH):
        weight, bias = (joined(own, f"model.layer.{i}.attention", end) for end in ("weight", "bias"))
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0  # as released: biases of keys are there and count nothing
        blocks |= {f"{i}.attn.qkv.weight": weight, f"{i}.attn.qkv.bias": bias + (1 - mask),
                   f"{i}.attn.qkv.bias_mask": mask}  # fmt: skip
    state |= {f"blocks.{k}": v for k, v in blocks.items()}
    x = torch.randn(2, 3, 12, 20)  # not square: rows and columns differ
    out = model(x)
    return {f"state/{k}": v for k, v in state.items()} | {"in/x": x, "out/tokens": out.last_hidden_state}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for make in (remoteclip, dinov3):
        save_file({k: v.contiguous() for k, v in make().items()}, HERE / f"{make.__name__}.safetensors")
