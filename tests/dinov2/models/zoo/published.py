"""Tiny models of the zoo, their inputs, and their states in the layout of the published files."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.zoo import ZOO, load_encoder

VIT = dict(embed_dim=32, depth=2, num_heads=4, img_size=32, patch_size=8)
SIZES: dict[str, dict[str, Any]] = {
    "DINOv2": VIT,
    "DINOv2 with registers": VIT,
    "Panopticon": {**VIT, "attn_dim": 24, "attn_heads": 4},
    "DOFA": {**VIT, "wave_dim": 8},
    "CROMA": dict(embed_dim=32, depth=4),
    "Prithvi": VIT,
    "Scale-MAE": VIT,
    "SSL4EO-S12 MAE": VIT,
    "SSL4EO-S12 radar MAE": VIT,
    "SSL4EO-S12 DINO": VIT,
    "SSL4EO-S12 MoCo": VIT,
    "SpectralGPT": VIT,
    "SatMAE": {**VIT, "channel_embed": 8},
    "RemoteCLIP": VIT,
    "DINOv3": VIT,
    "PhilEO U-Net": dict(embed_dim=32, img_size=32, dims=(8, 12), depths=(2, 1)),
    "PhilEO ViT": {**VIT, "latent_dim": 24},
    "PhilEO geo-aware U-Net": dict(dims=(8, 12), depths=(1, 2)),
}
BY_WAVELENGTH = ("DOFA", "Panopticon")
# our CROMA names -> released ones, written down independently of the loader's table
CROMA = (
    (r"parts\.", ""),
    (r"(s[12]_encoder)\.(blocks|norm)", r"\1.transformer.\2"),
    (r"\.patch_embed\.proj", ".linear_input"),
    (r"\.norm\.(weight|bias)$", r".norm_out.\1"),
    (r"\.blocks\.(\d+)\.attn\.qkv", r".layers.\1.0.to_qkv"),
    (r"\.blocks\.(\d+)\.attn\.proj", r".layers.\1.0.to_out"),
    (r"\.blocks\.(\d+)\.norm1", r".layers.\1.0.input_norm"),
    (r"\.blocks\.(\d+)\.cross\.proj", r".layers.\1.1.to_out"),
    (r"\.blocks\.(\d+)\.cross\.", r".layers.\1.1.to_"),
    (r"\.blocks\.(\d+)\.norm_cross", r".layers.\1.1.input_norm"),
    (r"(joint_encoder)\.blocks\.(\d+)\.", r"\1.layers.\2.2."),
    (r"\.blocks\.(\d+)\.", r".layers.\1.1."),
    (r"\.norm2\.", ".input_norm."),
    (r"\.mlp\.fc1", ".net.0"),
    (r"\.mlp\.fc2", ".net.3"),
)


@torch.no_grad()
def tiny(name: str, weights: Any = "random", **sizes: Any) -> Any:
    """A small model ``name``; random weights depend on the name alone."""
    torch.manual_seed(sum(map(ord, name)))
    model = load_encoder(name, weights, **{**SIZES[ZOO[name].family], **sizes})
    if weights == "random":
        for p in model.parameters():
            nn.init.normal_(p, std=0.2)
        if name.startswith("dinov3"):  # released without biases of keys
            for block in model.blocks:
                block.attn.qkv.bias.chunk(3)[1].zero_()
    return model


def channels(name: str) -> int:
    """How many channels inputs of this model have in these tests."""
    expects = ZOO[name].expects
    return sum(len(b.names) for b in expects.bands) if expects and expects.bands else 3


def example(name: str, height: int = 32, width: int = 32, device: str = "cpu") -> Any:
    """Two images for a model."""
    frames = [n] if (n := ZOO[name].expects.frames) > 1 else []
    imgs = torch.randn(2, channels(name), *frames, height, width, device=device)
    if ZOO[name].family not in BY_WAVELENGTH:
        return imgs
    return {"imgs": imgs, "chn_ids": torch.tensor([[665, 560, 490]], device=device).repeat(2, 1)}


# our RemoteCLIP names -> released ones
CLIP = (
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^projection\.weight$", "proj"),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"attn\.qkv\.", "attn.in_proj_"),
    (r"attn\.proj\.", "attn.out_proj."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


def split(state: dict[str, Tensor], part: str, names: tuple[str, str, str]) -> dict[str, Tensor]:
    """``part`` (a regex) of queries, keys and values as three entries."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if re.search(part, key):
            out |= {re.sub(part, n, key): v for n, v in zip(names, value.chunk(3), strict=True)}
        else:
            out[key] = value
    return out


def croma_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """Nested by encoder, under the released names."""
    nested: dict[str, Any] = {}
    for key, value in split(state, r"cross\.qkv", ("cross.q", "cross.k", "cross.v")).items():
        for ours, theirs in CROMA:
            key = re.sub(ours, theirs, key)
        top, _, rest = key.partition(".")
        nested.setdefault(top, {})[rest] = value.flatten(1) if rest.startswith("linear_input.w") else value
    return nested


def clip_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Image and text encoder under OpenCLIP's names."""
    shapes = {"cls_token": lambda v: v.flatten(), "pos_embed": lambda v: v[0], "projection.weight": lambda v: v.T}
    image = {}
    for key, value in state.items():
        name = key
        for ours, theirs in CLIP:
            name = re.sub(ours, theirs, name)
        image[f"visual.{name}"] = shapes.get(key, lambda v: v)(value)
    one = next(iter(state.values())).new_ones(1)
    text = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
            "transformer.resblocks.0.ln_1.weight")  # fmt: skip
    return {**image, **dict.fromkeys(text, one)}


def dinov3_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With registers under their released name, and biases of keys behind a mask."""
    out = {k.replace("register_tokens", "storage_tokens"): v for k, v in state.items()}
    for key in [k for k in out if k.endswith("qkv.bias")]:
        keys = torch.ones_like(out[key])
        keys[len(keys) // 3 : 2 * len(keys) // 3] = 0
        out |= {f"{key}_mask": keys, key: out[key] * keys + (1 - keys)}
    norm = {f"local_cls_norm.{end}": out[f"norm.{end}"] for end in ("weight", "bias")}
    return {**out, **norm, "mask_token": out["cls_token"][0]}


def phileo_file(family: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """As the trainer of the U-Net and the ViT wrote it, or the bench's wrapped network."""
    one = torch.ones(1, device=next(iter(state.values())).device)
    if family == "PhilEO geo-aware U-Net":
        return prefixed("coreunet.", {**state, "head.1.bias": one})
    ours = {k.replace("patch_embed.stem.", "stem."): v for k, v in state.items()}
    inner = ("encoder.", "encoder.vit_encoder.")[family == "PhilEO ViT"]
    theirs = {k if k.startswith("stem.") else inner + k: v for k, v in ours.items()}
    theirs = {k.replace("vit_encoder.linear_proj", "linear_proj"): v for k, v in theirs.items()}
    beside = {"encoder.head_clouds.bias": one, "decoder.norm.weight": one, "head.conv3.bias": one}
    return {"model": prefixed("module.", {**theirs, **beside}), "epoch": 3, "best_score": 0.1}


def published(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """A file as the model's authors wrote it, with what it holds beside the encoder."""
    one = torch.ones(1, device=next(iter(state.values())).device)
    decoder = {"mask_token": one, "decoder_embed.weight": one, "decoder_blocks.0.norm1.weight": one}
    family = ZOO[name].family
    if family == "CROMA":
        return croma_file(state)
    if family == "DOFA":
        return {**state, "mask_token": one, "projector.weight": one, "projector.bias": one}
    if family == "Prithvi" and name != "prithvi":
        head = {"neck.fpn1.0.weight": one, "decode_head.conv_seg.weight": one, "auxiliary_head.conv_seg.weight": one}
        return {"meta": {"epoch": 1}, "state_dict": {**prefixed("backbone.", state), **head}, "optimizer": {}}
    if family == "Prithvi":
        return {**prefixed("encoder.", state), "decoder.norm.weight": one, "decoder.mask_token": one}
    if family == "Scale-MAE":
        own = {"pos_embed": one, "mask_token_decoder": one, "fpn.up.weight": one, "fcn.convs.0.weight": one}
        return {"model": {**state, **decoder, **own}, "args": Namespace(lr=1e-3, output_dir=Path("out")), "epoch": 800}
    if family in ("SSL4EO-S12 MAE", "SSL4EO-S12 radar MAE"):
        return {"model": {**state, **decoder}, "optimizer": {"state": {0: {"exp_avg": one}}}, "epoch": 99}
    if family == "SSL4EO-S12 DINO":
        head = {"head.mlp.0.weight": one}
        return {"student": prefixed("module.", head), "teacher": {**prefixed("backbone.", state), **head}}
    if family == "SSL4EO-S12 MoCo":
        base = {**state, "head.0.weight": one}
        pair = {**prefixed("module.base_encoder.", base), **prefixed("module.momentum_encoder.", base)}
        return {"state_dict": {**pair, "module.predictor.0.weight": one}, "arch": "vit_small"}
    if family == "SpectralGPT":
        return {"model": {**split(state, r"attn\.qkv", ("attn.q", "attn.k", "attn.v")), **decoder}}
    if family == "SatMAE":
        return {"model": {**state, **decoder, "decoder_channel_embed": one}}
    if family == "RemoteCLIP":
        return clip_file(state)
    if family == "DINOv3":
        return dinov3_file(state)
    if family.startswith("PhilEO"):
        return phileo_file(family, state)
    return {**state, "mask_token": torch.ones(1, 32, device=one.device)}
