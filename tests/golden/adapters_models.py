"""Golden adapters of patch embeddings, encoders and masked autoencoders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinov2.data.batch import Batch
from dinov2.models import SPECTRAL, VisionTransformer, build_encoder
from dinov2.models.layers import interpolate_positions, sincos_positions
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.zoo import load_encoder, load_released
from dinov2.objectives.mae import MAE
from tests.golden.harness import Adapter, Fixture, gradients

DECODER_ARGUMENTS = {"decoder_dim": "embed_dim", "decoder_depth": "depth", "decoder_heads": "num_heads"}


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


def encoder_options(attn_dim: int, chnfus_cfg: dict[str, Any]) -> dict[str, Any]:
    """The same as options of build_encoder."""
    options = embed_options(attn_dim, chnfus_cfg)
    return {ours: options[theirs] for ours, theirs in SPECTRAL.items() if theirs in options}


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our encoder options for DINOv2's constructor arguments."""
    same = "img_size patch_size embed_dim depth num_heads mlp_ratio qkv_bias proj_bias ffn_bias".split()
    spectral = config.get("embed_layer") == "PanopticonPE"
    return {
        **{k: config[k] for k in same if k in config},
        "layer_scale": config["init_values"],
        "ffn": "swiglu" if config["ffn_layer"].startswith("swiglu") else config["ffn_layer"],
        "registers": config["num_register_tokens"],
        "interpolate_offset": config["interpolate_offset"],
        "interpolate_antialias": config["interpolate_antialias"],
        "norm_eps": config["layer_norm_eps"],
        **(encoder_options(**config["pe_args"]) if spectral else {"in_chans": config["in_chans"]}),
    }


@torch.no_grad()
def vit(fixture: Fixture) -> dict[str, Tensor]:
    config, inputs = fixture.config, fixture.inputs
    dinov2 = f"dinov2_vitb14{'_reg' if config['num_register_tokens'] else ''}"
    name = "panopticon_vitb14" if config.get("embed_layer") == "PanopticonPE" else dinov2
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


def mae_key(key: str) -> str:
    """The original's parameter name -> ours."""
    if key.startswith("decoder_pred."):
        return f"head.{key}"
    return f"decoder.{key}" if key.startswith(("decoder_", "mask_token")) else f"encoder.{key}"


def build_mae(fixture: Fixture, norm_pix: bool) -> MAE:
    """The fixed-band objective with the fixture's parameters; decoder positions are computed, so they are compared."""
    c = fixture.config
    same = {k: c[k] for k in ("patch_size", "img_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")}
    encoder = build_encoder("vit_base", embed="conv", in_chans=c["in_chans"], norm_eps=c["layer_norm_eps"], **same)
    decoder = {k: c[f"decoder_{theirs}"] for k, theirs in DECODER_ARGUMENTS.items()}
    model = MAE(encoder, size=c["img_size"], mask_ratio=c["mask_ratio"], norm_pix=norm_pix, **decoder)
    if "out/pred" in fixture.recorded:
        positions, side = fixture.state["decoder_pos_embed"][0], c["img_size"] // c["patch_size"]
        torch.testing.assert_close(sincos_positions(positions.shape[-1], side, side).float(), positions[1:])
        assert not positions[0].any(), "the class token has position 0"
    model.load_state_dict({mae_key(k): v for k, v in fixture.state.items() if k != "decoder_pos_embed"})
    return model.eval()


def mae(fixture: Fixture) -> dict[str, Tensor]:
    imgs, noise, ratio = fixture.inputs["imgs"], fixture.inputs["noise"], fixture.config["mask_ratio"]
    b, length = noise.shape
    order = noise.argsort(1)
    keep = order[:, : int(length * (1 - ratio))]
    masks = torch.ones(b, length).scatter(1, keep, 0.0)
    batch = Batch({"image": {"imgs": imgs, "masks": masks.bool()}}, torch.arange(b), [""] * b)
    out = {"out/mask": masks, "out/ids_keep": keep, "out/ids_restore": order.argsort(1)}
    if "sequence" in fixture.inputs:
        x = fixture.inputs["sequence"]
        out["out/random_masking/x_masked"] = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        out |= {f"out/random_masking/{k}": out[f"out/{k}"] for k in ("mask", "ids_restore")}
    for name, norm_pix in {"pix": False, "norm_pix": True}.items():
        model = build_mae(fixture, norm_pix)
        out[f"out/{name}/loss"] = model(batch)["loss"]
    wanted = {k: model.get_parameter(mae_key(k.removeprefix("grad/state/"))) for k in fixture.recorded if "grad/" in k}
    out |= (
        gradients(out["out/norm_pix/loss"], {k.removeprefix("grad/"): p for k, p in wanted.items()}) if wanted else {}
    )
    features = model.encoder.forward_features(imgs, keep=keep)
    tokens = model.decoder(features["cls"], features["patches"], keep, model.encoder.grid(imgs))
    out["out/latent"] = torch.cat([features["cls"][:, None], features["patches"]], 1)
    out["out/pred"] = model.head(tokens)[:, 0]
    every = torch.arange(length).expand(b, -1)
    out["out/patchify"] = model.reconstruct(tokens, batch.views["image"], every, batch.positions)[1][:, 0]
    return out


def pos_embed_utils(fixture: Fixture) -> dict[str, Tensor]:
    out = {}
    for call in fixture.config["sincos"]:
        positions = sincos_positions(call["embed_dim"], call["grid_size"], call["grid_size"])
        cls = positions.new_zeros(1 if call["cls_token"] else 0, call["embed_dim"])
        out[f"out/{call['output']}"] = torch.cat([cls, positions])
    for call in fixture.config["interpolate"]:
        extra, grid = fixture.inputs[call["input"]].split_with_sizes(
            [call["extra_tokens"], call["from_grid"][0] * call["from_grid"][1]], 1
        )
        resized = interpolate_positions(grid, tuple(call["to_grid"]), antialias=call["antialias"])
        out[f"out/{call['output']}"] = torch.cat([extra, resized], 1)
    return out


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("panopticon", "patch_embed"): patch_embed,
    ("panopticon", "vit"): vit,
    ("dinov2", "vit"): vit,
    ("mae", "mae"): mae,
    ("mae", "pos_embed_utils"): pos_embed_utils,
    ("layouts", "panopticon"): layout,
    ("layouts", "dinov2"): layout,
}
