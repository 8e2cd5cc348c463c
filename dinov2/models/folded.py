"""The spectral patch embedding for inference: the products of its parameters, for channels that are known beforehand.

Letters and formulae as in dinov2/models/spectral.py. Of W, W_k, W_v, the query and the channel codes only A, V, and per
channel U . e_c and W_v (b + e_c) are left: at the published sizes a fifth of the numbers, and nothing to multiply out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinov2.models.patch import patchify
from dinov2.models.spectral import SpectralPatchEmbed


class FoldedPatchEmbed(nn.Module):
    """The same function as :class:`SpectralPatchEmbed` for the ids ``channels``; not to be trained.

    Input and output are those of SpectralPatchEmbed. An id that is not in ``channels`` raises ValueError on the CPU; on
    other devices and in an exported graph it makes the image's tokens NaN.
    """

    channel_ids: Tensor  # [N]
    scores: Tensor  # A [H, P2]
    values: Tensor  # V [H, P2, d]
    id_scores: Tensor  # U . e_c [N, H]
    id_values: Tensor  # W_v (b + e_c) [N, D]

    def __init__(
        self,
        embed_dim: int,
        patch_size: int,
        *,
        channels: Sequence[int],
        attn_dim: int,
        num_heads: int = 16,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        pixels, n = patch_size**2, len(channels)
        self.register_buffer("channel_ids", torch.tensor(channels))
        self.register_buffer("scores", torch.zeros(num_heads, pixels))
        self.register_buffer("values", torch.zeros(num_heads, pixels, attn_dim // num_heads))
        self.register_buffer("id_scores", torch.zeros(n, num_heads))
        self.register_buffer("id_values", torch.zeros(n, attn_dim))
        self.layer_norm = nn.LayerNorm(attn_dim) if layer_norm else nn.Identity()
        self.proj = nn.Linear(attn_dim, embed_dim)

    def forward(self, x: dict[str, Tensor], keep: Tensor | None = None) -> Tensor:
        """See the class."""
        imgs, ids, masks = x["imgs"], x["chn_ids"], x.get("spec_masks")
        ids = ids if ids.ndim == 2 else ids[..., 0]
        found = ids[..., None] == self.channel_ids  # [B, C, N]
        known = found.any(-1) if masks is None else found.any(-1) | masks  # [B, C]
        if (
            ids.device.type == "cpu" and not torch.compiler.is_exporting() and not known.all()
        ):  # no waiting for a device
            unknown = int((ids if ids.ndim == 2 else ids[..., 0])[~known][0])
            raise ValueError(
                f"channel {unknown} is not folded: known are {', '.join(map(str, self.channel_ids.tolist()))}"
            )
        row = found.int().argmax(-1)  # [B, C]
        id_scores = self.id_scores[row].masked_fill(~known[..., None], float("nan"))
        patches = patchify(imgs, self.patch_size, keep)  # [B, L, C, P2]
        attention = SpectralPatchEmbed.attend(patches, self.scores, id_scores, masks)  # [B, L, H, C]
        mixed = SpectralPatchEmbed.gather_values(patches, attention, self.values, self.id_values[row])  # [B, L, D]
        return self.proj(self.layer_norm(mixed))


@torch.no_grad()
def folded_state(embed: SpectralPatchEmbed, channels: Sequence[int]) -> dict[str, Tensor]:
    """The state of a FoldedPatchEmbed that equals ``embed``, in its names. Unknown ids raise ValueError."""
    ids = torch.tensor([channels])
    fold = embed.fold()
    id_scores, id_values = embed.channel_terms(embed.checked_ids(ids, None, len(channels)), fold.keys)
    state = {"channel_ids": ids[0], "scores": fold.scores, "values": fold.values.contiguous()}
    state |= {"id_scores": id_scores[0], "id_values": id_values[0]}
    kept = ("proj", "chnfus.layer_norm")
    return state | {k.removeprefix("chnfus."): v for k, v in embed.state_dict().items() if k.startswith(kept)}
