"""RemoteCLIP's image encoders (Liu et al. 2024, IEEE TGRS, arXiv 2306.11029): CLIP's transformer, trained further."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from dinov2.models.patch import ConvPatchEmbed
from dinov2.models.state import State
from dinov2.models.vit import SIZES, Input
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named
from dinov2.models.zoo.vit import ReleasedViT

UNUSED = ("transformer.*", "token_embedding.*", "positional_embedding", "text_projection", "ln_final.*", "logit_scale")
NAMES = (  # OpenCLIP's name -> ours, in turn
    (r"^visual\.", ""),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^proj$", "projection.weight"),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, of pictures in 0..1


class RemoteClip(ReleasedViT):
    """ViT with a norm before the first block; the embedding is the class token in the space shared with text."""

    def __init__(self, patch_embed: nn.Module, *, projection: int, **options: Any) -> None:
        super().__init__(patch_embed, **options)
        self.norm_pre = nn.LayerNorm(self.embed_dim, options["norm_eps"])
        self.projection = nn.Linear(self.embed_dim, projection, bias=False)

    def tokens(self, x: Input, masks: Tensor | None, fill: Tensor | None, keep: Tensor | None) -> Tensor:
        """What enters the first block ``[B, 1 + L, D]``."""
        return self.norm_pre(super().tokens(x, masks, fill, keep))

    def forward(self, x: Input) -> Tensor:
        """Projected class token ``[B, projection]``."""
        return self.projection(super().forward(x))


def build(size: str, patch: int, *, projection: int, **sizes: Any) -> RemoteClip:
    """RemoteCLIP's image encoder at its released sizes, ``sizes`` overriding them."""
    options = {"img_size": 224, "patch_size": patch, "norm_eps": 1e-5, **SIZES[size], **sizes}
    embed = ConvPatchEmbed(options["embed_dim"], options["patch_size"])
    embed.proj.bias = None
    return RemoteClip(embed, projection=projection, **options)


def convert(content: Any) -> Converted:
    """A released file's content, image and text encoder or the former alone -> (encoder state, nothing)."""
    state = encoder_state(content)
    if any(k.startswith("visual.") for k in state):
        state = encoder_state(content, unused=UNUSED)
    out = {}
    for key, value in state.items():
        ours = key
        for pattern, name in NAMES:
            ours = re.sub(pattern, name, ours)
        if ours != key and ours == "cls_token":
            value = value.view(1, 1, -1)
        elif ours != key and ours == "pos_embed":
            value = value[None]
        elif ours != key and ours == "projection.weight":
            value = value.T.contiguous()
        out[ours] = value
    return out, {}


def marks(flat: State) -> bool:
    """Whether these tensors are a CLIP image encoder's: a norm before the first block."""
    return named(flat, "ln_pre.weight") is not None or named(flat, "norm_pre.weight") is not None


def release(size: str, patch: int, projection: int, file: str, layers: tuple[int, ...]) -> Release:
    """One file of the release."""
    expects = Expects(
        bands=(Bands("rgb", ("red", "green", "blue"), "dn"),),
        scaling="standardise",
        mean=tuple(255 * x for x in MEAN),
        std=tuple(255 * x for x in STD),
        size=224,
        patch=patch,
        layers=layers,
        dim=SIZES[size]["embed_dim"],
        embedding="class token, normalised and projected",
    )
    address = f"https://huggingface.co/chendelong/RemoteCLIP/resolve/main/{file}"
    made = partial(build, size, patch, projection=projection)
    return Release(made, convert, address, "RemoteCLIP", marks, expects)


RELEASES = {
    "remoteclip_vitb32": release("vit_base", 32, 512, "RemoteCLIP-ViT-B-32.pt", (3, 5, 7, 11)),
    "remoteclip_vitl14": release("vit_large", 14, 768, "RemoteCLIP-ViT-L-14.pt", (7, 11, 15, 23)),
}
