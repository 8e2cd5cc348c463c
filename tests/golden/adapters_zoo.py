"""Golden adapters of the field's released encoders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.zoo import load_encoder
from dinov2.models.zoo.croma import Croma, alibi
from dinov2.models.zoo.dofa import DynamicPatchEmbed
from tests.golden.harness import Adapter, Fixture

SIZES = ("embed_dim", "depth", "num_heads", "img_size", "patch_size", "mlp_ratio", "qkv_bias", "in_chans")


def sizes(config: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Our constructor arguments for a fixture's; ``options`` in addition."""
    return {**{k: config[k] for k in SIZES if k in config}, "norm_eps": config["layer_norm_eps"], **options}


def image(fixture: Fixture) -> Tensor:
    """The fixture's image, without the time axis of length 1."""
    x = fixture.inputs["optical"]
    return x.squeeze(2) if x.ndim == 5 else x


def maps(model: Any, x: Any, layers: list[int]) -> dict[str, Tensor]:
    return {f"out/feat/{i}": m for i, m in enumerate(model.maps(x, layers))}


@torch.no_grad()
def dofa_patch_embed(fixture: Fixture) -> dict[str, Tensor]:
    c, out = fixture.config, {}
    module = DynamicPatchEmbed(c["embed_dim"], c["kernel_size"], c["wv_planes"])
    module.load_state_dict(fixture.state)
    for case in fixture.cases:
        nm = fixture.inputs[f"{case}wavelengths_um"].double() * c["wavelength_scale"]
        out[f"out/{case}tokens"] = module.embed(fixture.inputs[f"{case}x"], nm)
        out[f"out/{case}waves"] = module.waves(nm)
    return out


@torch.no_grad()
def dofa(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    model: Any = load_encoder("dofa", dict(fixture.state), wave_dim=c["wv_planes"], **sizes(c))
    imgs = torch.cat([fixture.inputs[sensor].squeeze(2) for sensor in c["bands"]], 1)
    nm = torch.tensor(c["wavelengths"]["optical"]).mul(c["wavelength_scale"]).round().long()
    ids = torch.cat([nm, torch.tensor([-1, -2])]).expand(len(imgs), -1)  # VV and VH: 3.75 um stands for them
    x, layers = {"imgs": imgs, "chn_ids": ids}, c["output_layers"]
    out = maps(model, x, layers)
    for i, layer in enumerate(layers):
        normed = layer == c["final_norm_after_block"]
        [(_, out[f"out/cls/{i}"])] = model.get_intermediate_layers(x, [layer], return_class_token=True, norm=normed)
    return out


@torch.no_grad()
def croma(fixture: Fixture) -> dict[str, Tensor]:
    c, optical, sar = fixture.config, fixture.inputs["optical"], fixture.inputs["sar"]
    x = {"optical": optical, "SAR": sar, "joint": torch.cat([optical, sar], 1)}
    side = c["img_size"] // c["patch_size"]
    out = {"out/attn_bias": alibi(side, side, c["num_heads"])[None]}
    models: dict[str, Croma] = {}
    for modality in x:
        options = {"embed_dim": c["dim"], "depth": c["s2_depth"], "num_heads": c["num_heads"]}
        model = load_encoder(f"croma_base_{modality.lower()}", dict(fixture.state), **options)
        assert isinstance(model, Croma)
        out |= {f"out/{modality}_encodings": model.encodings(x[modality]), f"out/{modality}_GAP": model(x[modality])}
        models[modality.lower()] = model
    for case, layers in c["pangaea_output_layers"].items():
        modality = case.partition("_")[0]
        inputs = {k.lower(): v for k, v in x.items()}[modality]
        out |= {f"out/pangaea_{case}/{i}": m for i, m in enumerate(models[modality].maps(inputs, layers))}
    return out


@torch.no_grad()
def prithvi(fixture: Fixture) -> dict[str, Tensor]:
    c, x = fixture.config, fixture.inputs["x"]
    options = {k: c[k] for k in ("num_frames", "tubelet_size")}
    model: Any = load_encoder("prithvi", dict(fixture.state), **options, **sizes(c))
    features = model.forward_features(x)
    tokens = torch.cat([features["cls"][:, None], features["patches"]], 1)
    found = zip(c["pangaea_layers"], model.maps(x, c["pangaea_layers"]), strict=True)
    return {"out/nasa_tokens": tokens, **{f"out/pangaea_layer/{i}": m for i, m in found}}


@torch.no_grad()
def scalemae(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    model = load_encoder("scalemae", dict(fixture.state), gsd=c["input_res"], **sizes(c))
    return maps(model, image(fixture), c["output_layers"])


@torch.no_grad()
def ssl4eo(fixture: Fixture) -> dict[str, Tensor]:
    name = f"{fixture.kind}_sar" if fixture.config["in_chans"] == 2 else fixture.kind
    model = load_encoder(name, dict(fixture.state), **sizes(fixture.config))
    return maps(model, image(fixture), fixture.config["output_layers"])


@torch.no_grad()
def spectralgpt(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    model = load_encoder("spectralgpt", dict(fixture.state), group=c["t_patch_size"], **sizes(c))
    return maps(model, image(fixture), c["output_layers"])


@torch.no_grad()
def satmae(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    options = sizes(c, groups=c["channel_groups"], channel_embed=c["channel_embed"])
    del options["in_chans"]  # the groups say it
    model: Any = load_encoder("satmae", dict(fixture.state), **options)
    features = model.forward_features(fixture.inputs["x"])
    return {"out/tokens": torch.cat([features["cls"][:, None], features["patches"]], 1)}


LAYOUTS = {"dofa_base": ["dofa"], "prithvi_100M_encoder": ["prithvi"]} | {
    f"croma_{size}": [f"croma_{size}_{modality}" for modality in ("optical", "sar", "joint")]
    for size in ("base", "large")
}


def layout(fixture: Fixture) -> dict[str, Tensor]:
    """The full-size released key layout loads strictly (on the meta device: shapes without memory)."""
    models: list[nn.Module] = []
    with torch.device("meta"):
        for name in LAYOUTS[fixture.name]:
            models.append(load_encoder(name, dict(fixture.state)))
    assert all(p.is_meta for model in models for p in model.parameters())
    return {}


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("encoders", "dofa"): dofa,
    ("encoders", "dofa_patch_embed"): dofa_patch_embed,
    ("encoders", "croma"): croma,
    ("encoders", "prithvi"): prithvi,
    ("encoders", "scalemae"): scalemae,
    ("encoders", "ssl4eo_mae"): ssl4eo,
    ("encoders", "ssl4eo_dino"): ssl4eo,
    ("encoders", "spectralgpt"): spectralgpt,
    ("encoders", "satmae"): satmae,
    ("layouts", "dofa"): layout,
    ("layouts", "croma"): layout,
    ("layouts", "prithvi"): layout,
}
