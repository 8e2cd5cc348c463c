"""Golden adapters of decoders and of temporal and change necks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.dense import resize
from eval.decoders import build_decoder, build_neck
from eval.decoders.conv_transpose import halving_neck, plain_neck
from eval.decoders.temporal import LTAE
from eval.decoders.unet import UNetEncoder
from tests.golden.harness import Adapter, Fixture

LTAE_NAMES = {
    r"inconv\.": "embed.",
    r"attention_heads\.Q$": "query",
    r"attention_heads\.fc1_k\.": "key.",
    r"in_norm\.": "norm.",
}
NECK_NAMES = {
    **{rf"^(?:tmap|ltae)\.{k}": f"neck.ltae.{v}" for k, v in LTAE_NAMES.items()},
    r"^(?:tmap|ltae)\.(out_norm|mlp)": r"neck.ltae.\1",
    r"^tmap\.": "neck.over_time.",
    r"^ltae_adaptor\.convs\.": "neck.adapt.",
}
PYRAMID_NAMES = {r"^neck\.ops\.1\.0\.": "decoder.neck.levels.1.", r"^neck\.ops\.": "decoder.neck.levels."}
# The original's parameter names -> ours, regular expressions applied in turn; "" = computed or stored twice
NAMES = {
    "ltae": LTAE_NAMES,
    "fcn": {
        r"^convs\.": "decoder.convs.",
        r"^conv_cat\.": "decoder.join.",
        r"^conv_seg\.conv\.": "decoder.head.1.",
        r"\.conv\.": ".0.",
        r"\.norm\.": ".1.",
    },
    "segformer": {
        **PYRAMID_NAMES,
        **NECK_NAMES,
        r"^convs\.": "decoder.levels.",
        r"^fusion_conv\.": "decoder.fuse.",
        r"^conv_seg\.": "decoder.head.1.",
        r"\.conv\.": ".0.",
        r"\.bn\.": ".1.",
    },
    "upernet": {
        **PYRAMID_NAMES,
        **NECK_NAMES,
        r"^psp_modules\.(\d)\.1\.": r"decoder.pooled.\1.0.",
        r"^psp_modules\.(\d)\.2\.": r"decoder.pooled.\1.1.",
        r"^bottleneck\.": "decoder.context.",
        r"^lateral_convs\.": "decoder.lateral.",
        r"^fpn_convs\.": "decoder.smooth.",
        r"^fpn_bottleneck\.": "decoder.fuse.",
        r"^conv_(seg|reg)\.": "decoder.head.1.",
    },
    "muster": {
        **PYRAMID_NAMES,
        r"^muster\.ffns\.(\d)\.": r"decoder.skips.\1.",
        r"^muster\.outffn\.": "decoder.out.",
        r"^muster\.": "decoder.",
        r"^reshape\.conv\.": "decoder.project.0.",
        r"^conv_seg\.": "decoder.head.1.",
        r"\.ffn\.": ".mlp.",
        r"\.layers\.0\.0\.": ".fc1.",
        r"\.layers\.1\.": ".fc2.",
        r"\.skip_norm\.": ".norm_skip.",
        r"\.attn\.w_msa\.": ".attn.",
        r"\.qkv\.": ".key_value.",
        r"\.skip_qkv\.": ".query.",
        r"\.relative_position_bias_table$": ".bias",
        r".*\.relative_position_index$": "",
        r"\.conv\.conv\.": ".fuse.0.",
        r"\.conv\.norm\.": ".fuse.1.",
    },
    "seglinear": {**NECK_NAMES, r"^mlp\.": "decoder.mlp.", r"^layers\..*": ""},
    "linear_classifier": {r"^linear_head\.2\.": "decoder.linear."},
    "unet": {
        r"^encoder\.in_conv\.conv": "encoder.levels.0",
        r"^encoder\.encoder\.down_seq\.down(\d+)\.mpconv\.1": r"encoder.levels.\1",
        r"^decoder\.up_seq\.(\d+)\.up\.": r"decoder.up.\1.",
        r"^decoder\.up_seq\.(\d+)\.conv\.conv": r"decoder.join.\1.conv",
        r"^conv_seg\.conv\.": "decoder.head.1.",
        r"\.conv\.0\.": ".0.0.",
        r"\.conv\.1\.": ".0.1.",
        r"\.conv\.3\.": ".1.0.",
        r"\.conv\.4\.": ".1.1.",
    },
}
# ConvTransformerTokensToEmbeddingNeck has its layers in two groups of four, GeospatialNeck in a group per step
PLAIN_NECK_NAMES = {r"^fpn(\d)\.(\d)\.": lambda m: f"{4 * int(m[1]) - 4 + int(m[2])}.", r"(\d\.)ln\.": r"\1"}
HALVING_NECK_NAMES = {r"^layers\.(\d)\.(\d)\.": lambda m: f"{3 * int(m[1]) + int(m[2])}."}
NAMES["reg_upernet"] = NAMES["siam_upernet"] = NAMES["upernet"]


def load(module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, Any]) -> None:
    """The original's parameters, strictly. Its biases before a batch normalisation move into the running mean."""
    wanted, ours = module.state_dict(), {}
    for name, tensor in state.items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        if name:
            ours[name] = tensor.view_as(wanted[name]) if name in wanted else tensor  # linear maps as 1x1 convolutions
    for name in [n for n in ours if n not in wanted and n.endswith(".0.bias")]:
        running_mean = name.replace(".0.bias", ".1.running_mean")
        ours[running_mean] = ours[running_mean] - ours.pop(name)
    module.load_state_dict(ours)
    module.eval()


def features(fixture: Fixture) -> list[Tensor]:
    """Maps of every level; those of several images as ``[B, T, D, h, w]``."""
    n = sum(name.startswith("feat/") for name in fixture.inputs)
    maps = [fixture.inputs[f"feat/{i}"] for i in range(n)]
    return [x.transpose(1, 2) if x.ndim == 5 else x for x in maps]


def ltae_options(c: Mapping[str, Any]) -> dict[str, Any]:
    assert c["mlp"][0] == c["d_model"]
    return {"heads": c["n_head"], "key_dim": c["d_k"], "mlp": c["mlp"], "dropout": c["dropout"]}


def neck(c: Mapping[str, Any], in_channels: list[int]) -> nn.Module | None:
    """Our neck for the strategy that the original names."""
    match c.get("strategy"):
        case None:
            return None
        case "ltae":
            assert not c["ltae"]["positional_encoding"]
            return build_neck("ltae", in_channels, **ltae_options(c["ltae"]))
        case "linear":
            return build_neck("linear", in_channels, frames=c["multi_temporal"])
        case strategy:
            return build_neck({"diff": "difference", "concat": "concat"}[strategy], in_channels)


def run(
    fixture: Fixture,
    name: str,
    maps: Sequence[Tensor],
    *,
    last: Callable[[Tensor], Tensor] = lambda logits: logits,
    **options: Any,
) -> dict[str, Tensor]:
    """Outputs of our decoder, behind the fixture's neck if it has one; ``last``: what the original does to logits.

    The original's sub-pixel convolution does not resize to the wanted size.
    """
    c = fixture.config
    widths = [x.shape[-3] for x in maps]
    before = neck(c, widths)
    decoder = build_decoder(name, before.out_channels if before else widths, c.get("num_classes", 1), **options)
    load(nn.ModuleDict({"decoder": decoder} | ({"neck": before} if before else {})), fixture.state, NAMES[fixture.kind])
    logits = last(decoder.logits(before(maps) if before else maps))
    usual = logits.shape[2:] if options.get("shuffle", 1) > 1 else c.get("input_hw", ())
    return {f"out/{k}": resize(logits, size or usual) for k, size in c.get("output_shapes", {"logits": None}).items()}


def head_options(c: Mapping[str, Any]) -> dict[str, Any]:
    """Options that several decoders have."""
    return {"channels": c["channels"], "shuffle": c.get("r") or 1}


def repeated(maps: list[Tensor]) -> list[Tensor]:
    """The last map in place of every level."""
    return [maps[-1]] * len(maps)


def fcn(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    options = {"convs": c["num_convs"], "kernel": c["kernel_size"], "concat_input": c["concat_input"]}
    return run(fixture, "fcn", features(fixture), last=torch.relu, **options, **head_options(c))


def segformer(fixture: Fixture) -> dict[str, Tensor]:
    maps = features(fixture)
    used = repeated(maps) if fixture.config["pyramid_strategy"] == "head_only" else maps
    return run(fixture, "segformer", used, **head_options(fixture.config))


def upernet(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    last = {"last": torch.relu} if fixture.kind == "reg_upernet" else {}
    options = {"pool_sizes": c["pool_scales"], "pyramid": c["pyramid_output"], **head_options(c)}
    return run(fixture, "upernet", features(fixture), **last, **options)


def muster(fixture: Fixture) -> dict[str, Tensor]:
    c, maps = fixture.config, features(fixture)
    options = {"window": c["window_size"], "heads": c["num_heads"], **{k: c[k] for k in ("depths", "mlp_ratio")}}
    return run(
        fixture, "muster", repeated(maps) if c["pyramid_strategy"] == "head" else maps, **options, **head_options(c)
    )


def seglinear(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    last = {"last": lambda logits: logits.softmax(1)} if c["softmax"] else {}
    return run(fixture, "linear", features(fixture)[-1:], hidden=c["topology"] or (), **last)


def linear_classifier(fixture: Fixture) -> dict[str, Tensor]:
    maps = features(fixture)
    largest = max(x.shape[2:] for x in maps)
    return run(fixture, "linear_classifier", [resize(x, largest) for x in maps])


def unet(fixture: Fixture) -> dict[str, Tensor]:
    c, image = fixture.config, fixture.inputs["optical"].squeeze(2)
    encoder = UNetEncoder(c["in_channels"], widths=c["topology"])
    decoder = build_decoder("unet", encoder.channels, c["num_classes"], pyramid=True)
    steps = len(c["topology"])
    state = {
        re.sub(r"up_seq\.up(\d+)", lambda m: f"up_seq.{steps - int(m[1])}", k): t for k, t in fixture.state.items()
    }
    whole = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    load(whole, state, NAMES["unet"])
    size = image.shape[2:]
    stored = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    whole.train()
    out = {"out/logits_train_mode_batchnorm": decoder(encoder(image), size)}
    # Fixtures start from 7 counted batches; one that counts 8 was stored after the train-mode call, the last it made.
    late = any(int(t) == 8 for name, t in stored.items() if name.endswith("num_batches_tracked"))
    for name, now in whole.named_buffers():
        if "running" in name:  # one step of momentum 0.1 back from what was stored
            now.copy_((1.9 * stored[name] - now) / 0.9 if late else stored[name])
    whole.eval()
    out |= {f"out/encoder_feat/{i}": x for i, x in enumerate(reversed(encoder(image)))}
    return out | {"out/logits": decoder(encoder(image), size)}


class PublishedLTAE(LTAE):
    """Padded dates enter the first normalisation, as in the original; the weights are kept for comparison."""

    def normalise(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return super().normalise(x, None)

    def attention(self, x: Tensor, padding: Tensor | None) -> Tensor:
        self.weights = super().attention(x, padding)  # [N, H, T]
        return self.weights


def ltae(fixture: Fixture) -> dict[str, Tensor]:
    c, x = fixture.config, fixture.inputs["x"].transpose(1, 2)  # [B, T, C, h, w]
    model = PublishedLTAE(c["in_channels"], period=c["T"], **ltae_options(c))
    load(model, fixture.state, NAMES["ltae"])
    dates = fixture.inputs["batch_positions"] if c["positional_encoding"] else None
    out = {}
    for case, padding in {"": None, "_padmask": fixture.inputs["pad_mask"]}.items():
        out[f"out/y{case}"] = model(x, dates, padding)
        weights = model.weights.view(len(x), *x.shape[3:], *model.weights.shape[1:])  # [B, h, w, H, T]
        out[f"out/attn{case}"] = weights.permute(3, 0, 4, 1, 2)
    return out


@torch.no_grad()
def prithvi_necks(fixture: Fixture) -> dict[str, Tensor]:
    c, geo = fixture.config, fixture.config["geo_neck"]
    frames = fixture.inputs["tokens"][:, 1:].unflatten(1, (c["frames"], c["Hp"], c["Wp"]))  # [B, T, h, w, D]
    maps = frames.movedim(-1, 1).flatten(1, 2)  # [B, D * T, h, w], all dates of a feature together
    necks = {
        "conv_neck": (plain_neck(maps.shape[1], c["conv_neck"]["output_embed_dim"]), PLAIN_NECK_NAMES),
        "geo_neck": (
            halving_neck(
                maps.shape[1], geo["first_conv_channels"], steps=geo["num_convs"], convs=geo["num_convs_per_upscale"]
            ),
            HALVING_NECK_NAMES,
        ),
    }
    for name, (module, names) in necks.items():
        state = {k.removeprefix(f"{name}."): t for k, t in fixture.state.items() if k.startswith(name)}
        load(module, state, names)
    return {f"out/{name}": module(maps) for name, (module, _) in necks.items()}


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("decoders", "fcn"): fcn,
    ("decoders", "linear_classifier"): linear_classifier,
    ("decoders", "ltae"): ltae,
    ("decoders", "muster"): muster,
    ("decoders", "reg_upernet"): upernet,
    ("decoders", "segformer"): segformer,
    ("decoders", "seglinear"): seglinear,
    ("decoders", "siam_upernet"): upernet,
    ("decoders", "unet"): unet,
    ("decoders", "upernet"): upernet,
    ("encoders", "prithvi_necks"): prithvi_necks,
}
