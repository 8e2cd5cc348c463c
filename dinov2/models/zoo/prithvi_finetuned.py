"""Prithvi 1.0 as its authors fine-tuned it (NASA-IMPACT/hls-foundation-os): burn scars, floods, crop types.

The zoo holds the encoders; the neck and the head, which are released beside them, are put on by ``eval.finetuned``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from dinov2.models.patch import fixed_bands
from dinov2.models.vit import SIZES, Input
from dinov2.models.zoo.prithvi import Prithvi, TubeletEmbed, marks
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state
from dinov2.models.zoo.vit import ReleasedViT

BESIDE = ("neck.", "decode_head.")


class FineTuned(Prithvi):
    """Its maps are normalised, as its neck was trained to take them."""

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps ``[B, D, t, h, w]``, of one date ``[B, D, h, w]``, after the final norm."""
        found = [patches for patches, _ in self._intermediate(x, layers, reshape=True, norm=True)]
        return [m.squeeze(2) if m.shape[2] == 1 else m for m in found]


class FineTunedOnCrops(FineTuned):
    """It was shown stacks of dates as if they were stacks of bands, and so it is here.

    Of date t and band c of C the published pipeline made channel t C + c, and took channel c' T + t' for band c' of
    date t'.
    """

    def tokens(self, x: Input, masks: Tensor | None, fill: Tensor | None, keep: Tensor | None) -> Tensor:
        """See the base class; ValueError for another number of dates than the published one."""
        imgs = fixed_bands(x, self.patch_embed.in_chans)
        dates = imgs.shape[2] if imgs.ndim == 5 else 1
        if dates != self.frames:
            raise ValueError(f"a series of {dates} dates: this model was fine-tuned on {self.frames}, no others")
        shuffled = imgs.transpose(1, 2).flatten(1, 2).unflatten(1, imgs.shape[1:3])  # [B, C, T, H, W]
        return super().tokens(shuffled, masks, fill, keep)


def build(
    model: type[FineTuned], defaults: dict[str, int], in_chans: int = 6, num_frames: int | None = None, **sizes: Any
) -> ReleasedViT:
    """The encoder at its released sizes (``defaults`` beside those of Prithvi), ``sizes`` overriding them."""
    own = {k: v for k, v in defaults.items() if k != "num_frames"}
    options = {"img_size": 224, "patch_size": 16, "norm_eps": 1e-5, **SIZES["vit_base"], **own, **sizes}
    embed = TubeletEmbed(options["embed_dim"], options["patch_size"], in_chans, 1)
    return model(embed, num_frames=num_frames or defaults["num_frames"], **options)


def convert(content: Any) -> Converted:
    """A training file's content -> (encoder, neck and head). The auxiliary head served training only."""
    state = encoder_state(content, unused=("auxiliary_head.*",))
    beside = {k: v for k, v in state.items() if k.startswith(BESIDE)}
    bare = {k.removeprefix("backbone.").removeprefix("encoder."): v for k, v in state.items() if k not in beside}
    return bare, beside


HLS = Bands("hls_l30", ("B02", "B03", "B04", "B05", "B06", "B07"), "reflectance")
S2 = Bands("sentinel2_l1c", ("B02", "B03", "B04", "B8A", "B11", "B12"), "reflectance")


def expects(bands: Bands, mean: tuple[float, ...], std: tuple[float, ...], depth: int, frames: int = 1) -> Expects:
    """In the data's own statistics, which the configurations name."""
    return Expects(
        bands=(bands,),
        scaling="standardise",
        mean=mean,
        std=std,
        size=224,
        patch=16,
        frames=frames,
        layers=(depth - 1,),
        dim=768,
        embedding="class token, normalised",
    )


BURN_SCARS = expects(
    HLS,
    (0.0333497, 0.0570119, 0.0588975, 0.2323245, 0.1972855, 0.1194491),
    (0.0226914, 0.0268076, 0.0400411, 0.0779173, 0.0870874, 0.0724198),
    depth=12,
)
FLOODS = expects(
    S2,
    (0.14245495, 0.13921481, 0.12434631, 0.31420089, 0.20743526, 0.12046503),
    (0.04036231, 0.04186983, 0.05267646, 0.0822221, 0.06834774, 0.05294205),
    depth=12,
)
CROPS = expects(
    HLS,
    (0.0494905781, 0.0815239594, 0.0924335066, 0.2968881459, 0.2634621962, 0.1739579917),
    (0.0284925432, 0.035784876, 0.0575566823, 0.0896601013, 0.0951900334, 0.0921407808),
    depth=6,
    frames=3,
)
ONE_DATE = partial(build, FineTuned, {"num_frames": 1})
THREE_DATES = partial(build, FineTunedOnCrops, {"num_frames": 3, "depth": 6, "num_heads": 8})
RELEASES = {
    "prithvi_burn_scars": Release(ONE_DATE, convert, None, "Prithvi", marks, BURN_SCARS),
    "prithvi_sen1floods11": Release(ONE_DATE, convert, None, "Prithvi", marks, FLOODS),
    "prithvi_crops": Release(THREE_DATES, convert, None, "Prithvi", marks, CROPS),
}
