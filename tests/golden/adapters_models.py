"""Golden adapters of patch embeddings, encoders and masked autoencoders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinov2.models import VisionTransformer
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.zoo import load_encoder, load_released
from tests.golden.harness import Adapter, Fixture, gradients


def published(inputs: Mapping[str, Tensor], case: str, *, masked: bool = False) -> dict[str, Tensor]:
    """The published input dictionary of one case, cloned so that a change in place would show."""
    x = {name: inputs[f"{case}{name}"].clone() for name in ("imgs", "chn_ids")}
    return {**x, "spec_masks": inputs[f"{case}spec_masks"]} if masked else x


def embed_options(attn_dim: int, chnfus_cfg: dict[str, Any]) -> dict[str, Any]:
    """Our arguments for Panopticon's nested ones (its defaults: 8 heads, no bias, no norm)."""
    attention, channels = chnfus_cfg.get("attn_cfg", {}), chnfus_cfg.get("chnemb_cfg", {})
    return {
        "attn_dim": attn_dim,
        "num_heads": attention.get("num_heads", 8),
        "qkv_bias": attention.get("qkv_bias", False),
        "layer_norm": chnfus_cfg.get("layer_norm", False),
        "full_spectra": channels.get("use_full_spectra", False),
        "opt_coarsity": channels.get("opt_coarsity", 1),
    }


def patch_embed(fixture: Fixture) -> dict[str, Tensor]:
    config, inputs = fixture.config, fixture.inputs
    options = embed_options(config["attn_dim"], config["chnfus_cfg"])
    module = SpectralPatchEmbed(config["embed_dim"], config["patch_size"], **options)
    module.load_state_dict(fixture.state)
    out = {}
    for case in fixture.cases:
        x = published(inputs, case)
        out[f"out/{case}tokens"] = out[f"out/{case}nomask"] = module(x)
        ids = x["chn_ids"] if module.chnfus.chnemb.full_spectra or x["chn_ids"].ndim == 2 else x["chn_ids"][..., 0]
        channels = module.chnfus.chnemb(ids)
        out[f"out/{case}chnemb"] = channels[:1] if case else channels
        out[f"out/{case}chn_ids_after_call"] = x["chn_ids"]
        if f"{case}spec_masks" in inputs:
            out[f"out/{case}masked"] = module(published(inputs, case, masked=True))
    if "grad" in config:
        case = f"{config['grad']['case']}/"
        x = published(inputs, case, masked=config["grad"]["spec_masks"])
        x["imgs"].requires_grad_()
        loss = (module(x) * inputs[config["grad"]["weight"].removeprefix("in/")]).sum()
        wanted = {f"state/{k}": p for k, p in module.named_parameters()}
        out |= gradients(loss, {**wanted, "imgs": x["imgs"]})
    return out


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our encoder options for DINOv2's constructor arguments."""
    same = ("img_size patch_size embed_dim depth num_heads mlp_ratio init_values qkv_bias proj_bias ffn_bias").split()
    spectral = config.get("embed_layer") == "PanopticonPE"
    return {
        **{k: config[k] for k in same if k in config},
        "ffn": "swiglu" if config["ffn_layer"].startswith("swiglu") else config["ffn_layer"],
        "registers": config["num_register_tokens"],
        "interpolate_offset": config["interpolate_offset"],
        "interpolate_antialias": config["interpolate_antialias"],
        "norm_eps": config["layer_norm_eps"],
        "embed_options": embed_options(**config["pe_args"]) if spectral else {"in_chans": config["in_chans"]},
    }


@torch.no_grad()
def vit(fixture: Fixture) -> dict[str, Tensor]:
    config, inputs = fixture.config, fixture.inputs
    name = "panopticon_vitb14" if config.get("embed_layer") == "PanopticonPE" else "dinov2_vitb14"
    model, beside = load_released(name, dict(fixture.state), **sizes(config))
    assert isinstance(model, VisionTransformer)
    out: dict[str, Tensor] = {}
    for case in fixture.cases:
        x = inputs[f"{case}x"] if f"{case}x" in inputs else published(inputs, case)
        put = {"forward": model(x), **released_names(model.forward_features(x))}
        put["pos_interp"] = torch.cat(model.positions(model.grid(x)), 1)
        if f"{case}masks" in inputs:
            masked = model.forward_features(x, masks=inputs[f"{case}masks"], fill=beside["mask_token"][0])
            put["masked_x_norm_patchtokens"] = masked["patches"]
        if f"{case}spec_masks" in inputs:
            put["spec_masked_forward"] = model(published(inputs, case, masked=True))
        put |= intermediate(model, x, config, case.removesuffix("/"))
        out |= {f"out/{case}{k}": v for k, v in put.items()}
    return out


def released_names(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our outputs under DINOv2's names."""
    names = {"cls": "x_norm_clstoken", "registers": "x_norm_regtokens", "patches": "x_norm_patchtokens"}
    return {names.get(k, "x_prenorm"): v for k, v in features.items()}


def intermediate(model: VisionTransformer, x: Any, config: Mapping[str, Any], case: str) -> dict[str, Tensor]:
    """The recorded calls of get_intermediate_layers."""
    out: dict[str, Tensor] = {}
    if case in config.get("inter_norm", {}).get("cases", []):
        layers = config["inter_norm"]["layers"]
        pairs = model.get_intermediate_layers(x, n=layers, return_class_token=True)
        for layer, (patches, cls) in zip(layers, pairs, strict=True):
            out |= {f"inter_norm/{layer}/patch": patches, f"inter_norm/{layer}/cls": cls}
    if case in config.get("inter_raw", {}).get("cases", []):
        n = config["inter_raw"]["last_n"]
        for i, patches in enumerate(model.get_intermediate_layers(x, n=n, norm=False)):
            out[f"inter_raw_last{n}/{i}"] = patches
    if case in config.get("inter_last", {}).get("cases", []):
        n = config["inter_last"]["last_n"]
        pairs = model.get_intermediate_layers(x, n=n, reshape=True, return_class_token=True)
        for i, (maps, cls) in enumerate(pairs):
            out |= {f"inter_last{n}/{i}/map": maps, f"inter_last{n}/{i}/cls": cls}
    return out


def layout(fixture: Fixture) -> dict[str, Tensor]:
    """The full-size released key layout loads strictly (on the meta device: shapes without memory)."""
    name = (
        fixture.config["layout"].removesuffix("4") if "_reg" in fixture.config["layout"] else fixture.config["layout"]
    )
    with torch.device("meta"):
        load_encoder(name, dict(fixture.state))
    return {}


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("panopticon", "patch_embed"): patch_embed,
    ("panopticon", "vit"): vit,
    ("dinov2", "vit"): vit,
    ("layouts", "panopticon"): layout,
    ("layouts", "dinov2"): layout,
}
