"""Golden adapters of PhilEO's networks, with what is released beside the encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.phileo import CNNBlock, PhilEODecoder
from dinov2.models.phileo_vit import DECODER, PhilEOViTDecoder
from dinov2.models.zoo import load_encoder, load_released
from dinov2.models.zoo.phileo_unet import CoreBlock
from tests.golden.harness import Adapter, Fixture

BOUNDED = ("coords", "buildings")  # through a sigmoid
TARGETS = (*BOUNDED, "clouds", "landcover")


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors below ``name`` under the names that they have there."""
    return {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}


def loaded(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """In evaluation mode."""
    module.load_state_dict(state)
    return module.eval()


def predictions(beside: Mapping[str, Tensor], latent: Tensor) -> dict[str, Tensor]:
    """What the heads of the geographic targets find."""
    out = {}
    for target in TARGETS:
        head = {name.rsplit(".")[-1]: t for name, t in part(beside, f"encoder.head_{target}.").items()}
        y = nn.functional.linear(latent, **head)
        out[f"out/{target}"] = y.sigmoid() if target in BOUNDED else y
    return out


@torch.no_grad()
def phileo_cnn(fixture: Fixture) -> dict[str, Tensor]:
    c, x = fixture.config, fixture.inputs["x"]
    sizes = {"in_chans": c["input_dim"], "img_size": c["img_size"], "embed_dim": c["latent_dim"]}
    content = {"model": {f"module.{k}": v for k, v in fixture.state.items()}, "epoch": 1}
    model: Any
    model, beside = load_released("phileo_cnn", content, dims=c["dims"], depths=c["depths"], **sizes)
    decoder = loaded(PhilEODecoder(model), part(beside, "decoder."))
    head = loaded(CNNBlock(c["dims"][0], c["input_dim"], c["img_size"], last=nn.Sigmoid), part(beside, "head."))
    maps, latent = model.maps(x), model(x)
    decoded = decoder(latent, maps)
    out = {"embeddings": latent, "embeddings_cnn": model.prelinear_norm(maps[-1]), "decoded": decoded}
    out["reconstruction"] = head(decoded)
    return {f"out/{k}": v for k, v in out.items()} | predictions(beside, latent)


@torch.no_grad()
def phileo_vit(fixture: Fixture) -> dict[str, Tensor]:
    c, x = fixture.config, fixture.inputs["x"]
    assert c["decoder"] == {**DECODER, "mlp_ratio": c["mlp_ratio"]}
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "latent_dim")
    sizes = {"in_chans": c["input_dim"], "img_size": c["chw"][1], **{k: c[k] for k in names}}
    model: Any
    model, beside = load_released("phileo_vit", dict(fixture.state), **sizes)
    features = model.forward_features(x)
    tokens = torch.cat([features["cls"][:, None], features["patches"]], 1)
    decoded = loaded(PhilEOViTDecoder(model), part(beside, "decoder."))(tokens)
    block = CNNBlock(c["input_dim"], c["input_dim"], c["chw"][1], nn.LeakyReLU, nn.Sigmoid)
    out = {"embeddings": model(x), "vit_output": tokens, "decoded": decoded}
    out["reconstruction"] = loaded(block, part(beside, "head."))(decoded)
    return {f"out/{k}": v for k, v in out.items()} | predictions(beside, out["embeddings"])


@torch.no_grad()
def phileo_geoaware_unet(fixture: Fixture) -> dict[str, Tensor]:
    c, sizes = fixture.config, {"dims": fixture.config["channels"], "depths": fixture.config["depths"]}
    content = {f"coreunet.{k}": v for k, v in fixture.state.items()}
    model: Any
    model, beside = load_released("phileo_geoaware", content, in_chans=c["input_dim"], **sizes)
    (body,) = model.maps(fixture.inputs["x"], [0])
    width = c["channels"][0]
    head = nn.Sequential(CoreBlock(width, width), nn.Conv2d(width, c["output_dim"], 1))
    return {"out/body": body, "out/y": loaded(head, part(beside, "head."))(body)}


def layout(fixture: Fixture) -> dict[str, Tensor]:
    """The full-size key layout loads strictly, with and without the name of the network around it."""
    for prefix in ("", "coreunet."):
        with torch.device("meta"):
            load_encoder("phileo_geoaware", {prefix + k: v for k, v in fixture.state.items()})
    return {}


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("encoders", "phileo_cnn"): phileo_cnn,
    ("encoders", "phileo_vit"): phileo_vit,
    ("encoders", "phileo_geoaware_unet"): phileo_geoaware_unet,
    ("layouts", "phileo_geoaware_unet"): layout,
}
